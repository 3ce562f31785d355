"""Tables of any numbers with their errors, for the terminal and for the page, from the same cells."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from markupsafe import Markup

from tisdpo_jax.metrics import (
    WEIGHT_QUANTILES,
    Calibration,
    Change,
    Interval,
    Measure,
    PairEvaluation,
    RewardEvaluation,
    SideWeights,
    TokenMean,
)
from tisdpo_jax.reporting.html import printable, readable, render_template

_ENDS = 15  # tokens that `extreme_grid` shows at each end


class Shown(NamedTuple):
    """A cell that is written already."""

    text: str
    exact: str = ""  # the number behind a rounded text; empty where it is none
    css: str = ""


Cell = str | int | float | Interval | Shown


@dataclasses.dataclass(frozen=True)
class Grid:
    """A table; the first cell of a row names it. An `Interval` shows as `value [low, high]`."""

    title: str
    columns: Sequence[str]  # the first one heads the names
    rows: Sequence[Sequence[Cell]]
    css: str = "numbers"


@dataclasses.dataclass(frozen=True)
class Comparison:
    """One before/after table: the same pairs under two models."""

    title: str
    pairs: int
    rows: tuple[Change, ...]
    models: tuple[str, str] = ("before", "after")  # the heads of their columns

    def grid(self) -> Grid:
        """The same as cells."""
        title = f"{self.title} ({self.pairs:,} {'pair' if self.pairs == 1 else 'pairs'}, mean ± standard error)"
        columns = ("measure", *self.models, "change", "by how much")
        return Grid(title, columns, [(row.name, *_change(row)) for row in self.rows], "numbers compare")


def grid_text(grid: Grid) -> str:
    """Aligned plain text: names to the left, numbers to the right."""
    cells = [list(grid.columns), *([printable(shown(cell).text) for cell in row] for row in grid.rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = []
    for name, *numbers in cells:
        aligned = [number.rjust(width) for number, width in zip(numbers, widths[1:], strict=True)]
        lines.append("  ".join([name.ljust(widths[0]), *aligned]).rstrip())
    return "\n".join([grid.title, *lines])


def grid_html(grid: Grid) -> Markup:
    """The same as HTML; each number stands exactly in a `<data>` element, with a real minus."""
    return render_template("table.html", grid=grid, rows=[[shown(cell) for cell in row] for row in grid.rows])


def preference_grids(evaluation: PairEvaluation, *, policy: str, reference: str) -> tuple[Grid, ...]:
    """Tables of the measures, by subset, of length bias and of calibration, without those that would be empty."""
    calibration, length, pairs = evaluation.calibration, evaluation.length, evaluation.pairs
    columns = ("measure", "pairs", "value [95 % interval]")
    extra = Measure("correlation of margin and extra tokens of chosen", pairs, length.correlation)
    accuracy = [dataclasses.replace(one, name=f"reward accuracy, {one.name}") for one in length.accuracy]
    errors: list[tuple[Cell, ...]] = [
        ("expected calibration error", pairs, calibration.error),
        ("... of perfectly calibrated bets like these", pairs, calibration.chance),
        ("Brier score (0.25 knows nothing)", pairs, calibration.brier),
    ]
    grids = [
        Grid(
            f"{policy} against {reference} ({pairs:,} pairs of {evaluation.prompts:,} prompts, implicit reward with "
            f"beta {evaluation.beta:g})",
            columns,
            [(one.name, one.count, one.interval) for one in evaluation.measures],
        ),
        Grid(
            "By subset",
            ("subset", "pairs", "reward accuracy", "margin"),
            [(name, right.count, right.interval, margin.interval) for name, right, margin in evaluation.groups],
        ),
        Grid("Length", columns, [(one.name, one.count, one.interval) for one in (extra, *accuracy)]),
        Grid("Calibration of sigmoid(margin)", columns, errors),
        Grid("Reliability", ("confidence", "pairs", "mean confidence", "share right"), _reliability(calibration)),
    ]
    return tuple(grid for grid in grids if grid.rows)


def reward_grids(evaluation: RewardEvaluation) -> tuple[Grid, ...]:
    """Tables of a reward model: measures, by strength, by subset, length, calibration; none that would be empty."""
    calibration, length, pairs = evaluation.calibration, evaluation.length, evaluation.pairs
    columns = ("measure", "pairs", "value [95 % interval]")
    named = [dataclasses.replace(one, name=f"reward accuracy, {one.name}") for one in length.accuracy]
    of_length = (
        Measure("correlation of margin and extra tokens of chosen", pairs, length.correlation),
        *named,
        Measure("extra tokens of the preferred response, against the mean of both", pairs, evaluation.preferred),
        Measure("log-odds of chosen for 100 extra tokens, beyond the margin", pairs, evaluation.slope),
    )
    rising = [Measure("rank correlation of margin and strength", pairs, evaluation.rising)] * bool(evaluation.strengths)
    errors: list[tuple[Cell, ...]] = [
        ("expected calibration error", pairs, calibration.error),
        ("... of perfectly calibrated bets like these", pairs, calibration.chance),
        ("Brier score (0.25 knows nothing)", pairs, calibration.brier),
        ("temperature (above 1: margins are too sure)", pairs, evaluation.temperature),
    ]

    def rows(measures: Iterable[Measure]) -> list[tuple[Cell, ...]]:
        return [(one.name, one.count, one.interval) for one in measures]

    def split(title: str, name: str, parts: Sequence[tuple[str, Measure, Measure]]) -> Grid:
        cells = [(label, right.count, right.interval, margin.interval) for label, right, margin in parts]
        return Grid(title, (name, "pairs", "reward accuracy", "margin"), cells)

    grids = [
        Grid(f"Rewards ({pairs:,} pairs of {evaluation.prompts:,} prompts)", columns, rows(evaluation.measures)),
        split("By strength of the label", "strength", evaluation.strengths),
        Grid("Strength and margin", columns, rows(rising)),
        split("By subset", "subset", evaluation.groups),
        Grid("Length", columns, rows(of_length)),
        Grid("Calibration of sigmoid(margin)", columns, errors),
        Grid("Reliability", ("confidence", "pairs", "mean confidence", "share right"), _reliability(calibration)),
    ]
    return tuple(grid for grid in grids if grid.rows)


def _reliability(calibration: Calibration) -> list[tuple[Cell, ...]]:
    return [
        (f"{one.low:.2f} to {one.high:.2f}", one.count, one.confidence, one.accuracy)
        for one in calibration.bins
        if one.count
    ]


def extreme_grid(title: str, means: Sequence[TokenMean], names: Sequence[str]) -> Grid:
    """A table of the tokens with the largest means and as many with the smallest; `names[i]` is `means[i]`."""
    rows = [
        (name, one.count, one.pairs, one.mean, one.error, math.exp(one.mean))
        for name, one in zip(names, means, strict=True)
    ]
    if len(rows) > 2 * _ENDS:
        rows = [*rows[:_ENDS], *rows[-_ENDS:]]
    return Grid(title, ("token", "times", "pairs", "mean log-weight", "standard error", "as a weight"), rows)


def weight_grid(chosen: SideWeights, rejected: SideWeights) -> Grid:
    """A table of the statistics of token weights."""
    names = [f"{share:.0%}" for share in WEIGHT_QUANTILES]
    names[0], names[len(names) // 2], names[-1] = "smallest", "median", "largest"
    rows: list[tuple[Cell, ...]] = []
    for name, side in (("chosen", chosen), ("rejected", rejected)):
        shares = (side.share_at_lowest, side.share_at_highest)
        cells = (Shown(readable(share) if math.isnan(share) else f"{share:.1%}", repr(share)) for share in shares)
        rows.append((name, side.count, side.mean, side.std, *side.quantiles, *cells))
    columns = ("side", "tokens", "mean", "std", *names, "at smallest allowed", "at largest allowed")
    return Grid("Token weights by side", columns, rows)


def shown(cell: Cell) -> Shown:
    """How a cell is written: numbers to four digits, intervals to the second digit of their half width."""
    if isinstance(cell, Shown | str):
        return cell if isinstance(cell, Shown) else Shown(cell)
    if not isinstance(cell, Interval):
        exact = cell.item() if hasattr(cell, "item") else cell
        return Shown(readable(exact), repr(exact))
    if not (math.isfinite(cell.low) and math.isfinite(cell.high)):
        return Shown(readable(cell.value), repr(float(cell.value)))
    half = (cell.high - cell.low) / 2
    digits = _digits(half) if half > 0 else 4
    value, low, high = (format(number, f",.{digits}f" if digits <= 7 else ".3g") for number in cell)
    # a zero that was rounded has no sign
    value, low, high = (text if text.strip("-0.,") else text.removeprefix("-") for text in (value, low, high))
    return Shown(f"{value} [{low}, {high}]", repr(float(cell.value)))


def with_error(value: float, error: float, *, signed: bool = False) -> Shown:
    """`value ± error`, both to the second significant digit of the error (or four of the value, where it has none)."""
    if not (math.isfinite(value) and math.isfinite(error) and error > 0):
        text = readable(value) + (" ± 0" if error == 0 and math.isfinite(value) else "")
    elif (digits := _digits(error)) <= 7:
        text = f"{value:,.{digits}f} ± {error:,.{digits}f}"
    else:
        text = f"{value:.3g} ± {error:.2g}"
    return Shown(("+" if signed and 0 < value < math.inf else "") + text, repr(float(value)))


def as_plain(value: Any) -> Any:
    """Nested dataclasses and tuples as dicts and lists, for JSON without NaN: what is not finite becomes None."""
    if dataclasses.is_dataclass(value):
        value = vars(value)
    elif hasattr(value, "_asdict"):
        value = value._asdict()
    elif hasattr(value, "item"):
        value = value.item()
    if isinstance(value, dict):
        return {name: as_plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [as_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _digits(error: float) -> int:
    """Decimals up to the second significant digit of an error."""
    return max(0, 1 - math.floor(math.log10(error)))


def _change(row: Change) -> tuple[Shown, ...]:
    before, after = with_error(row.before, row.before_se), with_error(row.after, row.after_se)
    if row.by_definition:
        before = before._replace(text=f"{readable(row.before)} by definition")
        return before, after, Shown("–"), Shown("not compared")
    return before, after, with_error(row.difference, row.difference_se, signed=True), _verdict(row)


def _verdict(row: Change) -> Shown:
    """In words: which way, and by how many standard errors of the paired difference; one is not told from none."""
    errors = row.standard_errors
    if math.isnan(errors):
        return Shown("unchanged" if row.difference == 0 else "")
    if abs(errors) <= 1:
        return Shown("within 1 SE")
    better = "better" if errors > 0 else "worse"
    return Shown(f"{better} by {abs(errors):.1f} SE", css=better)
