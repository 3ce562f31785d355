"""Held-out prompts, answered before and after: the model's own contrast of the answers, and a judge's scores."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from tisdpo_jax.artifacts import write_text
from tisdpo_jax.config import replaced
from tisdpo_jax.data import EncodedSet, Prompt
from tisdpo_jax.generation import Lines, Response, summary
from tisdpo_jax.metrics import change_of
from tisdpo_jax.reporting import Comparison, as_plain, grid_text
from tisdpo_jax.scoring import contrast_scores
from tisdpo_jax.stages import Generator, Session, answers, models, passing, prompts_in_views, scorer
from tisdpo_jax.training import collect, one_pass
from tisdpo_jax.types import Variables
from tisdpo_jax.verbs.checks import open_checks
from tisdpo_jax.verbs.judges import JUDGEMENTS, open_scorer
from tisdpo_jax.verbs.samples import Samples, side_by_side


def compare_answers(
    session: Session, prompts: Sequence[Prompt], before: Variables, after: Variables
) -> tuple[tuple[Comparison, ...], Samples]:
    """Both models answer with the same noise, and the same is measured of both: tables, also in evaluation.json."""
    config = session.config
    asked, _ = prompts_in_views(session, prompts, ("main",), 1)
    by_id = {prompt.id: prompt for prompt in prompts}
    shown = [by_id[question.id.removesuffix("/main/0")] for question in asked]
    local = dataclasses.replace(session, config=replaced(config, "sampling.engine", "local"))
    found: dict[str, list[Response]] = {}
    for name, variables in (("before", before), ("after", after)):
        identity = {part: models.identify(tree) for part, tree in variables.items()}
        generator = Generator(session.model, functools.partial(dict, variables), identity)
        path = session.run_dir / f"held_out-{name}.jsonl"
        responses = answers(local, generator, asked, path, f"held-out answers {name}")
        found[name] = [responses[question.id] for question in asked]
        session.say(f"{name:<8} {summary(found[name])}")
    texts = {name: [response.response for response in responses] for name, responses in found.items()}
    tables = _tables(session, shown, texts, before, after)
    for table in tables:
        session.say(grid_text(table.grid()) + "\n")
    _save(session, tables)
    rows = [(prompt, [found[name][number] for name in found]) for number, prompt in enumerate(shown)]
    samples = side_by_side(tuple(found), rows[: config.evaluation.generate], open_checks(config.evaluation.checks))
    for line in samples.lines():
        session.say(line)
    return tables, samples


def _tables(
    session: Session, prompts: Sequence[Prompt], texts: dict[str, list[str]], before: Variables, after: Variables
) -> tuple[Comparison, ...]:
    first = answer_contrasts(session, prompts, texts["before"], before)
    last = answer_contrasts(session, prompts, texts["after"], before)
    own = answer_contrasts(session, prompts, texts["after"], after)
    both = np.isfinite(first[0]) & np.isfinite(last[0])
    rows = [
        change_of(name, one[both], other[both], higher_is_better=better)
        for name, one, other, better in (
            ("contrast by the model before, nats", first[0], last[0], True),
            ("contrast by the model before, nats a token", first[1], last[1], True),
            ("contrast by the model itself, nats", first[0], own[0], True),
            ("tokens of an answer", first[2], last[2], None),
        )
    ]
    tables = [Comparison("Answers to held-out prompts, contrast of the two prompts", int(both.sum()), tuple(rows))]
    by = session.config.evaluation.judge.by
    if by:
        judge, kept = open_scorer(session), Lines(session.run_dir / JUDGEMENTS, "key")
        poll = functools.partial(session.interrupt.poll, "scoring answers")
        one, other = (
            np.asarray(judge(kept, name, prompts, [text or None for text in texts[name]], poll))
            for name in ("before", "after")
        )
        both = np.isfinite(one) & np.isfinite(other)
        row = change_of(f"score by {by}", one[both], other[both], higher_is_better=True)
        tables.append(Comparison(f"Answers to held-out prompts, judge {by}", int(both.sum()), (row,)))
    return tuple(tables)


def answer_contrasts(
    session: Session, prompts: Sequence[Prompt], texts: Sequence[str], variables: Variables
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """`[n]` contrasts of single answers in nats, in nats a token, and their tokens; nan where there is no answer."""
    answered = [number for number, text in enumerate(texts) if text]
    named = [dataclasses.replace(prompts[number], id=str(number)) for number in answered]
    encoded = session.encoder.groups(named, [(texts[number],) for number in answered], "answers")
    found = np.full((3, len(texts)), np.nan)
    if encoded.groups:
        places = [int(pair.id) for pair in encoded.groups]
        plus, minus = (_logps(session, encoded, variables, view) for view in ("plus", "minus"))
        mask = encoded.mask(encoded.elements())[:, 0]
        for row, average in enumerate((False, True)):
            found[row, places] = contrast_scores(plus, minus, mask, average=average)
        found[2, places] = mask.sum(-1)
    return found[0], found[1], found[2]


def _logps(session: Session, encoded: EncodedSet, variables: Variables, view: str) -> np.ndarray:
    """`[n, N]` log-likelihoods of the answers' tokens."""
    rows, batches = passing(session, encoded, encoded.elements(), view, sides=(0,))
    run = scorer(session.model, view, session.config.model.head_chunk)
    watched: Any = {"label": "scoring answers", "interrupt": session.interrupt, "shown": False}
    everything = one_pass(rows, batches, session.mesh, **watched)
    logps: np.ndarray = collect(lambda batch: run(variables, batch), everything, len(encoded))
    return logps[:, 0].astype(np.float64)


def _save(session: Session, tables: Sequence[Comparison]) -> None:
    content = [{"title": table.title, "prompts": table.pairs, "rows": as_plain(table.rows)} for table in tables]
    if jax.process_index() == 0:
        write_text(session.run_dir / "evaluation.json", json.dumps(content, indent=2) + "\n")
