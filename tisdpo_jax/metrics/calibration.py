"""How far probabilities of preference can be trusted: reliability, expected calibration error, Brier score.

A margin is the logit of "the chosen response is the better one" (Bradley-Terry). Every pair has its chosen response
first, so the event is always true, and accuracy would say nothing about a bin; each pair is therefore read as the
model's own bet: confidence `sigmoid(|margin|)` in [1/2, 1] on the response that it prefers, and whether that one is
the chosen one.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import expit

from tisdpo_jax.metrics.changes import ranked_right
from tisdpo_jax.metrics.intervals import Floats, Interval, Statistic, bootstrap, mean_interval, ratio

BINS = 10
_DRAWS = 200


@dataclasses.dataclass(frozen=True)
class ReliabilityBin:
    """Bets whose confidence lies in [low, high)."""

    low: float
    high: float
    count: int
    confidence: float  # mean; nan in an empty bin
    accuracy: float


@dataclasses.dataclass(frozen=True)
class Calibration:
    """`chance`: the calibration error that perfectly calibrated bets of these confidences would show on average.

    It is above 0, because the error of a bin is taken without its sign: only an `error` well above it means anything.
    """

    error: Interval
    chance: float
    brier: Interval
    bins: tuple[ReliabilityBin, ...]


def calibrate(
    margins: ArrayLike, clusters: ArrayLike, *, bins: int = BINS, resamples: int = 2000, seed: int = 0
) -> Calibration:
    """Calibration of margins [n] (chosen reward - rejected reward, in nats).

    Error: sum over bins of its share times |accuracy - mean confidence|, bins of equal width over [1/2, 1] (Naeini,
    Cooper and Hauskrecht, 2015). Brier score: mean of `(1 - sigmoid(margin))^2`, 1/4 for a model that knows nothing.
    A tie is right by one half.
    """
    margin = np.asarray(margins, np.float64)
    confidence, right = expit(np.abs(margin)), ranked_right(margin)
    place = np.minimum(((confidence - 0.5) * 2 * bins).astype(np.int64), bins - 1)
    random = np.random.default_rng(seed)
    one = np.ones((1, margin.size))
    chance = [
        _error(confidence, (random.random(margin.size) < confidence).astype(float), place, bins)(one)[0]
        for _ in range(_DRAWS if margin.size else 0)
    ]
    edges = np.linspace(0.5, 1.0, bins + 1)
    reliability = []
    for number in range(bins):
        inside = place == number
        means = [float(x[inside].mean()) if inside.any() else float("nan") for x in (confidence, right)]
        reliability.append(ReliabilityBin(float(edges[number]), float(edges[number + 1]), int(inside.sum()), *means))
    return Calibration(
        bootstrap(_error(confidence, right, place, bins), clusters, resamples=resamples, seed=seed),
        float(np.mean(chance)) if chance else float("nan"),
        mean_interval(expit(-margin) ** 2, clusters, resamples=resamples, seed=seed),
        tuple(reliability),
    )


def _error(confidence: Floats, right: Floats, place: NDArray[np.int64], bins: int) -> Statistic:
    """The statistic "calibration error": the deviations of a bin are summed before their sign is dropped."""
    gaps = np.zeros((place.size, bins))
    gaps[np.arange(place.size), place] = right - confidence
    return lambda weights: ratio(np.abs(weights @ gaps).sum(-1), weights.sum(-1))
