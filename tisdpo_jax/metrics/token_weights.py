"""Token weights over a data set: statistics of each side, and which tokens weigh most and least."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
from numpy.typing import ArrayLike

from tisdpo_jax.metrics.intervals import Floats

Limits = tuple[tuple[float, float], tuple[float, float]]
"""Smallest and largest weight that chosen, and that rejected tokens can get."""

WEIGHT_QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)
MINIMUM = 5  # occurrences of a token that its mean is said for


@dataclasses.dataclass(frozen=True)
class SideWeights:
    """The weights of all tokens on one side. Shares are nan where the limits are not known."""

    count: int
    mean: float
    std: float
    share_at_lowest: float
    share_at_highest: float
    quantiles: tuple[float, ...]  # at WEIGHT_QUANTILES


@dataclasses.dataclass(frozen=True)
class TokenMean:
    """One token on one side."""

    token: int
    count: int
    pairs: int  # pairs that it stands in
    mean: float
    error: float  # standard error of the mean; nan where it stands in one pair


def weight_limits(*, scale: float = 1.0, mu: float = 1.0, lower: float = -0.5, upper: float = 1.5) -> Limits:
    """What the paper's formula allows: `scale * exp(+-mu * clamp(x, lower, upper))`, + on chosen, - on rejected."""
    ends = [[scale * math.exp(sign * mu * end) for end in (lower, upper)] for sign in (1, -1)]
    return (min(ends[0]), max(ends[0])), (min(ends[1]), max(ends[1]))


def weight_statistics(
    weights: ArrayLike, mask: ArrayLike, *, limits: Limits | None = None
) -> tuple[SideWeights, SideWeights]:
    """Statistics of weights [..., 2, N] where mask [..., 2, N] is 1: those of chosen, those of rejected.

    With `limits` the shares of tokens at the smallest and at the largest weight allowed are counted, that is,
    how often each clamp binds. Weights are float32, so equality with a limit is to 1e-5 relative.
    """
    values, kept = np.asarray(weights, np.float64), np.asarray(mask) != 0
    if values.ndim < 2 or values.shape[-2] != 2 or values.shape != kept.shape:
        raise ValueError(f"weights {values.shape} and mask {kept.shape} must both be [..., 2, N]")
    chosen, rejected = (
        _side(values[..., side, :][kept[..., side, :]], (math.nan, math.nan) if limits is None else limits[side])
        for side in (0, 1)
    )
    return chosen, rejected


def token_means(tokens: ArrayLike, values: ArrayLike, pairs: ArrayLike, *, minimum: int = MINIMUM) -> list[TokenMean]:
    """Mean of `values [n]` for each token id in `tokens [n]` that occurs at least `minimum` times, largest first.

    Values that are not finite (the logarithm of a weight of 0) are left out. Tokens of one pair resemble each other,
    so the error of a mean over n occurrences adds up deviations by pair before it squares them: with d_p the sum of
    deviations in pair p, `sqrt(sum d_p^2 * P / (P - 1)) / n`, P pairs (Liang and Zeger, 1986, for a mean).
    """
    ids, value, pair = np.asarray(tokens), np.asarray(values, np.float64), np.asarray(pairs)
    good = np.isfinite(value)
    ids, value, pair = ids[good], value[good], pair[good]
    if not ids.size:
        return []
    known, place = np.unique(ids, return_inverse=True)
    count = np.bincount(place)
    mean = np.bincount(place, value) / count
    both, cell = np.unique(np.stack([place, np.unique(pair, return_inverse=True)[1]]), axis=1, return_inverse=True)
    deviation = np.bincount(cell.ravel(), value - mean[place])
    squares = np.bincount(both[0], deviation**2, minlength=known.size)
    units = np.bincount(both[0], minlength=known.size)
    means = []
    for index in np.flatnonzero(count >= minimum):
        many = units[index]
        error = math.sqrt(squares[index] * many / (many - 1)) / count[index] if many > 1 else math.nan
        means.append(TokenMean(int(known[index]), int(count[index]), int(many), float(mean[index]), error))
    return sorted(means, key=lambda one: (-one.mean, one.token))


def _side(values: Floats, limits: tuple[float, float]) -> SideWeights:
    if values.size == 0:
        return SideWeights(0, math.nan, math.nan, math.nan, math.nan, (math.nan,) * len(WEIGHT_QUANTILES))
    at_lowest, at_highest = (
        math.nan if math.isnan(limit) else float(np.mean(np.isclose(values, limit, rtol=1e-5, atol=0.0)))
        for limit in limits
    )
    quantiles = tuple(float(q) for q in np.quantile(values, WEIGHT_QUANTILES))
    return SideWeights(values.size, float(values.mean()), float(values.std()), at_lowest, at_highest, quantiles)
