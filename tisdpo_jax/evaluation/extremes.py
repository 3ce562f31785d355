"""Which tokens weigh most and least over a data set: means by token, with errors that know that pairs are the units."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from tisdpo_jax.evaluation.grids import Grid

MINIMUM = 5
SHOWN = 15


@dataclasses.dataclass(frozen=True)
class TokenMean:
    """One token on one side."""

    token: int
    count: int
    pairs: int  # pairs that it stands in
    mean: float
    error: float  # standard error of the mean; nan where it stands in one pair


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
    found = []
    for index in np.flatnonzero(count >= minimum):
        many = units[index]
        error = math.sqrt(squares[index] * many / (many - 1)) / count[index] if many > 1 else math.nan
        found.append(TokenMean(int(known[index]), int(count[index]), int(many), float(mean[index]), error))
    return sorted(found, key=lambda one: (-one.mean, one.token))


def extreme_grid(title: str, found: Sequence[TokenMean], names: Sequence[str], *, shown: int = SHOWN) -> Grid:
    """A table of the `shown` tokens with the largest means and as many with the smallest; `names[i]` is `found[i]`."""
    rows = [
        (name, one.count, one.pairs, one.mean, one.error, math.exp(one.mean))
        for name, one in zip(names, found, strict=True)
    ]
    if len(rows) > 2 * shown:
        rows = [*rows[:shown], *rows[-shown:]]
    columns = ("token", "times", "pairs", "mean log-weight", "standard error", "as a weight")
    return Grid(title, columns, tuple(rows))
