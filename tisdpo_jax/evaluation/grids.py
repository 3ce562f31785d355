"""Tables of any numbers with intervals, for the terminal and for the page, from the same cells."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from tisdpo_jax.evaluation._html import data, number, printable, table
from tisdpo_jax.evaluation.bootstrap import Interval

Cell = str | int | float | Interval


@dataclasses.dataclass(frozen=True)
class Grid:
    """A table; the first cell of a row names it. An `Interval` shows as `value [low, high]`."""

    title: str
    columns: tuple[str, ...]  # the first one heads the names
    rows: tuple[tuple[Cell, ...], ...]


def grid_text(grid: Grid) -> str:
    """Aligned plain text: names to the left, numbers to the right."""
    cells = [list(grid.columns)] + [[printable(cell_text(cell)) for cell in row] for row in grid.rows]
    widths = [max(len(line[i]) for line in cells) for i in range(len(grid.columns))]
    lines = [
        "  ".join(
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in cells
    ]
    return "\n".join([grid.title, *lines])


def grid_html(grid: Grid) -> str:
    """The same as HTML; each number stands exactly in a `<data>` element."""
    rows = [[_cell_html(cell) for cell in row] for row in grid.rows]
    return table(grid.title, grid.columns, rows, css="numbers")


def cell_text(cell: Cell) -> str:
    if not isinstance(cell, Interval):
        return number(cell)
    if not (math.isfinite(cell.low) and math.isfinite(cell.high)):
        return number(cell.value)
    decimals = _decimals(cell)
    if decimals > 7:
        return f"{cell.value:.3g} [{cell.low:.3g}, {cell.high:.3g}]"
    value, low, high = (_round(x, decimals) for x in cell)
    return f"{value} [{low}, {high}]"


def as_plain(value: Any) -> Any:
    """Nested dataclasses and tuples as dicts and lists, for JSON without NaN: what is not finite becomes None."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: as_plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, tuple) and hasattr(value, "_asdict"):
        return {name: as_plain(item) for name, item in value._asdict().items()}
    if isinstance(value, dict):
        return {name: as_plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [as_plain(item) for item in value]
    if isinstance(value, float) or hasattr(value, "dtype"):
        value = value.item() if hasattr(value, "item") else value
        return value if not isinstance(value, float) or math.isfinite(value) else None
    return value


def _cell_html(cell: Cell) -> str:
    if isinstance(cell, str):
        return data(cell)
    if not isinstance(cell, Interval):
        return data(cell, number(cell).replace("-", "−"))
    return data(float(cell.value), cell_text(cell).replace("-", "−").replace(" [", "\u00a0["))


def _decimals(cell: Interval) -> int:
    """To the second significant digit of the interval's half width."""
    half = (cell.high - cell.low) / 2
    return max(0, 1 - math.floor(math.log10(half))) if half > 0 else 4


def _round(value: float, decimals: int) -> str:
    text = f"{value:,.{decimals}f}"
    return text.removeprefix("-") if float(text.replace(",", "")) == 0 else text
