"""A `PairEvaluation` as tables for people."""

from __future__ import annotations

from tisdpo_jax.evaluation.grids import Cell, Grid
from tisdpo_jax.evaluation.preference import Measure, PairEvaluation


def preference_grids(found: PairEvaluation, *, policy: str, reference: str) -> tuple[Grid, ...]:
    """Tables of the measures, by subset, of length bias and of calibration, without those that would be empty."""
    pairs = f"{found.pairs:,} pairs of {found.prompts:,} prompts"
    columns = ("measure", "pairs", "value [95 % interval]")
    grids = [
        Grid(
            f"{policy} against {reference} ({pairs}, implicit reward with beta {found.beta:g})",
            columns,
            tuple(_row(measure) for measure in found.measures),
        )
    ]
    if found.groups:
        rows = tuple((name, right.count, right.interval, margin.interval) for name, right, margin in found.groups)
        grids.append(Grid("By subset", ("subset", "pairs", "reward accuracy", "margin"), rows))
    length: list[tuple[Cell, ...]] = [
        ("correlation of margin and extra tokens of chosen", found.pairs, found.length.correlation),
        *((f"reward accuracy, {measure.name}", *_row(measure)[1:]) for measure in found.length.accuracy),
    ]
    grids.append(Grid("Length", columns, tuple(length)))
    calibration = found.calibration
    grids.append(
        Grid(
            "Calibration of sigmoid(margin)",
            columns,
            (
                ("expected calibration error", found.pairs, calibration.error),
                ("... of perfectly calibrated bets like these", found.pairs, calibration.chance),
                ("Brier score (0.25 knows nothing)", found.pairs, calibration.brier),
            ),
        )
    )
    rows_of_bins = tuple(
        (f"{bin.low:.2f} to {bin.high:.2f}", bin.count, bin.confidence, bin.accuracy)
        for bin in calibration.bins
        if bin.count
    )
    if rows_of_bins:
        grids.append(Grid("Reliability", ("confidence", "pairs", "mean confidence", "share right"), rows_of_bins))
    return tuple(grids)


def _row(measure: Measure) -> tuple[Cell, ...]:
    return (measure.name, measure.count, measure.interval)
