"""A policy measured against a reference on pairs: one path for a run's own models and for any others."""

from __future__ import annotations

import dataclasses
import functools
import json
import logging
import re
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tisdpo_jax import losses
from tisdpo_jax.artifacts import digest, write_text
from tisdpo_jax.config import Experiment
from tisdpo_jax.data import EncodedSet, apply_policy, read_pairs
from tisdpo_jax.errors import ConfigError, DataError
from tisdpo_jax.metrics import PairEvaluation, PairScores, change_of, compare, defined, evaluate_pairs
from tisdpo_jax.models import Model
from tisdpo_jax.reporting import Comparison, DataCounts, Grid, as_plain, preference_grids
from tisdpo_jax.scoring import score_pair_of_models
from tisdpo_jax.stages import Session, Splits, Subject, check_finite, open_data, passing
from tisdpo_jax.training import collect, one_pass
from tisdpo_jax.types import Batch, Variables

log = logging.getLogger(__name__)

RESULT = "evaluation.json"
PAIRS = "evaluation_pairs.jsonl"
LISTED = 20  # invalid records that the terminal shows


@dataclasses.dataclass(frozen=True, eq=False)
class Evaluation:
    """What was found on the pairs; the same for a checkpoint and for its export."""

    policy: Subject
    reference: Subject
    scores: PairScores
    found: PairEvaluation
    data: DataCounts

    def grids(self) -> tuple[Grid, ...]:
        return preference_grids(self.found, policy=self.policy.name, reference=self.reference.name)


def evaluate(session: Session, pairs: Splits, policy: Subject, reference: Subject) -> Evaluation:
    """All measures of `policy` against `reference` on held-out pairs."""
    encoded, section = pairs.split("eval"), session.config.evaluation
    check_same_tokens(policy, reference)
    scores = measure_pairs(session, encoded, policy, reference)
    found = evaluate_pairs(scores, beta=session.config.beta, resamples=section.resamples, seed=section.seed)
    return Evaluation(policy, reference, scores, found, counts(encoded, "evaluated"))


def check_same_tokens(policy: Subject, reference: Subject) -> None:
    """Raises ConfigError where rewards would compare tokens of two kinds."""
    sizes = [subject.model.config.vocab_size for subject in (policy, reference)]
    if sizes[0] != sizes[1] or policy.tokenizer.get_vocab() != reference.tokenizer.get_vocab():
        raise ConfigError(
            f"{policy.source} and {reference.source} have other tokens ({sizes[0]} and {sizes[1]} in the models): "
            "log-likelihoods can be compared between models of one tokenizer only; name another evaluation.reference"
        )


def evaluation_dir(config: Experiment) -> Path:
    """Where results go that are not a run's own: a directory named by what is measured on what."""
    section = config.evaluation
    policy = Path(section.policy).name if section.policy else "policy"
    data = section.data.rpartition("/")[2].partition(".")[0] if section.data else "held-out"
    everything = digest([section.policy or "", section.reference or "", section.data or "", config.model.path])[:6]
    name = re.sub(r"[^\w.-]+", "-", f"{policy}-on-{data}")
    return Path(config.run_dir).expanduser() / "evaluations" / f"{name}-{everything}"


def counts(encoded: EncodedSet, name: str) -> DataCounts:
    used = len(encoded)
    return DataCounts(name, encoded.source, used + len(encoded.invalid), used, encoded.invalid)


def open_pairs(session: Session) -> Splits:
    """What `evaluation.data` names, held out.

    Nothing is trained on these records, so those that cannot be used stop nothing: they are counted and named.

    Raises: DataError where none can be used.
    """
    config = session.config
    section, data = config.evaluation, config.data
    if not section.data:
        held_out = open_data(config, session.encoder)[1] if data.train else None
        if held_out is None:
            also = ", or set data.eval or data.eval_fraction" if data.train else ""
            raise ConfigError(f"there are no pairs to evaluate on: name a file with --evaluation.data FILE{also}")
        return Splits.measured(held_out)
    records = read_pairs(section.data, format=data.format, limit=data.eval_limit or 0, group_field=section.subset or "")
    encoded = session.encoder.plain().pairs(records)
    if not encoded.groups:
        raise DataError(f"{encoded.source}: none of its records can be used:\n{listed(encoded)}")
    return Splits.measured(apply_policy(encoded, "skip", 1.0))


def listed(encoded: EncodedSet, count: int = LISTED) -> str:
    """Counts of a source, and the first invalid records by line and reason."""
    lines = [encoded.summary(), *(f"  {invalid_record}" for invalid_record in encoded.invalid[:count])]
    if len(encoded.invalid) > count:
        lines.append(f"  ... and {len(encoded.invalid) - count} more, all of them in {RESULT}")
    return "\n".join(lines)


def measure_pairs(session: Session, encoded: EncodedSet, policy: Subject, reference: Subject) -> PairScores:
    """Both models over all pairs, in arrays as wide as they need."""
    config, groups = session.config, encoded.groups
    rows, batches = passing(session, encoded, encoded.elements(), "main")
    run = _measurer(policy.model, reference.model, config.model.head_chunk)
    watched: Any = {"label": "evaluate", "interrupt": session.interrupt, "shown": config.logging.progress}
    everything = one_pass(rows, batches, session.mesh, **watched)
    sums = collect(lambda batch: run(policy.variables, reference.variables, batch), everything, len(groups))
    names = ("policy", "reference", "kl", "tokens")
    scores = {name: value.astype(np.float64) for name, value in zip(names, sums, strict=True)}
    for name, subject in (("policy", policy), ("reference", reference), ("kl", policy)):
        check_finite(f"log-likelihoods of {subject.name} {subject.source}", scores[name], encoded)
    return PairScores(
        **scores,
        # as it was written: its tokens are cut by the length of the responses
        prompts=[repr(pair.messages) for pair in groups],
        groups=[pair.subset for pair in groups] if config.evaluation.subset else (),
    )


