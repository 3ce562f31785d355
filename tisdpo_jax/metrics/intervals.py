"""95 % intervals by resampling clusters of pairs.

A statistic to resample is a function of weights: given how often each pair counts, `[R, n]`, it returns R values, or R
values of each of K. Drawing clusters with replacement is then a matrix of counts, and one matrix product does all
resamples of a mean at once. (`scipy.stats.bootstrap` knows no clusters, and has no values that are not defined.)

A quantity that is not defined (a mean over no pair) is nan, never a warning and never a zero that looks measured.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

Floats = NDArray[np.float64]
Statistic = Callable[[Floats], Floats]
"""Weights `[R, n]` -> values `[R]` or `[R, K]`; a value that is not defined is nan."""

LEVEL = 0.95
_CELLS = 2**22  # of a block of weights: 32 MiB


class Interval(NamedTuple):
    """An estimate and its interval; nan where there is none."""

    value: float
    low: float
    high: float


def bootstrap(statistic: Statistic, clusters: ArrayLike, *, resamples: int = 2000, seed: int = 0) -> list[Interval]:
    """K statistics (or one) over all pairs once, and percentile intervals over the same resampled clusters.

    Args:
      clusters: `[n]` integers or text; pairs with the same value are drawn together, as pairs that share a prompt must
        be: they are not independent.

    One cluster gives no interval. Resamples in which a statistic is not defined, as of a subset that was not drawn,
    are left out. Source: Efron and Tibshirani, "An Introduction to the Bootstrap", 1993, chapter 13; for clusters,
    Davison and Hinkley, "Bootstrap Methods and their Application", 1997, section 3.8.
    """
    names = np.asarray(clusters)
    if names.ndim != 1:
        raise ValueError(f"clusters must be one value a pair, shape [n]; got shape {names.shape}")
    different, member = np.unique(names, return_inverse=True)
    count = len(different)
    point = statistic(np.ones((1, names.size))).reshape(-1)
    values = [np.zeros((0, point.size))]
    random = np.random.default_rng(seed)
    block = max(1, _CELLS // max(names.size, 1))
    for start in range(0, resamples if count > 1 else 0, block):
        drawn = random.multinomial(count, np.full(count, 1 / count), size=min(block, resamples - start))
        values.append(statistic(drawn[:, member].astype(np.float64)).reshape(len(drawn), -1))
    intervals = []
    for value, column in zip(point, np.concatenate(values).T, strict=True):
        kept = column[np.isfinite(column)]
        low, high = np.quantile(kept, ((1 - LEVEL) / 2, (1 + LEVEL) / 2)) if kept.size else (math.nan, math.nan)
        intervals.append(Interval(float(value), float(low), float(high)))
    return intervals


def mean_interval(
    values: ArrayLike, clusters: ArrayLike, *, kept: ArrayLike | None = None, resamples: int = 2000, seed: int = 0
) -> Interval:
    """`bootstrap` of the mean of values `[n]`, of those where `kept` is true."""
    array = np.asarray(values, np.float64)
    inside = np.ones(array.shape) if kept is None else np.asarray(kept, np.float64)
    total = np.where(inside > 0, array, 0.0)
    return bootstrap(lambda w: ratio(w @ total, w @ inside), clusters, resamples=resamples, seed=seed)[0]


def share_interval(
    scores: ArrayLike, clusters: ArrayLike, *, kept: ArrayLike | None = None, resamples: int = 2000, seed: int = 0
) -> Interval:
    """`mean_interval` of scores in [0, 1].

    Where all scores are the same (all right, all ties), resampling shows no spread at all; the interval is then
    Wilson's, with the number of clusters for the number of trials, so that 5 of 5 does not look like certainty.
    """
    interval = mean_interval(scores, clusters, kept=kept, resamples=resamples, seed=seed)
    if interval.low != interval.high:  # a spread, or no interval to mend
        return interval
    names = np.asarray(clusters)
    trials = len(np.unique(names if kept is None else names[np.asarray(kept, bool)]))
    return Interval(interval.value, *wilson(interval.value, trials))


def wilson(share: float, trials: int) -> tuple[float, float]:
    """95 % score interval of a share of `trials` (E. B. Wilson, 1927).

    scipy's `binomtest` takes whole successes alone; a share of ties need not be one.
    """
    z = float(stats.norm.ppf(1 - (1 - LEVEL) / 2))
    middle = (share + z * z / (2 * trials)) / (1 + z * z / trials)
    half = z / (1 + z * z / trials) * math.sqrt(share * (1 - share) / trials + z * z / (4 * trials * trials))
    return max(0.0, middle - half), min(1.0, middle + half)


def ratio(numerator: Floats, denominator: Floats) -> Floats:
    """Element-wise quotient, nan where the denominator is 0."""
    return np.divide(numerator, denominator, out=np.full(np.shape(numerator), np.nan), where=denominator != 0)
