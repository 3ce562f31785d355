"""DLMA as a job of rounds, from prompts alone. Every stage leaves its result in the round's directory.

prompts -> answers behind the positive and the negative prompt (responses.jsonl)
answers -> candidates -> contrast of every token (scores/) -> R, token weights -> pairs (pairs.jsonl)
pairs   -> policy, which the next round starts from
held-out prompts -> answers before and after -> contrast, judge; export, report
"""

from __future__ import annotations

import dataclasses
import functools
import json
import logging
import os
from pathlib import Path
from typing import Any

import jax
import numpy as np

from tisdpo_jax import distributed
from tisdpo_jax.artifacts import Given, Run
from tisdpo_jax.config import Experiment, resolved
from tisdpo_jax.data import (
    EncodedSet,
    PairSet,
    Prompt,
    apply_policy,
    as_record,
    encode_pairs,
    open_template,
    split_prompts,
)
from tisdpo_jax.errors import DataError
from tisdpo_jax.estimators import CONTRAST, Read
from tisdpo_jax.generation import open_prompts, summary
from tisdpo_jax.recipes import run_dir, self_reward
from tisdpo_jax.recipes.checks import open_checks
from tisdpo_jax.recipes.export import export
from tisdpo_jax.recipes.held_out import compare_answers
from tisdpo_jax.recipes.judges import open_scorer
from tisdpo_jax.recipes.report import write_report
from tisdpo_jax.recipes.samples import Samples
from tisdpo_jax.recipes.tisdpo import policy_training
from tisdpo_jax.reporting import Comparison, histogram
from tisdpo_jax.roles import Frozen, Role, bind, contrast_roles, policy_role
from tisdpo_jax.scoring import contrast_scores
from tisdpo_jax.stages import (
    DERIVED,
    RESPONSES,
    Base,
    Columns,
    Generator,
    Session,
    Training,
    answers,
    cached_scores,
    derive,
    models,
    open_session,
    prompts_in_views,
)
from tisdpo_jax.training import Interrupt, listening
from tisdpo_jax.types import Params, Variables

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, eq=False)
class Round:
    """What a round made."""

    session: Session  # its pairs are those that train
    base: Base  # what it started from
    trained: Params
    columns: Columns
    rewards: np.ndarray  # [n] R of all candidates


def perform_rounds(verb: str, config: Experiment) -> None:
    """Does `run`, `score` (one round's pairs), `train`, `evaluate` or `export`; each stops at its stage."""
    directory, interrupt = Path(config.run_dir).expanduser(), Interrupt()
    alike = dataclasses.replace(config, logging=type(config.logging)())
    distributed.check_alike(json.dumps(resolved(alike), sort_keys=True))
    with listening(interrupt), run_dir.opened(directory, config):
        session = open_session(config, directory, interrupt, pairs=False)
        with session.metrics, jax.set_mesh(session.mesh):
            _perform(verb, session)


def _perform(verb: str, session: Session) -> None:
    config = session.config
    prompts, held_out = _prompts(config)
    if config.evaluation.judge.by and verb in ("run", "evaluate"):
        open_scorer(session)  # what it lacks is said now, not after training
    open_checks(config.evaluation.checks)
    first = base = Base(functools.partial(models.load_pretrained, session), models.freeze_of(session), pretrained=True)
    if verb == "export":
        _say_paths(export(session, *_finished(session, first)))
        return
    if verb == "evaluate":
        _compare(session, held_out, first, *_finished(session, first))
        return
    done: Round | None = None
    for number in range(1, config.dlma.rounds + 1):
        if done is not None:
            base = _next_base(done)
        done = _round(
            session, number, prompts, base, first, score_only=verb == "score" and number == config.dlma.rounds
        )
        if verb == "score" and number == config.dlma.rounds:
            return
    assert done is not None
    if verb == "train":
        _say(f"policy   {done.session.run_dir / 'models' / 'policy'}")
        return
    tables, samples = _compare(session, held_out, first, done.base, done.trained)
    written = export(_at(done.session, session.run_dir), done.base, done.trained)
    chart = histogram("Self-reward R", "nats; below 0 the label is turned round", {"candidates": done.rewards})
    report = write_report(
        _at(done.session, session.run_dir),
        tables,
        samples,
        {"train": done.columns},
        rewards=chart,
        metrics=done.session.run_dir / "metrics.jsonl",
    )
    _say_paths([*written, report])


