"""Intervals by resampling: percentile bootstrap over clusters of pairs, seeded. numpy only, no I/O.

A statistic is a function of weights: given how often each pair counts, `[R, n]`, it returns R values. Drawing clusters
with replacement is then a matrix of counts, and one matrix product does all resamples of a mean at once.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
Statistic = Callable[[Floats], Floats]
"""Weights `[R, n]` -> values `[R]`; a value that is not defined is nan."""

LEVEL = 0.95
_CELLS = 2**22  # of a block of weights: 32 MiB


class Interval(NamedTuple):
    """An estimate and its interval; nan where there is none."""

    value: float
    low: float
    high: float


def bootstrap(
    statistic: Statistic,
    clusters: ArrayLike,
    *,
    resamples: int = 2000,
    seed: int = 0,
    level: float = LEVEL,
) -> Interval:
    """The statistic over all pairs once, and its percentile interval over resampled clusters; see `bootstrap_each`."""

    def one(weights: Floats) -> Floats:
        return statistic(weights)[:, None]

    if not np.asarray(clusters).size:
        return Interval(math.nan, math.nan, math.nan)
    return bootstrap_each(one, clusters, resamples=resamples, seed=seed, level=level)[0]


def bootstrap_each(
    statistics: Statistic,
    clusters: ArrayLike,
    *,
    resamples: int = 2000,
    seed: int = 0,
    level: float = LEVEL,
) -> list[Interval]:
    """K statistics over the same resamples.

    Args:
      statistics: weights `[R, n]` -> values `[R, K]`.
      clusters: `[n]` integers or text, n at least 1; pairs with the same value are drawn together, as pairs that
        share a prompt must be: they are not independent.

    One cluster gives no interval. Source: Efron and Tibshirani, "An Introduction to the Bootstrap", 1993,
    chapter 13; for clusters, Davison and Hinkley, "Bootstrap Methods and their Application", 1997, section 3.8.
    """
    names = np.asarray(clusters)
    if names.ndim != 1 or not names.size:
        raise ValueError(f"clusters must be one value a pair, shape [n]; got shape {names.shape}")
    _, member = np.unique(names, return_inverse=True)
    count = int(member.max()) + 1
    point = statistics(np.ones((1, names.size)))[0]
    if count < 2 or resamples < 1:
        return [Interval(float(value), math.nan, math.nan) for value in point]
    random = np.random.default_rng(seed)
    even = np.full(count, 1.0 / count)
    found = []
    block = max(1, _CELLS // max(count, names.size))
    for start in range(0, resamples, block):
        drawn = random.multinomial(count, even, size=min(block, resamples - start))
        found.append(statistics(drawn[:, member].astype(np.float64)))
    values = np.concatenate(found)
    return [_interval(float(value), column, level) for value, column in zip(point, values.T, strict=True)]


def _interval(value: float, values: Floats, level: float) -> Interval:
    """Resamples in which the statistic is not defined, as of a subset that was not drawn, are left out."""
    values = values[np.isfinite(values)]
    if not values.size:
        return Interval(value, math.nan, math.nan)
    tail = (1.0 - level) / 2
    low, high = (float(x) for x in np.quantile(values, (tail, 1.0 - tail)))
    return Interval(value, low, high)


def mean(values: ArrayLike, kept: ArrayLike | None = None) -> Statistic:
    """The statistic "mean of values `[n]`", of those where `kept` is true."""
    array = np.asarray(values, np.float64)
    inside = np.ones(array.shape) if kept is None else np.asarray(kept, np.float64)
    total = np.where(inside > 0, array, 0.0)

    def statistic(weights: Floats) -> Floats:
        return ratio(weights @ total, weights @ inside)

    return statistic


def mean_interval(
    values: ArrayLike, clusters: ArrayLike, *, kept: ArrayLike | None = None, resamples: int = 2000, seed: int = 0
) -> Interval:
    """`bootstrap` of a mean."""
    return bootstrap(mean(values, kept), clusters, resamples=resamples, seed=seed)


def share_interval(
    scores: ArrayLike, clusters: ArrayLike, *, kept: ArrayLike | None = None, resamples: int = 2000, seed: int = 0
) -> Interval:
    """`bootstrap` of a mean of scores in [0, 1].

    Where all scores are the same (all right, all ties), resampling shows no spread at all; the interval is then
    Wilson's, with the number of clusters for the number of trials, so that 5 of 5 does not look like certainty.
    """
    found = mean_interval(scores, clusters, kept=kept, resamples=resamples, seed=seed)
    if found.low != found.high:  # a spread, or no interval to mend
        return found
    names = np.asarray(clusters)
    trials = len(np.unique(names if kept is None else names[np.asarray(kept, bool)]))
    return Interval(found.value, *wilson(found.value, trials))


def wilson(share: float, trials: int) -> tuple[float, float]:
    """95 % score interval of a share of `trials` (E. B. Wilson, 1927)."""
    z = 1.959963984540054
    middle = (share + z * z / (2 * trials)) / (1 + z * z / trials)
    half = z / (1 + z * z / trials) * math.sqrt(share * (1 - share) / trials + z * z / (4 * trials * trials))
    return max(0.0, middle - half), min(1.0, middle + half)


def ratio(numerator: Floats, denominator: Floats) -> Floats:
    """Element-wise quotient, nan where the denominator is 0."""
    empty = denominator == 0
    return np.where(empty, np.nan, numerator / np.where(empty, 1.0, denominator))