@functools.lru_cache(maxsize=4)
def _measurer(model: Model, reference_model: Model, chunk: int) -> Any:
    def run(policy: Variables, reference: Variables, batch: Batch) -> tuple[jax.Array, ...]:
        scores, reference_logps = score_pair_of_models(
            model, policy, reference, batch, chunk=chunk, reference_model=reference_model
        )
        assert scores.kl is not None
        kl = jnp.minimum(scores.kl, 1e9)  # NaN stays NaN
        return scores.logps.sum(-1), reference_logps.sum(-1), kl.sum(-1), batch.mask.sum(-1)

    return jax.jit(run)


def comparisons(
    scores: PairScores, beta: float, models: tuple[str, str] = ("before", "after")
) -> tuple[Comparison, ...]:
    """Two tables of before and after training: implicit rewards, and plain likelihoods.

    The model before training is its own reference: its margin is 0, its loss log 2, and every pair a tie, whatever it
    is worth. So rewards are compared with nothing; likelihoods are what both models can be better or worse at.
    """
    count = len(scores.reference)
    margins, loss = _rewards(scores.policy, scores.reference, beta)
    no_margins, no_loss = _rewards(scores.reference, scores.reference, beta)
    rewards = tuple(defined(row) for row in compare(no_margins, no_loss, margins, loss))
    tokens = np.maximum(scores.tokens, 1)
    means = [total / tokens for total in (scores.reference, scores.policy)]
    likelier = [(mean[:, 0] > mean[:, 1]).astype(float) for mean in means]
    kl = (scores.kl / tokens).mean(-1)
    rows = (
        ("likelihood accuracy", likelier, True),
        ("log-likelihood margin a token", [mean[:, 0] - mean[:, 1] for mean in means], True),
        ("chosen log-likelihood a token", [mean[:, 0] for mean in means], None),
        ("rejected log-likelihood a token", [mean[:, 1] for mean in means], None),
    )
    changes = [change_of(name, *values, higher_is_better=better) for name, values, better in rows]
    moved = defined(change_of("KL(policy || reference), a token", np.zeros(count), kl, higher_is_better=None))
    likelihoods = (*changes, moved)
    return (
        Comparison(f"Held-out pairs, implicit reward (beta {beta:g}), tokens unweighted", count, rewards, models),
        Comparison("Held-out pairs, likelihoods", count, likelihoods, models),
    )


def _rewards(policy: np.ndarray, reference: np.ndarray, beta: float) -> tuple[np.ndarray, np.ndarray]:
    """Per-pair margin and DPO loss; a response's sum stands for one element, so the loss is the library's own."""
    result = losses.dpo_loss(
        jnp.asarray(policy, jnp.float32)[..., None],
        jnp.asarray(reference, jnp.float32)[..., None],
        jnp.ones((*policy.shape, 1)),
        beta=beta,
    )
    return np.asarray(result.chosen_reward - result.rejected_reward, np.float64), np.asarray(result.loss, np.float64)


def save(directory: Path, pairs: Splits, done: Evaluation | None, tables: tuple[Comparison, ...], judging: Any) -> None:
    """evaluation.json: every number of every table; evaluation_pairs.jsonl: a line for each pair."""
    if jax.process_index() != 0:
        return
    content: dict[str, Any] = {"tables": as_plain(tables)}
    if done is not None:
        models = {name: as_plain({"name": one.name, "source": one.source}) for name, one in _roles(done).items()}
        data = {
            "source": done.data.source,
            "records": done.data.records,
            "used": done.data.used,
            "invalid": len(done.data.invalid),
            "invalid_records": [
                {"origin": one.origin, "reason": one.reason, "detail": one.detail} for one in done.data.invalid
            ],
        }
        content |= {**models, "data": data, "evaluation": as_plain(done.found)}
        write_text(directory / PAIRS, "".join(_pair_lines(pairs, done)))
    if judging is not None:
        content["judging"] = as_plain(judging)
    write_text(directory / RESULT, json.dumps(content, indent=2, allow_nan=False, ensure_ascii=False) + "\n")


def _roles(done: Evaluation) -> dict[str, Subject]:
    return {"policy": done.policy, "reference": done.reference}


def _pair_lines(pairs: Splits, done: Evaluation) -> list[str]:
    scores, margins = done.scores, done.scores.margins(done.found.beta)
    lines = []
    for index, pair in enumerate(pairs.split("eval").groups):
        row = {"id": pair.id, "origin": pair.origin, "subset": pair.subset, "margin": float(margins[index])}
        for name in ("policy", "reference", "kl", "tokens"):
            for number, side in enumerate(("chosen", "rejected")):
                row[f"{side}_{name}"] = float(getattr(scores, name)[index, number])
        lines.append(json.dumps(as_plain(row), ensure_ascii=False) + "\n")
    return lines
