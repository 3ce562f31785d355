"""The report of a run: one HTML file that a browser shows without network, script or any other file."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tisdpo_jax.artifacts import write_text
from tisdpo_jax.reporting.charts import Distribution, histogram
from tisdpo_jax.reporting.heatmap import TokenPicture, legend_html, pair_html, style_sheet
from tisdpo_jax.reporting.history import stage_charts
from tisdpo_jax.reporting.html import render_template
from tisdpo_jax.reporting.tables import Cell, Comparison, Grid, Shown, grid_html

if TYPE_CHECKING:  # a page needs nothing that reads data
    from tisdpo_jax.data import InvalidRecord

UNFOLDED = 6
"""Prompts whose answers a page shows at once; the others are folded."""


@dataclasses.dataclass(frozen=True)
class DataCounts:
    """What became of one data file."""

    name: str  # "training", "held out"
    source: str
    records: int
    used: int
    invalid: Sequence[InvalidRecord] = ()


@dataclasses.dataclass(frozen=True)
class ShownAnswer:
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
    answers: tuple[ShownAnswer, ...]


@dataclasses.dataclass(frozen=True)
class Score:
    """Of how many prompts of a group each model's answer does what `name` says."""

    group: str
    name: str
    models: tuple[str, ...]
    passed: tuple[int, ...]
    of: int
    wanted: bool | None  # None: more is neither better nor worse

    @property
    def title(self) -> str:
        return f"{self.group[:1].upper()}{self.group[1:]}: {self.name}"


@dataclasses.dataclass(frozen=True, eq=False)
class Report:
    """Everything that the page shows. A section whose field is empty is left out."""

    title: str
    facts: tuple[tuple[str, str], ...] = ()
    headline: tuple[str, ...] = ()  # sentences on what came of the run
    comparisons: tuple[Comparison, ...] = ()
    measures: tuple[Grid, ...] = ()
    judging: tuple[Grid, ...] = ()
    samples: tuple[Sample, ...] = ()
    prompts: str = "held-out"  # which prompts these answer
    scores: tuple[Score, ...] = ()  # of the answers; those that are wanted stand at the top
    history: Sequence[Mapping[str, Any]] = ()  # rows of metrics.jsonl
    weighted_stages: tuple[str, ...] = ()  # stages whose objective is weighted token by token
    rewards: str = ""  # a chart of the self-reward of DLMA's pairs, as `histogram` draws it
    weights: tuple[Grid, ...] = ()
    distributions: tuple[Distribution, ...] = ()  # of the weights, and of what they were made of
    weighted: str = "training"  # which pairs these are the weights of
    tokens: tuple[Grid, ...] = ()  # tokens with the largest and smallest mean weights
    pictures: tuple[TokenPicture, ...] = ()
    data: tuple[DataCounts, ...] = ()
    config: str = ""
    files: tuple[tuple[str, str], ...] = ()  # path, what it is


def render_report(report: Report) -> str:
    """The page. Equal reports give equal text: no clock, no random names."""
    files = [(Shown(name, css="code"), what) for name, what in report.files]
    return render_template(
        "page.html",
        report=report,
        style=style_sheet(),
        table=grid_html,
        comparisons=[comparison.grid() for comparison in report.comparisons],
        unfolded=UNFOLDED,
        checked=any(answer.good is not None for sample in report.samples for answer in sample.answers),
        wanted=[score for score in report.scores if score.wanted is not None],
        scores=[score_grid(report.scores)] if report.scores else [],
        legend=legend_html(),
        pairs=[pair_html(picture) for picture in report.pictures],
        distributions=[histogram(*one) for one in report.distributions],
        stages=stage_charts(report.history, weighted=report.weighted_stages),
        data=list(_records(report.data)),
        files=[Grid("What the run wrote", ("file", "what it is"), files, "words")] if files else [],
    )


def write(path: str | Path, report: Report) -> None:
    """Render to `path`, whole or not at all: a reader never sees half a page."""
    write_text(Path(path), render_report(report))


def headlines(scores: Sequence[Score]) -> tuple[str, ...]:
    """A line for each score that is wanted: 'Harmful requests: speaks against it, 2 → 20 of 24'."""
    wanted = [score for score in scores if score.wanted is not None]
    return tuple(f"{score.title}, {' → '.join(map(str, score.passed))} of {score.of}" for score in wanted)


def score_grid(scores: Sequence[Score]) -> Grid:
    """The scores as a table, a row each. Raises: ValueError where they are not of the same models."""
    if len({score.models for score in scores}) != 1:
        raise ValueError("a table of scores needs one or more of them, all of the same models")
    rows: list[tuple[Cell, ...]] = [
        (f"{score.group}: {score.name}", score.of, *(f"{n} ({n / score.of:.0%})" for n in score.passed))
        for score in scores
    ]
    return Grid("Answers by their words", ("answer", "prompts", *scores[0].models), rows)


def _records(data: Sequence[DataCounts]) -> Iterator[tuple[str, Grid]]:
    """What became of each file, then the invalid records of each under a line that sums them up."""
    rows = [(one.name, Shown(one.source, css="code"), one.records, one.used, len(one.invalid)) for one in data]
    if rows:
        yield "", Grid("Records of each file", ("pairs", "file", "records", "used", "invalid"), rows)
    for one in data:
        reasons = collections.Counter(record.reason for record in one.invalid).most_common()
        why = ", ".join(f"{count:,} {reason}" for reason, count in reasons)
        cells = [(record.origin, record.reason, record.detail) for record in one.invalid]
        if cells:
            grid = Grid(f"Invalid records, {one.name}", ("record", "reason", "detail"), cells, "words")
            yield f"Invalid, {one.name}: {why}", grid
