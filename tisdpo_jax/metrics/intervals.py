"""Standard errors, paired differences, areas under the curve, and 95 % intervals by resampling clusters of pairs.

A statistic to resample is a function of weights: given how often each pair counts, `[R, n]`, it returns R values.
Drawing clusters with replacement is then a matrix of counts, and one matrix product does all resamples of a mean at
once. (`scipy.stats.bootstrap` knows no clusters, and has no values that are not defined.)

A quantity that is not defined (a mean over no pair, a standard error over one) is nan, never a warning and never a
zero that looks like a measurement.
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
"""Weights `[R, n]` -> values `[R]`; a value that is not defined is nan."""

LEVEL = 0.95
_CELLS = 2**22  # of a block of weights: 32 MiB


class Interval(NamedTuple):
    """An estimate and its interval; nan where there is none."""

    value: float
    low: float
    high: float


def mean_and_error(values: ArrayLike) -> tuple[float, float]:
    """Mean of values `[n]` and its standard error (standard deviation with n - 1, over sqrt n)."""
    array = np.asarray(values, np.float64)
    if not array.size:
        return math.nan, math.nan
    with np.errstate(invalid="ignore"):  # inf - inf: a mean that is not finite has no standard error
        return float(array.mean()), float(stats.sem(array)) if array.size > 1 else math.nan


def paired_difference(before: ArrayLike, after: ArrayLike) -> tuple[float, float]:
    """Mean and standard error of `after - before`, two measurements `[n]` of the same pairs."""
    first, second = as_vector(before, "before"), as_vector(after, "after")
    if first.shape != second.shape:
        raise ValueError(
            f"{first.size} values before but {second.size} after: a paired difference needs the same pairs"
        )
    return mean_and_error(second - first)


def area_under_curve(positive: Floats, negative: Floats) -> float:
    """Probability that a positive scores above a negative, ties one half; nan where there are none of either."""
    return float(_placements(positive, negative).mean()) if positive.size and negative.size else math.nan


def auc(scores: Floats) -> tuple[float, float]:
    """Area under the curve of two scores of each prompt `[n, 2]`, first above second, and its standard error.

    Over all pairs of a first and a second one, of whatever prompts. Source of the error: DeLong and others, 1988, with
    the two scores of a prompt taken together.
    """
    if not len(scores):
        return math.nan, math.nan
    above, below = _placements(scores[:, 0], scores[:, 1]), _placements(-scores[:, 1], -scores[:, 0])
    return float(above.mean()), mean_and_error(above + below)[1]


def _placements(scores: Floats, others: Floats) -> Floats:
    """Share of the others that each score lies above, ties one half: its rank among all less that among its own."""
    among_all = stats.rankdata(np.concatenate([scores, others]))[: scores.size]
    return (among_all - stats.rankdata(scores)) / others.size


def bootstrap(
    statistic: Statistic, clusters: ArrayLike, *, resamples: int = 2000, seed: int = 0, level: float = LEVEL
) -> Interval:
    """The statistic over all pairs once, and its percentile interval over resampled clusters; see `bootstrap_each`."""
    if not np.asarray(clusters).size:
        return Interval(math.nan, math.nan, math.nan)
    return bootstrap_each(lambda w: statistic(w)[:, None], clusters, resamples=resamples, seed=seed, level=level)[0]


def bootstrap_each(
    statistics: Statistic, clusters: ArrayLike, *, resamples: int = 2000, seed: int = 0, level: float = LEVEL
) -> list[Interval]:
    """K statistics over the same resamples.

    Args:
      statistics: weights `[R, n]` -> values `[R, K]`.
      clusters: `[n]` integers or text, n at least 1; pairs with the same value are drawn together, as pairs that
        share a prompt must be: they are not independent.

    One cluster gives no interval. Resamples in which a statistic is not defined, as of a subset that was not drawn,
    are left out. Source: Efron and Tibshirani, "An Introduction to the Bootstrap", 1993, chapter 13; for clusters,
    Davison and Hinkley, "Bootstrap Methods and their Application", 1997, section 3.8.
    """
    names = np.asarray(clusters)
    if names.ndim != 1 or not names.size:
        raise ValueError(f"clusters must be one value a pair, shape [n]; got shape {names.shape}")
    _, member = np.unique(names, return_inverse=True)
    count = int(member.max()) + 1
    point = statistics(np.ones((1, names.size)))[0]
    resamples = resamples if count > 1 else 0
    random = np.random.default_rng(seed)
    block = max(1, _CELLS // max(count, names.size))
    values = [np.zeros((0, point.size))]
    for start in range(0, resamples, block):
        drawn = random.multinomial(count, np.full(count, 1 / count), size=min(block, resamples - start))
        values.append(statistics(drawn[:, member].astype(np.float64)))
    tails = ((1 - level) / 2, (1 + level) / 2)
    intervals = []
    for value, column in zip(point, np.concatenate(values).T, strict=True):
        kept = column[np.isfinite(column)]
        low, high = np.quantile(kept, tails) if kept.size else (math.nan, math.nan)
        intervals.append(Interval(float(value), float(low), float(high)))
    return intervals


def weighted_mean(values: ArrayLike, kept: ArrayLike | None = None) -> Statistic:
    """The statistic "mean of values `[n]`", of those where `kept` is true."""
    array = np.asarray(values, np.float64)
    inside = np.ones(array.shape) if kept is None else np.asarray(kept, np.float64)
    total = np.where(inside > 0, array, 0.0)
    return lambda weights: ratio(weights @ total, weights @ inside)


def mean_interval(
    values: ArrayLike, clusters: ArrayLike, *, kept: ArrayLike | None = None, resamples: int = 2000, seed: int = 0
) -> Interval:
    """`bootstrap` of a mean."""
    return bootstrap(weighted_mean(values, kept), clusters, resamples=resamples, seed=seed)


def share_interval(
    scores: ArrayLike, clusters: ArrayLike, *, kept: ArrayLike | None = None, resamples: int = 2000, seed: int = 0
) -> Interval:
    """`bootstrap` of a mean of scores in [0, 1].

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


def as_vector(values: ArrayLike, name: str) -> Floats:
    """Values as float64 `[n]`. Raises: ValueError that names the argument."""
    array = np.asarray(values, np.float64)
    if array.ndim != 1:
        raise ValueError(f"{name} must be one number a pair, shape [B]; got shape {array.shape}")
    return array
