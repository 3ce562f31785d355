"""Held-out pairs and sample answers, before and after training."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import os
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tisdpo_jax import losses, partitioning
from tisdpo_jax.evaluation import Change, Comparison, Sample, as_json, compare, paired_difference
from tisdpo_jax.models import Model
from tisdpo_jax.recipes.session import Session
from tisdpo_jax.sampling import generate
from tisdpo_jax.scoring import score_pair_of_models
from tisdpo_jax.training.progress import progress
from tisdpo_jax.types import Batch, Variables

RESULT = "evaluation.json"


@dataclasses.dataclass(frozen=True)
class Measured:
    """Sums over the tokens of each response `[n, 2]`, under both models, and its number of tokens."""

    before: np.ndarray
    after: np.ndarray
    kl: np.ndarray  # KL(after || before)
    tokens: np.ndarray


def measure(session: Session, before: Variables, after: Variables, split: str = "eval") -> Measured:
    """Both models over all pairs of a split."""
    config = session.config
    pairs, batches = session.passing(split, "main")
    run = _measurer(session.model, config.model.head_chunk)
    count = len(pairs.encoded.pairs)
    measured = Measured(*(np.zeros((count, 2)) for _ in Measured.__dataclass_fields__))
    for indices in progress(batches, "evaluate", enabled=config.logging.progress):
        session.interrupt.poll("evaluating")
        batch = partitioning.put_batch(pairs.batch(indices), session.mesh)
        for name, value in zip(Measured.__dataclass_fields__, run(before, after, batch), strict=True):
            getattr(measured, name)[indices[indices >= 0]] = partitioning.to_host(value)[indices >= 0]
    return measured


@functools.lru_cache(maxsize=4)
def _measurer(model: Model, chunk: int) -> Any:
    def run(before: Variables, after: Variables, batch: Batch) -> tuple[jax.Array, ...]:
        scores, before_logps = score_pair_of_models(model, after, before, batch, chunk=chunk)
        assert scores.kl is not None
        kl = jnp.minimum(scores.kl, 1e9)
        return before_logps.sum(-1), scores.logps.sum(-1), kl.sum(-1), batch.mask.sum(-1)

    return jax.jit(run)


def comparisons(measured: Measured, beta: float) -> tuple[Comparison, ...]:
    """Two tables: implicit rewards against the model before training, and plain likelihoods.

    The model before training is its own reference: its margin is 0, its loss log 2, and every pair a tie.
    """
    count = len(measured.before)
    margins, loss = _rewards(measured.after, measured.before, beta)
    no_margins, no_loss = _rewards(measured.before, measured.before, beta)
    rewards = compare(no_margins, no_loss, margins, loss)
    tokens = np.maximum(measured.tokens, 1)
    means = [total / tokens for total in (measured.before, measured.after)]
    likelihoods = (
        _change("likelihood accuracy", *((mean[:, 0] > mean[:, 1]).astype(float) for mean in means), better=True),
        _change("chosen log-likelihood a token", *(mean[:, 0] for mean in means), better=None),
        _change("rejected log-likelihood a token", *(mean[:, 1] for mean in means), better=None),
        _change("KL from before, a token", np.zeros(count), (measured.kl / tokens).mean(-1), better=None),
    )
    return (
        Comparison(f"Held-out pairs, implicit reward (beta {beta:g})", count, rewards),
        Comparison("Held-out pairs, likelihoods", count, likelihoods),
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


def _change(name: str, before: np.ndarray, after: np.ndarray, *, better: bool | None) -> Change:
    def mean_se(x: np.ndarray) -> tuple[float, float]:
        return float(x.mean()), float(x.std(ddof=1) / math.sqrt(len(x))) if len(x) > 1 else math.nan

    return Change(name, *mean_se(before), *mean_se(after), *paired_difference(before, after), better)


def save(session: Session, tables: tuple[Comparison, ...]) -> None:
    """evaluation.json: every row of the tables, with standard errors."""
    if jax.process_index() != 0:
        return
    content = [
        {"title": table.title, "pairs": table.pairs, "rows": [as_json(row) for row in table.rows]} for table in tables
    ]
    path = session.run_dir / RESULT
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    os.replace(temporary, path)


def samples(session: Session, before: Variables, after: Variables) -> tuple[Sample, ...]:
    """Greedy answers of both models to the first held-out prompts."""
    section = session.config.evaluation
    pairs = (session.eval or session.train).pairs[: section.generate]
    if not pairs:
        return ()
    prompts = [pair.prompt.tolist() for pair in pairs]
    ends = end_tokens(session)
    answers = [
        generate(session.model, variables, prompts, max_new_tokens=section.max_new_tokens, eos_ids=ends)
        for variables in (before, after)
    ]
    decode = functools.partial(session.tokenizer.decode, skip_special_tokens=True)
    return tuple(
        Sample(prompt_text(session, pair.prompt), decode(first), decode(second))
        for pair, first, second in zip(pairs, *answers, strict=True)
    )


def end_tokens(session: Session) -> list[int]:
    """Tokens that end an answer: the tokenizer's EOS, and what the template ends a turn with."""
    ends = {session.tokenizer.eos_token_id}
    ends |= {int(pair.chosen[-1]) for pair in session.train.pairs[:100] if not pair.truncated_chosen}
    return sorted(end for end in ends if end is not None)


def prompt_text(session: Session, ids: Any) -> str:
    return str(session.tokenizer.decode(ids, skip_special_tokens=False))
