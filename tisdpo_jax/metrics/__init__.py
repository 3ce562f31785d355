"""What scored pairs, compared answers and token weights say, with errors. Arrays in, numbers out: numpy and scipy."""

from tisdpo_jax.metrics.changes import (
    Change,
    area_under_curve,
    auc,
    change_of,
    compare,
    defined,
    mean_and_error,
    paired_difference,
)
from tisdpo_jax.metrics.intervals import Interval, mean_interval, wilson
from tisdpo_jax.metrics.pairs import Calibration, Measure, PairEvaluation, PairScores, evaluate_pairs
from tisdpo_jax.metrics.ratings import Outcomes, Rating, WinRate, bradley_terry, ratings, win_rate
from tisdpo_jax.metrics.rewards import RewardEvaluation, RewardScores, evaluate_rewards
from tisdpo_jax.metrics.token_weights import (
    WEIGHT_QUANTILES,
    SideWeights,
    TokenMean,
    token_means,
    weight_limits,
    weight_statistics,
)

__all__ = [
    "WEIGHT_QUANTILES",
    "Calibration",
    "Change",
    "Interval",
    "Measure",
    "Outcomes",
    "PairEvaluation",
    "PairScores",
    "Rating",
    "RewardEvaluation",
    "RewardScores",
    "SideWeights",
    "TokenMean",
    "WinRate",
    "area_under_curve",
    "auc",
    "bradley_terry",
    "change_of",
    "compare",
    "defined",
    "evaluate_pairs",
    "evaluate_rewards",
    "mean_and_error",
    "mean_interval",
    "paired_difference",
    "ratings",
    "token_means",
    "weight_limits",
    "weight_statistics",
    "wilson",
    "win_rate",
]
