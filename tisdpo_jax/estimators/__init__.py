"""Estimators of token weights: the options of each, what it reads of which models, and its weights."""

from tisdpo_jax.estimators.contrast import (
    Binary,
    Formula,
    Importance,
    LogUniform,
    Origin,
    Position,
    Random,
    Rank,
    RankBased,
    Shuffled,
    Threshold,
    ThresholdAndScale,
    Uniform,
)
from tisdpo_jax.estimators.entropy import Entropy
from tisdpo_jax.estimators.estimator import CONTRAST, Estimator, Read, reads_of

ESTIMATORS: dict[str, type] = {
    kind.method: kind
    for kind in (
        *(Importance, Uniform, LogUniform, Shuffled, Position, Rank),
        *(Binary, RankBased, ThresholdAndScale, Threshold, Origin, Random),
        Entropy,
    )
}
"""What `weights.method` chooses from."""

__all__ = [
    "CONTRAST",
    "ESTIMATORS",
    "Binary",
    "Entropy",
    "Estimator",
    "Formula",
    "Importance",
    "LogUniform",
    "Origin",
    "Position",
    "Random",
    "Rank",
    "RankBased",
    "Read",
    "Shuffled",
    "Threshold",
    "ThresholdAndScale",
    "Uniform",
    "reads_of",
]
