"""Models answer the same prompts, and a judge says of each two who answers better. What is on disk is not asked again.

prompts -> answers of every model (answers.jsonl) -> scores or verdicts (judgements.jsonl) -> win rates, ratings
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from pathlib import Path
from typing import Any

import numpy as np

from tisdpo_jax import generation, judging, metrics
from tisdpo_jax.config import is_address
from tisdpo_jax.data import InvalidRecord, Prompt, read_prompts
from tisdpo_jax.errors import ConfigError, DataError
from tisdpo_jax.generation import Lines
from tisdpo_jax.metrics import Interval, Rating, WinRate, mean_interval
from tisdpo_jax.reporting import Grid
from tisdpo_jax.stages import Session, Splits, Subject, answers_of, open_subject
from tisdpo_jax.verbs.judges import JUDGEMENTS, open_scorer

ANSWERS = "answers"
KEYS = ("TISDPO_JUDGE_API_KEY", "OPENAI_API_KEY")  # environment variables, the first that is set


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


def judge(session: Session, data: Splits, directory: Path, policy: Subject, reference: Subject) -> Judged:
    """Policy, reference and `evaluation.judge.models`, each against each."""
    evaluation, section = session.config.evaluation, session.config.evaluation.judge
    others = section.models or {}
    names = [policy.name, reference.name, *others]
    if len(set(names)) < len(names):
        raise ConfigError(f"evaluation.judge.models: the names {', '.join(names)} are not all different")
    if section.anchor and section.anchor not in names:
        raise ConfigError(f"evaluation.judge.anchor {section.anchor!r} is none of the models {', '.join(names)}")
    scorer = None if is_address(section.by) else open_scorer(session)  # found out before anything is generated
    prompts, invalid, source = judged_prompts(session, data)
    texts: dict[str, list[str | None]] = {}
    for name in names:
        if name in others and others[name].endswith(".jsonl"):
            texts[name] = generation.read_answers(others[name], prompts)
            continue
        known = {policy.name: policy, reference.name: reference}
        subject = known.get(name)
        if subject is None:
            subject = open_subject(session, name, others[name], base=reference, pairs=data.eval)
        responses = answers_of(session, subject, prompts, directory / ANSWERS, temperature=section.temperature)
        texts[name] = [None if response is None else response.text for response in responses]
        del subject
    kept, pairs = Lines(directory / JUDGEMENTS, "key"), list(itertools.combinations(names, 2))
    scores: dict[str, np.ndarray] = {}
    undecided: dict[str, int] = {}
    if scorer is None:
        poll, shown = functools.partial(session.interrupt.poll, "judging"), session.config.logging.progress
        fields = "evaluation.judge.by, evaluation.judge.endpoint_model"
        endpoint = generation.open_endpoint(section.by, section, KEYS, fields)
        asked = (endpoint, section.criterion, kept, pairs, prompts, texts)
        outcomes, undecided = judging.ask_judge(*asked, poll=poll, shown=shown)
    else:
        poll = functools.partial(session.interrupt.poll, "scoring answers")
        scores = {name: np.asarray(scorer(kept, name, prompts, texts[name], poll)) for name in names}
        outcomes = {
            (one, other): judging.outcomes_of_scores(scores[one], scores[other], tie_band=section.tie_band)
            for one, other in pairs
        }
    options: dict[str, Any] = {"resamples": evaluation.resamples, "seed": evaluation.seed}
    places = np.arange(len(prompts))
    return Judged(
        judge=section.by,
        prompts=len(prompts),
        source=source,
        invalid=invalid,
        unanswered={name: sum(text is None for text in texts[name]) for name in names},
        undecided=undecided,
        scores=tuple(
            ModelScore(name, mean_interval(values, places, kept=np.isfinite(values), **options))
            for name, values in scores.items()
        ),
        pairs=tuple(metrics.win_rate(*pair, outcome, **options) for pair, outcome in outcomes.items()),
        ratings=metrics.ratings(names, outcomes, anchor=section.anchor or "", **options) if len(names) > 2 else (),
    )


def judged_prompts(session: Session, data: Splits) -> tuple[list[Prompt], tuple[InvalidRecord, ...], str]:
    """Prompts to answer, those of the file or of the held-out pairs, each once; bad records; the source."""
    section = session.config.evaluation.judge
    if section.prompts:
        prompts, invalid = read_prompts(section.prompts)
        if not prompts:
            raise DataError(f"{section.prompts}: holds no prompt that can be used: {invalid[0]}")
        return list(prompts[: section.limit]), invalid, section.prompts
    encoded = data.split("eval")
    return generation.prompts_of(encoded.groups, section.limit or 0), (), encoded.source


def grids(judged: Judged) -> tuple[Grid, ...]:
    """Tables for people; those without rows are left out."""
    title = f"Judged by {judged.judge}: {judged.prompts:,} prompts of {judged.source}"
    columns = ("models", "win rate [95 %]", "wins", "ties", "losses", "of the ties, inconsistent", "no verdict")
    rates = [
        (f"{one.first} over {one.second}", one.rate, one.wins, one.ties, one.losses, one.inconsistent, one.undecided)
        for one in judged.pairs
    ]
    rated = [(one.name, one.elo) for one in judged.ratings]
    missing = [(name, count) for name, count in judged.unanswered.items() if count]
    unclear = [(kind, count) for kind, count in judged.undecided.items() if count]
    tables: list[tuple[str, tuple[str, ...], list[Any]]] = [
        (f"{title} (a tie counts one half)", columns, rates),
        ("Mean score", ("model", "score [95 %]"), [(one.name, one.score) for one in judged.scores]),
        ("Bradley-Terry rating, in Elo points", ("model", "rating [95 %]"), rated),
        ("Prompts without an answer", ("model", "prompts"), missing),
        ("Questions without a verdict, each order for itself", ("why", "questions"), unclear),
    ]
    return tuple(Grid(title, columns, tuple(rows)) for title, columns, rows in tables if rows)