def _finished(session: Session, first: Base) -> tuple[Base, Params]:
    """What the last round of a run that is there started from, and its policy. Nothing is sampled, scored or trained.

    Raises: ConfigError when a round has not come so far; CheckpointError when it was another configuration's.
    """
    base = first
    for number in range(1, session.config.dlma.rounds + 1):
        at = _at(session, session.run_dir / f"round-{number}")
        policy = _policy(session.config, base, first, Role("base"), {})
        trained = policy.load(at, base, derived=(*DERIVED[1:], "data"))
        if number < session.config.dlma.rounds:
            base = Base(functools.partial(models.fold_in, at, base, trained), models.freeze_of(at))
    return base, trained


def _compare(
    session: Session, held_out: tuple[Prompt, ...], first: Base, base: Base, trained: Params
) -> tuple[tuple[Comparison, ...], Samples]:
    """Tables and answers of the first model and the last."""
    before: Variables = {"params": first.frozen()}
    frozen: Frozen = {"params": {"base": base.frozen()}, "lora": {}}
    return compare_answers(session, held_out, before, bind(policy_role(lora=session.lora), trained, frozen))


def _prompts(config: Experiment) -> tuple[tuple[Prompt, ...], tuple[Prompt, ...]]:
    """Prompts to train on, and held-out ones."""
    prompts, _ = open_prompts(config.sampling.prompts, config.sampling.limit)
    if config.dlma.eval_prompts:
        return prompts, open_prompts(config.dlma.eval_prompts, 0)[0]
    if not config.dlma.eval_fraction:
        raise DataError("DLMA is evaluated on held-out prompts; set dlma.eval_prompts or dlma.eval_fraction")
    train, held_out = split_prompts(prompts, config.dlma.eval_fraction, config.data.seed, config.sampling.prompts)
    return train, held_out


def _at(session: Session, place: Path) -> Session:
    return dataclasses.replace(session, run_dir=place)


def _next_base(done: Round) -> Base:
    """The policy of a round as the whole model that the next one starts from."""
    fold = functools.partial(models.fold_in, done.session, done.base, done.trained)
    return Base(fold, models.freeze_of(done.session))


def _round(
    session: Session, number: int, prompts: tuple[Prompt, ...], base: Base, first: Base, *, score_only: bool = False
) -> Round:
    place = session.run_dir / f"round-{number}"
    with session.metrics.within(place, place.name) as metrics:
        session = dataclasses.replace(session, run_dir=place, metrics=metrics)
        return _stages(session, number, prompts, base, first, score_only)


