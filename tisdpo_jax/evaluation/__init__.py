"""How good a model is, and pictures of why: reward accuracy, tables, curves, heat maps of weights, the report.

Arrays in, numbers and HTML out; nothing here needs more than numpy, and only `write` and `read_metrics` touch files.
"""

from tisdpo_jax.evaluation.answers import Answer, Sample, Score, headlines, score_grid
from tisdpo_jax.evaluation.bootstrap import Interval, bootstrap, mean_interval, share_interval
from tisdpo_jax.evaluation.calibration import Calibration, calibrate
from tisdpo_jax.evaluation.curves import histogram, line_chart
from tisdpo_jax.evaluation.grids import Cell, Grid, as_plain, grid_html, grid_text
from tisdpo_jax.evaluation.heatmap import SidePicture, TokenPicture, legend_html, pair_html, style_sheet
from tisdpo_jax.evaluation.history import read_metrics
from tisdpo_jax.evaluation.metrics import (
    Change,
    PreferenceSummary,
    SideWeights,
    as_json,
    compare,
    defined,
    paired_difference,
    preference_summary,
    weight_limits,
    weight_statistics,
)
from tisdpo_jax.evaluation.pieces import decode_pieces
from tisdpo_jax.evaluation.preference import Measure, PairEvaluation, PairScores, evaluate_pairs
from tisdpo_jax.evaluation.preference_tables import preference_grids
from tisdpo_jax.evaluation.report import DataCounts, Rejected, Report, WeightSection, render, write
from tisdpo_jax.evaluation.tables import Comparison, table_text

__all__ = [
    "Answer",
    "Calibration",
    "Cell",
    "Change",
    "Comparison",
    "DataCounts",
    "Grid",
    "Interval",
    "Measure",
    "PairEvaluation",
    "PairScores",
    "PreferenceSummary",
    "Rejected",
    "Report",
    "Sample",
    "Score",
    "SidePicture",
    "SideWeights",
    "TokenPicture",
    "WeightSection",
    "as_json",
    "as_plain",
    "bootstrap",
    "calibrate",
    "compare",
    "decode_pieces",
    "defined",
    "evaluate_pairs",
    "grid_html",
    "grid_text",
    "headlines",
    "histogram",
    "legend_html",
    "line_chart",
    "mean_interval",
    "pair_html",
    "paired_difference",
    "preference_grids",
    "preference_summary",
    "read_metrics",
    "render",
    "score_grid",
    "share_interval",
    "style_sheet",
    "table_text",
    "weight_limits",
    "weight_statistics",
    "write",
]
