"""The before/after table, for the terminal and for the page, from the same cells."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

from tisdpo_jax.evaluation._html import data, escape, number, table
from tisdpo_jax.evaluation.metrics import Change


@dataclasses.dataclass(frozen=True)
class Comparison:
    """One before/after table: the same pairs under two models."""

    title: str
    pairs: int
    rows: tuple[Change, ...]
    models: tuple[str, str] = ("before", "after")  # the heads of their columns


def table_text(comparison: Comparison) -> str:
    """The table as aligned plain text, no line wider than its widest cells ask for."""
    cells = [["", *comparison.models, "change", ""]] + [[row.name, *_cells(row)] for row in comparison.rows]
    widths = [max(len(line[i]) for line in cells) for i in range(len(cells[0]))]
    lines = [
        "  ".join(
            cell.ljust(width) if i in (0, len(line) - 1) else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in cells
    ]
    return "\n".join([_caption(comparison), *lines])


def comparison_html(comparison: Comparison) -> str:
    """The table as HTML; each cell holds its exact value in a `<data>` element."""
    rows = []
    for row in comparison.rows:
        before, after, change, verdict = _cells(row)
        css = {"better": "better", "worse": "worse"}.get(verdict.split(" ")[0], "")
        rows.append(
            [
                escape(row.name),
                data(float(row.before), _typeset(before)),
                data(float(row.after), _typeset(after)),
                data(None if row.by_definition else float(row.difference), _typeset(change)),
                f'<span class="{css}">{escape(verdict)}</span>',
            ]
        )
    return table(
        _caption(comparison), ["measure", *comparison.models, "change", "by how much"], rows, css="numbers compare"
    )


def with_error(value: float, error: float, *, signed: bool = False) -> str:
    """`value ± error`, both to the second significant digit of the error (or four of the value, where it has none)."""
    if not math.isfinite(value):
        return number(value)
    sign = "+" if signed and value > 0 else ""
    if not (math.isfinite(error) and error > 0):
        return sign + number(value) + (" ± 0" if error == 0 else "")
    decimals = max(0, 1 - math.floor(math.log10(error)))
    if decimals > 7:
        return f"{sign}{value:.3g} ± {error:.2g}"
    return f"{sign}{value:,.{decimals}f} ± {error:,.{decimals}f}"


def _cells(row: Change) -> list[str]:
    if row.by_definition:
        return [f"{number(row.before)} by definition", with_error(row.after, row.after_se), "–", "not compared"]
    return [
        with_error(row.before, row.before_se),
        with_error(row.after, row.after_se),
        with_error(row.difference, row.difference_se, signed=True),
        _verdict(row),
    ]


def _verdict(row: Change) -> str:
    """In words: which way, and by how many standard errors of the paired difference; one is not told from none."""
    errors = row.standard_errors
    if math.isnan(errors):
        return "unchanged" if row.difference == 0 else ""
    if abs(errors) <= 1:
        return "within 1 SE"
    return f"{'better' if errors > 0 else 'worse'} by {abs(errors):.1f} SE"


def _typeset(cell: str) -> str:
    """With a real minus, and a line break only before `±`."""
    return cell.replace("-", "−").replace("± ", "±\u00a0")


def _caption(comparison: Comparison) -> str:
    pairs: Sequence[str] = (f"{comparison.pairs:,}", "pair" if comparison.pairs == 1 else "pairs")
    return f"{comparison.title} ({' '.join(pairs)}, mean ± standard error)"