def _stages(
    session: Session, number: int, prompts: tuple[Prompt, ...], base: Base, first: Base, score_only: bool
) -> Round:
    config = session.config
    asked, unusable = prompts_in_views(session, prompts, ("plus", "minus"), config.sampling.samples)
    for invalid_record in unusable:
        log.warning("no prompt: %s", invalid_record)
    generator = Generator(session.model, lambda: {"params": base.frozen()}, {"params": base.identity})
    responses = answers(session, generator, asked, session.run_dir / RESPONSES, f"round {number}: answers")
    _say(f"round {number}\nanswers  {summary(list(responses.values()))}")
    found = self_reward.candidates(prompts, responses, config.sampling.samples, unfinished=config.dlma.unfinished)
    session = with_pairs(session, found)
    if not session.train.groups:
        raise DataError(f"round {number}: {self_reward.nothing_left(session.train.invalid)}")
    frozen: Frozen = {"params": {"base": base.frozen()}, "lora": {}}
    columns = contrast_columns(session, frozen)
    mask = session.train.mask(session.elements)
    scores = contrast_scores(columns["plus_logps"], columns["minus_logps"], mask, average=config.dlma.score == "mean")
    rewards = scores[:, 0] - scores[:, 1]
    selection = self_reward.select(scores, mask.sum(-1).astype(np.int64), config.dlma)
    told = self_reward.selection_counts(session.train.invalid, selection, scores)
    told["unfinished_kept"] = self_reward.unfinished(session.train.groups, selection, responses)
    _say(self_reward.summary_text(told))
    if jax.process_index() == 0:
        (session.run_dir / "selection.json").write_text(json.dumps(told, indent=2) + "\n", encoding="utf-8")
    if not len(selection.indices):
        left_out = self_reward.taken(session.train, selection).invalid
        raise DataError(f"round {number}: {self_reward.nothing_left(left_out)}")
    session = dataclasses.replace(session, train=self_reward.taken(session.train, selection))
    columns = self_reward.turned_columns(columns, selection)
    derive(session, session.train, columns)
    turned = np.where(selection.flipped, -1.0, 1.0)
    columns["self_reward"] = (rewards[selection.indices] * turned).astype(np.float32)
    _write_pairs(session, found, selection, columns["self_reward"])
    if score_only:
        _say(f"pairs    {session.run_dir / 'pairs.jsonl'}")
        return Round(session, base, {}, columns, rewards)
    reference = Role("base")
    if number > 1 and config.dlma.reference == "first":
        reference, frozen["params"]["first"] = Role("first"), first.frozen()
    policy = _policy(config, base, first, reference, columns)
    if "reference_logps" in policy.taken:
        columns["reference_logps"] = cached_scores(session, Read("reference"), reference, frozen, "train")
    trained = Run(session)(policy)
    return Round(session, base, trained, columns, rewards)


def _policy(config: Experiment, base: Base, first: Base, reference: Role, columns: Columns) -> Training:
    """The training of a round's policy."""
    start = Given("base", base)
    models = (("params", "base", start), ("params", "first", Given("first", first)))
    given = (("train", Given("columns", columns)),)
    return policy_training(config, start, models, given, reference=reference)


def with_pairs(session: Session, found: PairSet) -> Session:
    """The session with these pairs as its training data, as tokens; what cannot be used is among their invalid."""
    data, contrast = session.config.data, session.config.contrast
    encoded = encode_pairs(
        found,
        session.tokenizer,
        template=open_template(data.template, session.tokenizer),
        system=data.system,
        max_length=data.max_length,
        max_response=data.max_response,
        contrast=(contrast.positive_prompt, contrast.negative_prompt),
    )
    usable: EncodedSet = apply_policy(encoded, "skip", 1.0)
    return dataclasses.replace(session, train=usable, eval=None, elements=usable.elements())


def contrast_columns(session: Session, frozen: Frozen) -> Columns:
    """`plus_logps` and `minus_logps` of the session's pairs: the caches that TIS-DPO (P) makes, made the same way."""
    roles = contrast_roles("prompts", lora=session.lora)
    assert roles is not None
    return {
        read.column: cached_scores(session, read, role, frozen, "train")
        for read, role in zip(CONTRAST, roles, strict=True)
    }


def _write_pairs(session: Session, found: PairSet, selection: self_reward.Selection, margins: np.ndarray) -> None:
    """pairs.jsonl: what the round trains on, as pairs that any other recipe reads."""
    if jax.process_index() != 0:
        return
    by_id = {pair.id: pair for pair in found.pairs}
    lines = []
    for encoded, flip, margin in zip(session.train.groups, selection.flipped, margins, strict=True):
        pair = by_id[encoded.id]
        record: dict[str, Any] = {
            "id": pair.id,
            **as_record(pair.messages),
            "chosen": pair.rejected if flip else pair.chosen,
            "rejected": pair.chosen if flip else pair.rejected,
            "margin": float(margin),
        }
        lines.append(json.dumps(record) + "\n")
    temporary = session.run_dir / "pairs.tmp"
    temporary.write_text("".join(lines), encoding="utf-8")
    os.replace(temporary, session.run_dir / "pairs.jsonl")


def _say_paths(paths: list[Path]) -> None:
    for path in paths:
        _say(f"{path.name:<8} {path}")


def _say(text: str) -> None:
    if jax.process_index() == 0:
        print(text, flush=True)
