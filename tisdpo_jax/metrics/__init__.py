"""What scored pairs, compared answers and token weights say, with errors. Arrays in, numbers out: numpy and scipy."""

from tisdpo_jax.metrics.calibration import Calibration, ReliabilityBin, calibrate
from tisdpo_jax.metrics.changes import Change, compare, defined
from tisdpo_jax.metrics.intervals import (
    Interval,
    area_under_curve,
    auc,
    bootstrap,
    bootstrap_each,
    mean_and_error,
    mean_interval,
    paired_difference,
    share_interval,
    weighted_mean,
    wilson,
)
from tisdpo_jax.metrics.preference import NO_GROUP, Measure, PairEvaluation, PairScores, evaluate_pairs
from tisdpo_jax.metrics.ratings import ELO, Outcomes, Rating, WinRate, bradley_terry, ratings, win_rate
from tisdpo_jax.metrics.token_weights import (
    WEIGHT_QUANTILES,
    SideWeights,
    TokenMean,
    token_means,
    weight_limits,
    weight_statistics,
)

__all__ = [
    "ELO",
    "NO_GROUP",
    "WEIGHT_QUANTILES",
    "Calibration",
    "Change",
    "Interval",
    "Measure",
    "Outcomes",
    "PairEvaluation",
    "PairScores",
    "Rating",
    "ReliabilityBin",
    "SideWeights",
    "TokenMean",
    "WinRate",
    "area_under_curve",
    "auc",
    "bootstrap",
    "bootstrap_each",
    "bradley_terry",
    "calibrate",
    "compare",
    "defined",
    "evaluate_pairs",
    "mean_and_error",
    "mean_interval",
    "paired_difference",
    "ratings",
    "share_interval",
    "token_means",
    "weight_limits",
    "weight_statistics",
    "weighted_mean",
    "wilson",
    "win_rate",
]
