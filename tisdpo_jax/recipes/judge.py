"""Models answer the same prompts, and a judge says of each two who answers better. What is on disk is not asked again.

prompts -> answers of every model (answers.jsonl) -> scores or verdicts (judgements.jsonl) -> win rates, ratings
"""

from __future__ import annotations

import dataclasses
import itertools
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tisdpo_jax import judging, metrics
from tisdpo_jax.config import is_address
from tisdpo_jax.data import InvalidRecord, Message, Prompt, read_prompts
from tisdpo_jax.errors import ConfigError, DataError
from tisdpo_jax.judging import Store
from tisdpo_jax.metrics import Interval, Outcomes, Rating, WinRate, mean_interval
from tisdpo_jax.recipes.judges import endpoint_verdicts, open_scorer
from tisdpo_jax.reporting import Grid
from tisdpo_jax.stages import Session, Subject, answers_of, from_file, open_subject, text_of

log = logging.getLogger(__name__)

ANSWERS = "answers"
JUDGEMENTS = "judgements.jsonl"


@dataclasses.dataclass(frozen=True)
class ModelScore:
    """Mean score of one model's answers, of judges that give scores."""

    name: str
    score: Interval


@dataclasses.dataclass(frozen=True)
class Judged:
    """What a judge found."""

    judge: str
    prompts: int
    source: str
    invalid: tuple[InvalidRecord, ...]  # records of the file of prompts that hold none
    unanswered: dict[str, int]  # prompts to which a model or file has no answer, by model; nobody's win
    undecided: dict[str, int]  # questions to an endpoint without a verdict, each order for itself, by kind
    scores: tuple[ModelScore, ...]
    pairs: tuple[WinRate, ...]
    ratings: tuple[Rating, ...]  # of three models or more


def judge(session: Session, directory: Path, policy: Subject, reference: Subject) -> Judged:
    """Policy, reference and `evaluation.judge.models`, each against each."""
    section = session.config.evaluation.judge
    others = section.models or {}
    names = [policy.name, reference.name, *others]
    if len(set(names)) < len(names):
        raise ConfigError(f"evaluation.judge.models: the names {', '.join(names)} are not all different")
    if section.anchor and section.anchor not in names:
        raise ConfigError(f"evaluation.judge.anchor {section.anchor!r} is none of the models {', '.join(names)}")
    scorer = None if is_endpoint(section.by) else open_scorer(session)  # found out before anything is generated
    prompts, invalid, source = judged_prompts(session)
    texts: dict[str, list[str | None]] = {}
    for name in names:
        if name in others and others[name].endswith(".jsonl"):
            texts[name] = from_file(others[name], prompts)
            continue
        known = {policy.name: policy, reference.name: reference}
        subject = known[name] if name in known else open_subject(session, name, others[name], base=reference)
        responses = answers_of(session, subject, prompts, directory / ANSWERS, temperature=section.temperature)
        texts[name] = [text_of(response) for response in responses]
        del subject
    kept = Store(directory / JUDGEMENTS)
    scores: dict[str, np.ndarray] = {}
    outcomes: dict[tuple[str, str], Outcomes] = {}
    undecided: dict[str, int] = {}
    pairs = list(itertools.combinations(names, 2))
    if scorer is not None:
        for name in names:
            scores[name] = np.asarray(scorer(kept, name, prompts, texts[name]))
        for one, other in pairs:
            outcomes[one, other] = judging.outcomes_of_scores(scores[one], scores[other], tie_band=section.tie_band)
    else:
        outcomes, undecided = endpoint_verdicts(session, kept, pairs, prompts, texts)
    judged = _summary(session, names, scores, outcomes, len(prompts), source, invalid, texts)
    return dataclasses.replace(judged, undecided=undecided)


def _summary(
    session: Session,
    names: Sequence[str],
    scores: dict[str, np.ndarray],
    outcomes: dict[tuple[str, str], Outcomes],
    prompts: int,
    source: str,
    invalid: tuple[InvalidRecord, ...],
    texts: dict[str, list[str | None]],
) -> Judged:
    section = session.config.evaluation
    options: dict[str, Any] = {"resamples": section.resamples, "seed": section.seed}
    found = tuple(metrics.win_rate(*pair, outcome, **options) for pair, outcome in outcomes.items())
    rated: tuple[Rating, ...] = ()
    if len(names) > 2:
        rated = metrics.ratings(names, outcomes, anchor=section.judge.anchor or "", **options)
    return Judged(
        judge=section.judge.by,
        prompts=prompts,
        source=source,
        invalid=invalid,
        unanswered={name: sum(text is None for text in texts[name]) for name in names},
        undecided={},
        scores=tuple(
            ModelScore(name, mean_interval(values, np.arange(prompts), kept=np.isfinite(values), **options))
            for name, values in scores.items()
        ),
        pairs=found,
        ratings=rated,
    )


def is_endpoint(name: str) -> bool:
    return is_address(name)


def judged_prompts(session: Session) -> tuple[list[Prompt], tuple[InvalidRecord, ...], str]:
    """Prompts to answer, those of the file or of the held-out pairs, each once; bad records; the source."""
    section = session.config.evaluation.judge
    if section.prompts:
        prompts, invalid = read_prompts(section.prompts)
        if not prompts:
            raise DataError(f"{section.prompts}: holds no prompt that can be used: {invalid[0]}")
        return list(prompts[: section.limit]), invalid, section.prompts
    encoded = session.split("eval")
    once: dict[tuple[Message, ...], Prompt] = {}
    for pair in encoded.groups:
        once.setdefault(pair.messages, Prompt(pair.id, pair.messages, pair.origin))
    return list(once.values())[: section.limit], (), encoded.source


def grids(judged: Judged) -> tuple[Grid, ...]:
    """Tables for people."""
    title = f"Judged by {judged.judge}: {judged.prompts:,} prompts of {judged.source}"
    rows = tuple(
        (f"{one.first} over {one.second}", one.rate, one.wins, one.ties, one.losses, one.inconsistent, one.undecided)
        for one in judged.pairs
    )
    columns = ("models", "win rate [95 %]", "wins", "ties", "losses", "of the ties, inconsistent", "no verdict")
    found = [Grid(f"{title} (a tie counts one half)", columns, rows)]
    if judged.scores:
        found.append(
            Grid("Mean score", ("model", "score [95 %]"), tuple((one.name, one.score) for one in judged.scores))
        )
    if judged.ratings:
        rated = tuple((one.name, one.elo) for one in judged.ratings)
        found.append(Grid("Bradley-Terry rating, in Elo points", ("model", "rating [95 %]"), rated))
    missing = {name: count for name, count in judged.unanswered.items() if count}
    if missing:
        found.append(Grid("Prompts without an answer", ("model", "prompts"), tuple(missing.items())))
    unclear = {kind: count for kind, count in judged.undecided.items() if count}
    if unclear:
        title = "Questions without a verdict, each order for itself"
        found.append(Grid(title, ("why", "questions"), tuple(unclear.items())))
    return tuple(found)
