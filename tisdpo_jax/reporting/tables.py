"""Tables of any numbers with their errors, for the terminal and for the page, from the same cells."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, NamedTuple

from tisdpo_jax.metrics import Change, Interval
from tisdpo_jax.reporting.html import macro, printable, readable


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
    columns: tuple[str, ...]  # the first one heads the names
    rows: tuple[tuple[Cell, ...], ...]


@dataclasses.dataclass(frozen=True)
class Comparison:
    """One before/after table: the same pairs under two models."""

    title: str
    pairs: int
    rows: tuple[Change, ...]
    models: tuple[str, str] = ("before", "after")  # the heads of their columns

    def grid(self) -> Grid:
        """The same as cells."""
        pairs = f"{self.pairs:,} {'pair' if self.pairs == 1 else 'pairs'}"
        columns = ("measure", *self.models, "change", "by how much")
        title = f"{self.title} ({pairs}, mean ± standard error)"
        return Grid(title, columns, tuple((row.name, *_change(row)) for row in self.rows))


def grid_text(grid: Grid) -> str:
    """Aligned plain text: names to the left, numbers to the right."""
    cells = [list(grid.columns)] + [[printable(shown(cell).text) for cell in row] for row in grid.rows]
    widths = [max(len(line[i]) for line in cells) for i in range(len(grid.columns))]
    aligned = [
        [f"{cell:{'>' if i else '<'}{width}}" for i, (cell, width) in enumerate(zip(line, widths, strict=True))]
        for line in cells
    ]
    return "\n".join([grid.title, *("  ".join(line).rstrip() for line in aligned)])


def grid_html(grid: Grid, css: str = "numbers") -> str:
    """The same as HTML; each number stands exactly in a `<data>` element."""
    rows = [[_typeset(shown(cell)) for cell in row] for row in grid.rows]
    return str(macro("table", grid.title, grid.columns, rows, css))


def table_text(comparison: Comparison) -> str:
    """A before/after table as aligned plain text."""
    return grid_text(comparison.grid())


def comparison_html(comparison: Comparison) -> str:
    """A before/after table as HTML."""
    return grid_html(comparison.grid(), "numbers compare")


def shown(cell: Cell | None) -> Shown:
    """How a cell is written: numbers to four digits, intervals to the second digit of their half width."""
    if isinstance(cell, Shown):
        return cell
    if cell is None or isinstance(cell, str):
        return Shown(readable(None) if cell is None else cell)
    if isinstance(cell, Interval):
        half = (cell.high - cell.low) / 2
        digits = max(0, 1 - math.floor(math.log10(half))) if 0 < half < math.inf else 4
        form = f",.{digits}f" if digits <= 7 else ".3g"
        low, high = (_unsigned(format(end, form)) for end in (cell.low, cell.high))
        value = _unsigned(format(cell.value, form))
        whole = math.isfinite(cell.low) and math.isfinite(cell.high)
        return Shown(f"{value} [{low}, {high}]" if whole else readable(cell.value), repr(float(cell.value)))
    exact = cell.item() if hasattr(cell, "item") else cell
    return Shown(readable(exact), repr(exact))


def with_error(value: float, error: float, *, signed: bool = False) -> Shown:
    """`value ± error`, both to the second significant digit of the error (or four of the value, where it has none)."""
    sign = "+" if signed and value > 0 else ""
    if not math.isfinite(value):
        text = readable(value)
    elif not (math.isfinite(error) and error > 0):
        text = sign + readable(value) + (" ± 0" if error == 0 else "")
    else:
        digits = max(0, 1 - math.floor(math.log10(error)))
        text = f"{value:,.{digits}f} ± {error:,.{digits}f}" if digits <= 7 else f"{value:.3g} ± {error:.2g}"
        text = sign + text
    return Shown(text, repr(float(value)))


def as_plain(value: Any) -> Any:
    """Nested dataclasses and tuples as dicts and lists, for JSON without NaN: what is not finite becomes None."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: as_plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, tuple) and hasattr(value, "_asdict"):
        value = value._asdict()
    if isinstance(value, dict):
        return {name: as_plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [as_plain(item) for item in value]
    value = value.item() if hasattr(value, "item") else value
    return value if not isinstance(value, float) or math.isfinite(value) else None


def _change(row: Change) -> tuple[Shown, ...]:
    before, after = with_error(row.before, row.before_se), with_error(row.after, row.after_se)
    if row.by_definition:
        before = Shown(f"{readable(row.before)} by definition", before.exact)
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


def _unsigned(text: str) -> str:
    """A zero that was rounded has no sign."""
    return text.removeprefix("-") if not text.strip("-0.,") else text


def _typeset(cell: Shown) -> Shown:
    """A number with a real minus, and a line break only before `±` and never before `[`."""
    if not cell.exact:
        return cell
    return cell._replace(text=cell.text.replace("-", "−").replace("± ", "±\u00a0").replace(" [", "\u00a0["))
