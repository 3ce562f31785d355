"""Answers of several models to the same prompts, side by side, and how many of them pass a check."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from tisdpo_jax.evaluation._html import data, escape
from tisdpo_jax.evaluation.grids import Cell, Grid

UNFOLDED = 6
"""Prompts whose answers a page shows at once; the others are folded."""


_CAVEAT = "✓ and ✗ say whether words that were looked for are there, not whether the answer is true."


@dataclasses.dataclass(frozen=True)
class Answer:
    """What one model says to a prompt."""

    model: str  # as the head of its column
    text: str
    unfinished: bool = False  # cut off by the limit on new tokens
    note: str = ""  # what a check says of it
    good: bool | None = None  # None: the note is neither


@dataclasses.dataclass(frozen=True)
class Sample:
    """A prompt, and the answers of all models in one order."""

    prompt: str
    answers: tuple[Answer, ...]


@dataclasses.dataclass(frozen=True)
class Score:
    """Of how many prompts of a group each model's answer does what `name` says."""

    group: str
    name: str
    models: tuple[str, ...]
    passed: tuple[int, ...]
    of: int
    wanted: bool | None  # None: more is neither better nor worse


def headlines(scores: Sequence[Score]) -> tuple[str, ...]:
    """A line for each score that is wanted: 'Harmful requests: speaks against it, 2 → 20 of 24'."""
    return tuple(
        f"{_title(score)}, {' → '.join(map(str, score.passed))} of {score.of}"
        for score in scores
        if score.wanted is not None
    )


def score_grid(scores: Sequence[Score]) -> Grid:
    """The scores as a table, a row each. Raises: ValueError where they are not of the same models."""
    if len({score.models for score in scores}) != 1:
        raise ValueError("a table of scores needs one or more of them, all of the same models")
    rows: list[tuple[Cell, ...]] = [
        (f"{score.group}: {score.name}", score.of, *(f"{n} ({n / score.of:.0%})" for n in score.passed))
        for score in scores
    ]
    return Grid("Answers by their words", ("answer", "prompts", *scores[0].models), tuple(rows))


def scores_html(scores: Sequence[Score]) -> str:
    """Scores that are wanted as bars: a block for each score, in it a bar for each model."""
    parts = [
        f'<div class="score"><p><bdi>{escape(_title(score))}</bdi></p>{_bars(score)}</div>'
        for score in scores
        if score.wanted is not None
    ]
    return f'<div class="scores">{"".join(parts)}</div>' if parts else ""


def _title(score: Score) -> str:
    return f"{score.group[:1].upper()}{score.group[1:]}: {score.name}"


def _bars(score: Score) -> str:
    bars = []
    for model, count in zip(score.models, score.passed, strict=True):
        css = "last" if model == score.models[-1] else "fill"
        bars.append(
            f'<div class="bar"><bdi>{escape(model)}</bdi><svg viewBox="0 0 100 8" preserveAspectRatio="none" '
            f'width="100%" height="12" role="img" aria-label="{count} of {score.of}">'
            f'<path class="track" d="M0 4H100" stroke-width="8"/>'
            f'<path class="{css}" d="M0 4H{100 * count / score.of:.1f}" stroke-width="8"/></svg>'
            f"<b>{data(count)} of {score.of}</b></div>"
        )
    return "".join(bars)


def samples_html(samples: Sequence[Sample]) -> str:
    """A row for each prompt, a column for each model; what is beyond the first few is folded."""
    first, rest = samples[:UNFOLDED], samples[UNFOLDED:]
    text = _table(first) if first else ""
    if any(answer.good is not None for sample in samples for answer in sample.answers):
        text += f'<p class="quiet note">{_CAVEAT}</p>'
    if rest:
        text += f"\n<details><summary>{len(rest)} more prompts</summary>{_table(rest)}</details>"
    return text


def _table(samples: Sequence[Sample]) -> str:
    head = "".join(f'<th scope="col">{escape(answer.model)}</th>' for answer in samples[0].answers)
    rows = "\n".join(
        f'<tr><th scope="row">{_text(sample.prompt)}</th>'
        + "".join(f"<td>{_answer(answer)}</td>" for answer in sample.answers)
        + "</tr>"
        for sample in samples
    )
    caption = "Answers side by side"
    return (
        f'<div class="scroll" role="region" tabindex="0" aria-label="{caption}"><table class="answers">'
        f'<caption>{caption}</caption>\n<thead><tr><th scope="col">prompt</th>{head}</tr></thead>\n'
        f"<tbody>\n{rows}\n</tbody></table></div>"
    )


def _answer(answer: Answer) -> str:
    css = {True: "better", False: "worse", None: "quiet"}[answer.good]
    mark = {True: "✓ ", False: "✗ ", None: ""}[answer.good]
    note = f'<div class="note {css}">{mark}<bdi>{escape(answer.note)}</bdi></div>' if answer.note else ""
    return _text(answer.text, cut=answer.unfinished) + note


def _text(text: str, *, cut: bool = False) -> str:
    end = ' <span class="quiet">… (cut off)</span>' if cut else ""
    return f'<div class="text" dir="auto">{escape(text) or "<em>empty</em>"}{end}</div>'
