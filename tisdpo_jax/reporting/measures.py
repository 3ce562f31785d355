"""What `metrics` finds, as tables for people."""

from __future__ import annotations

import math
from collections.abc import Sequence

from tisdpo_jax.metrics import Measure, PairEvaluation, TokenMean
from tisdpo_jax.reporting.tables import Cell, Grid

_SHOWN = 15  # tokens at each end


def preference_grids(evaluation: PairEvaluation, *, policy: str, reference: str) -> tuple[Grid, ...]:
    """Tables of the measures, by subset, of length bias and of calibration, without those that would be empty."""
    pairs = f"{evaluation.pairs:,} pairs of {evaluation.prompts:,} prompts"
    columns = ("measure", "pairs", "value [95 % interval]")
    title = f"{policy} against {reference} ({pairs}, implicit reward with beta {evaluation.beta:g})"
    grids = [Grid(title, columns, tuple(map(_row, evaluation.measures)))]
    if evaluation.groups:
        rows = tuple((name, right.count, right.interval, margin.interval) for name, right, margin in evaluation.groups)
        grids.append(Grid("By subset", ("subset", "pairs", "reward accuracy", "margin"), rows))
    length: list[tuple[Cell, ...]] = [
        ("correlation of margin and extra tokens of chosen", evaluation.pairs, evaluation.length.correlation),
        *((f"reward accuracy, {measure.name}", *_row(measure)[1:]) for measure in evaluation.length.accuracy),
    ]
    grids.append(Grid("Length", columns, tuple(length)))
    calibration = evaluation.calibration
    errors: tuple[tuple[Cell, ...], ...] = (
        ("expected calibration error", evaluation.pairs, calibration.error),
        ("... of perfectly calibrated bets like these", evaluation.pairs, calibration.chance),
        ("Brier score (0.25 knows nothing)", evaluation.pairs, calibration.brier),
    )
    grids.append(Grid("Calibration of sigmoid(margin)", columns, errors))
    bins = tuple(
        (f"{bin.low:.2f} to {bin.high:.2f}", bin.count, bin.confidence, bin.accuracy)
        for bin in calibration.bins
        if bin.count
    )
    if bins:
        grids.append(Grid("Reliability", ("confidence", "pairs", "mean confidence", "share right"), bins))
    return tuple(grids)


def extreme_grid(title: str, means: Sequence[TokenMean], names: Sequence[str], *, shown: int = _SHOWN) -> Grid:
    """A table of the `shown` tokens with the largest means and as many with the smallest; `names[i]` is `means[i]`."""
    rows = [
        (name, one.count, one.pairs, one.mean, one.error, math.exp(one.mean))
        for name, one in zip(names, means, strict=True)
    ]
    if len(rows) > 2 * shown:
        rows = [*rows[:shown], *rows[-shown:]]
    columns = ("token", "times", "pairs", "mean log-weight", "standard error", "as a weight")
    return Grid(title, columns, tuple(rows))


def _row(measure: Measure) -> tuple[Cell, ...]:
    return (measure.name, measure.count, measure.interval)
