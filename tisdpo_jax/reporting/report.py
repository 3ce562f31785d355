"""The report of a run: one HTML file that a browser shows without network, script or any other file."""

from __future__ import annotations

import collections
import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from markupsafe import Markup
from numpy.typing import ArrayLike

from tisdpo_jax.artifacts import replacing
from tisdpo_jax.metrics import WEIGHT_QUANTILES, SideWeights
from tisdpo_jax.reporting.charts import histogram
from tisdpo_jax.reporting.heatmap import LIMIT, TokenPicture, legend_html, pair_html, style_sheet
from tisdpo_jax.reporting.history import charts
from tisdpo_jax.reporting.html import macro, readable, render_template
from tisdpo_jax.reporting.tables import Cell, Comparison, Grid, Shown, comparison_html, grid_html

UNFOLDED = 6
"""Prompts whose answers a page shows at once; the others are folded."""

_UNFOLDED_RECORDS = 20  # invalid records up to which their list is open


class Invalid(Protocol):
    """A record that was not used, as `data.InvalidRecord` says it."""

    @property
    def origin(self) -> str: ...  # "file:line"

    @property
    def reason(self) -> str: ...

    @property
    def detail(self) -> str: ...


@dataclasses.dataclass(frozen=True)
class DataCounts:
    """What became of one data file."""

    name: str  # "training", "held out"
    source: str
    records: int
    used: int
    invalid: Sequence[Invalid] = ()


@dataclasses.dataclass(frozen=True, eq=False)
class WeightSection:
    """Token weights over a set of pairs: statistics of each side, the logarithms behind the histogram, and the
    log-ratios of pi+ and pi- that they were made of; None where weights came without a contrast."""

    chosen: SideWeights
    rejected: SideWeights
    chosen_log_weights: ArrayLike
    rejected_log_weights: ArrayLike
    chosen_log_ratios: ArrayLike | None = None
    rejected_log_ratios: ArrayLike | None = None


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

    @property
    def counts(self) -> list[tuple[str, int]]:
        return list(zip(self.models, self.passed, strict=True))


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
    weights: WeightSection | None = None
    weighted: str = "training"  # which pairs these are the weights of
    tokens: tuple[Grid, ...] = ()  # tokens with the largest and smallest mean weights
    pictures: tuple[TokenPicture, ...] = ()
    picture_limit: float = LIMIT
    data: tuple[DataCounts, ...] = ()
    config: str = ""
    files: tuple[tuple[str, str], ...] = ()  # path, what it is


def render_report(report: Report) -> str:
    """The page. Equal reports give equal text: no clock, no random names."""
    facts = macro("facts", report.facts)
    wanted = [score for score in report.scores if score.wanted is not None]
    # what came of the run where something is known of it, else what was run
    lead = macro("lead", wanted, report.headline) if wanted or report.headline else facts
    sections = (
        ("samples", f"Answers to {report.prompts} prompts", _samples(report.samples)),
        ("scores", "Answers by their words", grid_html(score_grid(report.scores)) if report.scores else ""),
        ("result", "Result", "\n".join(map(comparison_html, report.comparisons))),
        ("measures", "Measures on pairs", "\n".join(map(grid_html, report.measures))),
        ("judging", "Answers compared", "\n".join(map(grid_html, report.judging))),
        ("rewards", "Self-reward of the pairs", macro("charts", [Markup(report.rewards)]) if report.rewards else ""),
        ("heat-maps", "Token weights of some pairs", _pictures(report.pictures, report.picture_limit)),
        ("weights", f"Token weights of all {report.weighted} pairs", _weights(report.weights)),
        ("tokens", "Tokens that weigh most and least", "\n".join(map(grid_html, report.tokens))),
        ("training", "Training", charts(report.history, weighted=report.weighted_stages)),
        ("run", "Run", "" if lead is facts else facts),
        ("data", "Data", _data(report.data)),
        ("files", "Files", _files(report.files)),
        ("config", "Configuration", macro("source", report.config) if report.config else ""),
    )
    filled = [(anchor, heading, Markup(html)) for anchor, heading, html in sections if html]
    style = Markup(style_sheet())
    return render_template("page.html", title=report.title, lead=lead, sections=filled, style=style)


def write(path: str | Path, report: Report) -> None:
    """Render to `path`, whole or not at all: a reader never sees half a page."""
    text = render_report(report)
    with replacing(Path(path)) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")


def headlines(scores: Sequence[Score]) -> tuple[str, ...]:
    """A line for each score that is wanted: 'Harmful requests: speaks against it, 2 → 20 of 24'."""
    return tuple(
        f"{score.title}, {' → '.join(map(str, score.passed))} of {score.of}"
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


def _samples(samples: Sequence[Sample]) -> str:
    checked = any(answer.good is not None for sample in samples for answer in sample.answers)
    return macro("samples", samples[:UNFOLDED], samples[UNFOLDED:], checked)


def _pictures(pictures: Sequence[TokenPicture], limit: float) -> str:
    pairs = [pair_html(picture, limit=limit, alone=False) for picture in pictures]
    return "\n".join([legend_html(limit=limit), *pairs] if pairs else [])


def _weights(section: WeightSection | None) -> str:
    if section is None:
        return ""
    names = [f"{share:.0%}" for share in WEIGHT_QUANTILES]
    names[0], names[len(names) // 2], names[-1] = "smallest", "median", "largest"
    rows: list[tuple[Cell, ...]] = []
    for name, side in (("chosen", section.chosen), ("rejected", section.rejected)):
        shares = (_percent(share) for share in (side.share_at_lowest, side.share_at_highest))
        rows.append((name, side.count, side.mean, side.std, *side.quantiles, *shares))
    columns = ("side", "tokens", "mean", "std", *names, "at smallest allowed", "at largest allowed")
    log_weights = {"chosen": section.chosen_log_weights, "rejected": section.rejected_log_weights}
    drawn = [Markup(histogram("Distribution", "natural logarithm of the weight", log_weights))]
    if section.chosen_log_ratios is not None and section.rejected_log_ratios is not None:
        ratios = {"chosen": section.chosen_log_ratios, "rejected": section.rejected_log_ratios}
        drawn.append(Markup(histogram("Before clamping", "log π⁺/π⁻ of a token", ratios)))
    return "\n".join([grid_html(Grid("Token weights by side", columns, tuple(rows))), macro("charts", drawn)])


def _percent(share: float) -> Shown:
    return Shown(readable(share) if math.isnan(share) else f"{share:.1%}", repr(share))


def _data(counts: Sequence[DataCounts]) -> str:
    if not counts:
        return ""
    rows = tuple((c.name, Shown(c.source, css="code"), c.records, c.used, len(c.invalid)) for c in counts)
    parts = [grid_html(Grid("Records of each file", ("pairs", "file", "records", "used", "invalid"), rows))]
    for c in counts:
        if c.invalid:
            cells = tuple((r.origin, r.reason, r.detail) for r in c.invalid)
            listed = grid_html(Grid(f"Invalid records, {c.name}", ("record", "reason", "detail"), cells), "words")
            reasons = collections.Counter(r.reason for r in c.invalid).most_common()
            why = ", ".join(f"{count:,} {reason}" for reason, count in reasons)
            parts.append(macro("fold", f"Invalid, {c.name}: {why}", Markup(listed), len(cells) <= _UNFOLDED_RECORDS))
    return "\n".join(parts)


def _files(files: Sequence[tuple[str, str]]) -> str:
    rows = tuple((Shown(name, css="code"), what) for name, what in files)
    grid = Grid("What the run wrote", ("file", "what it is"), rows)
    return grid_html(grid, "words") if files else ""
