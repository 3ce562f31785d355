"""The tables of the testbed: means over seeds, standard errors, paired tests; for a terminal and for documents."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from experiments.testbed.statistics import Floats, at_kl, paired
from tisdpo_jax.metrics import mean_and_error


@dataclasses.dataclass(frozen=True, eq=False)
class Row:
    """A method at the learning rates that were chosen for it, on the seeds that are reported."""

    name: str
    rate: float
    contrast_rate: float | None  # of pi+ and pi-
    contrast: int  # its number in the grid
    reward: Floats  # [cuts, S], true reward of a response
    kl: Floats  # [S], at the end
    length: Floats  # [S]
    grid_reward: Floats  # [S, 1 + G], at the end, at every rate; first without training
    grid_kl: Floats  # [S, 1 + G]


@dataclasses.dataclass(frozen=True)
class Table:
    title: str
    note: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def rewards(title: str, rows: Sequence[Row], start: Floats, *, steps: Sequence[int]) -> Table:
    """Every row against the first.

    Args:
      start: `[S]`, true reward before training.
      steps: pairs seen at each cut.
    """
    first = rows[0]
    budget = float(first.kl.mean())
    same = at_kl(first.grid_reward, first.grid_kl, budget)
    lines = []
    for row in rows:
        there = at_kl(row.grid_reward, row.grid_kl, budget)
        lines.append(
            (
                row.name,
                f"{row.rate:g}",
                "" if row.contrast_rate is None else f"{row.contrast_rate:g}",
                *(
                    f"{cut.mean():.2f}" if row is first else f"{cut.mean():.2f} ({_p(cut, other)})"
                    for cut, other in zip(row.reward[:-1], first.reward[:-1], strict=True)
                ),
                _with_error(row.reward[-1]),
                "" if row is first else _difference(row.reward[-1], first.reward[-1]),
                f"{row.kl.mean():.2f}",
                f"{row.length.mean():.1f}",
                "" if row is first else _difference(there, same),
            )
        )
    seeds = first.reward.shape[1]
    note = (
        f"{seeds} seeds; mean ± standard error of the true reward of a response to a held-out prompt; before training "
        f"{_with_error(start)}. Differences are paired by seed, with p of a two-sided t-test. Learning rates were "
        f"chosen by true reward on other seeds. The last column compares at the KL that {first.name} spends "
        f"({budget:.2f} nats a response), each method between the points of its own grid. Along the learning curve "
        f"numbers in brackets are p against {first.name} after as many pairs."
    )
    columns = (
        "method",
        "rate",
        "rate of pi+, pi-",
        *(f"after {seen}" for seen in steps[:-1]),
        f"after {steps[-1]} pairs",
        f"less {first.name} (p)",
        "KL",
        "tokens",
        f"less {first.name} at its KL (p)",
    )
    return Table(title, note, columns, tuple(lines))


def estimates(found: Mapping[str, npt.NDArray[np.float64]]) -> Table:
    """Areas under the curve of key tokens.

    Args:
      found: name -> `[S, 3]`: area of good tokens, of bad ones, rank correlation; "random" and "position" among them.
    """
    keys = {name: values[:, :2].mean(1) for name, values in found.items()}
    lines = []
    for name, values in found.items():
        against = ("", "")
        if name not in ("random", "position", "uniform"):
            against = (_p(keys[name], keys["random"]), _p(keys[name], keys["position"]))
        lines.append((name, *(_with_error(x, 3) for x in (keys[name], *values.T)), *against))
    seeds = len(next(iter(found.values())))
    note = (
        f"{seeds} seeds; mean ± standard error. Area under the curve: the probability that a good token scores above "
        "another one, and a bad token below (keys: the mean of both); 0.5 knows nothing. Over all response tokens of "
        "the training pairs or, where it says so, of pairs that nothing was trained on."
    )
    columns = ("scores", "keys", "good", "bad", "rank correlation", "p against random", "p against position")
    return Table("Finding key tokens", note, columns, tuple(lines))


def sweep(title: str, found: Mapping[str, Sequence[Row]]) -> Table:
    """Methods in several settings; each setting's first row is what the others are compared with."""
    names = [row.name for row in next(iter(found.values()))]
    lines = []
    for label, rows in found.items():
        first = rows[0]
        cells = [_with_error(first.reward[-1])]
        cells += [f"{_with_error(row.reward[-1])} ({_p(row.reward[-1], first.reward[-1])})" for row in rows[1:]]
        lines.append((label, *cells))
    seeds = next(iter(found.values()))[0].reward.shape[1]
    note = (
        f"{seeds} seeds; true reward of a response, mean ± standard error, and p of a two-sided paired t-test against "
        f"{names[0]}. Learning rates chosen on other seeds, in each setting."
    )
    return Table(title, note, ("", *names), tuple(lines))


def _with_error(values: Floats, digits: int = 2) -> str:
    mean, error = mean_and_error(values)
    return f"{mean:.{digits}f} ± {error:.{digits}f}"


def _difference(values: Floats, other: Floats) -> str:
    found = paired(values, other)
    return f"{found.mean:+.2f} ± {found.error:.2f} ({_p(values, other)})"


def _p(values: Floats, other: Floats) -> str:
    p = paired(values, other).p
    return f"{p:.1g}" if p >= 1e-4 else "<1e-4"


def text(table: Table) -> str:
    """For a terminal."""
    cells = [table.columns, *table.rows]
    widths = [max(len(row[column]) for row in cells) for column in range(len(table.columns))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells]
    return "\n".join([table.title, *lines, table.note])


def markdown(table: Table) -> str:
    """For a document."""
    rule = "| --- " * len(table.columns) + "|"
    rows = [f"| {' | '.join(row)} |" for row in (table.columns, *table.rows)]
    return "\n".join([f"## {table.title}", "", rows[0], rule, *rows[1:], "", table.note])
