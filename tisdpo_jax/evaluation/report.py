"""The report of a run: one HTML file that a browser shows without network, script or any other file."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import math
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from numpy.typing import ArrayLike

from tisdpo_jax.evaluation import _page, heatmap
from tisdpo_jax.evaluation._html import data, escape, number, table
from tisdpo_jax.evaluation.answers import Sample, Score, samples_html, score_grid, scores_html
from tisdpo_jax.evaluation.curves import histogram
from tisdpo_jax.evaluation.grids import Grid, grid_html
from tisdpo_jax.evaluation.heatmap import TokenPicture
from tisdpo_jax.evaluation.history import charts
from tisdpo_jax.evaluation.metrics import QUANTILES, SideWeights
from tisdpo_jax.evaluation.tables import Comparison, comparison_html

_UNFOLDED = 20  # rejected records up to which their list is open


class Rejected(Protocol):
    """A record that was not used, as `data.Rejection` says it."""

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
    rejected: Sequence[Rejected] = ()


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
    picture_limit: float = heatmap.LIMIT
    data: tuple[DataCounts, ...] = ()
    config: str = ""
    files: tuple[tuple[str, str], ...] = ()  # path, what it is


def render(report: Report) -> str:
    """The page. Equal reports give equal text: no clock, no random names."""
    lead = _lead(report)
    sections = (
        ("samples", f"Answers to {report.prompts} prompts", samples_html(report.samples)),
        ("scores", "Answers by their words", grid_html(score_grid(report.scores)) if report.scores else ""),
        ("result", "Result", "\n".join(comparison_html(comparison) for comparison in report.comparisons)),
        ("measures", "Measures on pairs", "\n".join(map(grid_html, report.measures))),
        ("judging", "Answers compared", "\n".join(map(grid_html, report.judging))),
        (
            "rewards",
            "Self-reward of the pairs",
            f'<div class="charts">{report.rewards}</div>' if report.rewards else "",
        ),
        ("heat-maps", "Token weights of some pairs", _pictures(report)),
        (
            "weights",
            f"Token weights of all {report.weighted} pairs",
            _weights(report.weights) if report.weights else "",
        ),
        ("tokens", "Tokens that weigh most and least", "\n".join(map(grid_html, report.tokens))),
        ("training", "Training", charts(report.history, weighted=report.weighted_stages)),
        ("run", "Run", "" if lead == _facts(report.facts) else _facts(report.facts)),
        ("data", "Data", _data(report.data)),
        ("files", "Files", _pairs(report.files, "What the run wrote", ("file", "what it is")) if report.files else ""),
        ("config", "Configuration", f'<pre tabindex="0">{escape(report.config)}</pre>' if report.config else ""),
    )
    return _page.page(report.title, lead, [section for section in sections if section[2]])


def write(path: str | Path, report: Report) -> None:
    """Render to `path`, whole or not at all: a reader never sees half a page."""
    target = Path(path)
    text = render(report)
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8", newline="\n") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, 0o644)  # mkstemp makes it private
        os.replace(name, target)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name)
        raise


def _lead(report: Report) -> str:
    """What a reader sees first: what came of the run where something is known of it, else what was run."""
    lines = "".join(f'<p class="headline"><bdi>{escape(line)}</bdi></p>' for line in report.headline)
    return scores_html(report.scores) + lines or _facts(report.facts)


def _facts(facts: Sequence[tuple[str, str]]) -> str:
    items = "".join(f"<div><dt>{escape(name)}</dt><dd><bdi>{escape(value)}</bdi></dd></div>" for name, value in facts)
    return f'<dl class="facts">{items}</dl>' if facts else ""


def _pictures(report: Report) -> str:
    if not report.pictures:
        return ""
    limit = report.picture_limit
    pairs = [heatmap.pair_html(picture, limit=limit, alone=False) for picture in report.pictures]
    return "\n".join([heatmap.legend_html(limit=limit), *pairs])


def _weights(section: WeightSection) -> str:
    names = [f"{share:.0%}" for share in QUANTILES]
    names[0], names[len(names) // 2], names[-1] = "smallest", "median", "largest"
    rows = [
        [
            name,
            data(side.count),
            *(data(value) for value in (side.mean, side.std, *side.quantiles)),
            *(data(share, _percent(share)) for share in (side.share_at_lowest, side.share_at_highest)),
        ]
        for name, side in (("chosen", section.chosen), ("rejected", section.rejected))
    ]
    columns = ["side", "tokens", "mean", "std", *names, "at smallest allowed", "at largest allowed"]
    log_weights = {"chosen": section.chosen_log_weights, "rejected": section.rejected_log_weights}
    chart = histogram("Distribution", "natural logarithm of the weight", log_weights)
    if section.chosen_log_ratios is not None and section.rejected_log_ratios is not None:
        ratios = {"chosen": section.chosen_log_ratios, "rejected": section.rejected_log_ratios}
        chart += histogram("Before clamping", "log π⁺/π⁻ of a token", ratios)
    return table("Token weights by side", columns, rows, css="numbers") + f'\n<div class="charts">{chart}</div>'


def _percent(share: float) -> str:
    return number(share) if math.isnan(share) else f"{share:.1%}"


def _data(counts: Sequence[DataCounts]) -> str:
    if not counts:
        return ""
    rows = [
        [
            f"{escape(c.name)}<br><code>{escape(c.source)}</code>",
            *(data(number) for number in (c.records, c.used, len(c.rejected))),
        ]
        for c in counts
    ]
    parts = [table("Records of each file", ["file", "records", "used", "rejected"], rows, css="numbers")]
    for c in counts:
        if c.rejected:
            cells = [[f"<bdi>{escape(text)}</bdi>" for text in (r.origin, r.reason, r.detail)] for r in c.rejected]
            listed = table(f"Rejected records, {c.name}", ["record", "reason", "detail"], cells, css="words")
            reasons = collections.Counter(r.reason for r in c.rejected).most_common()
            why = ", ".join(f"{count:,} {reason}" for reason, count in reasons)
            fold = "" if len(cells) > _UNFOLDED else " open"
            parts.append(
                f"<details{fold}><summary>Rejected, {escape(c.name)}: {escape(why)}</summary>{listed}</details>"
            )
    return "\n".join(parts)


def _pairs(rows: Sequence[tuple[str, str]], caption: str, columns: Sequence[str]) -> str:
    cells = [[f"<code>{escape(name)}</code>", f"<bdi>{escape(text)}</bdi>"] for name, text in rows]
    return table(caption, columns, cells, css="words")
