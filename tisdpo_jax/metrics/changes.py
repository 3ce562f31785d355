"""Before and after: what a set of scored pairs says about two models, with standard errors of paired differences.

A quantity that is not defined (a mean over no pair, a standard error over one) is nan.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from tisdpo_jax.metrics.intervals import Floats


@dataclasses.dataclass(frozen=True)
class Change:
    """One line of a before/after table; `difference` is paired, so its error is not that of two samples.

    Where `before` holds by definition (a model is its own reference: every margin is 0), nothing was measured that
    `after` could be better than: there is no difference then, and no error.
    """

    name: str
    before: float
    before_se: float
    after: float
    after_se: float
    difference: float
    difference_se: float
    higher_is_better: bool | None  # None: neither is better, as of a distance travelled
    by_definition: bool = False  # of `before`

    @property
    def standard_errors(self) -> float:
        """How many of its standard errors the difference is to the better side; nan where there is no error."""
        if self.higher_is_better is None:
            return math.nan
        towards_better = self.difference if self.higher_is_better else -self.difference
        return towards_better / self.difference_se if self.difference_se > 0 else math.nan


def mean_and_error(values: ArrayLike) -> tuple[float, float]:
    """Mean of values `[n]` and its standard error (standard deviation with n - 1, over sqrt n)."""
    array = np.asarray(values, np.float64)
    if not array.size:
        return math.nan, math.nan
    with np.errstate(invalid="ignore"):  # inf - inf: a mean that is not finite has no standard error
        return float(array.mean()), float(stats.sem(array)) if array.size > 1 else math.nan


def paired_difference(before: ArrayLike, after: ArrayLike) -> tuple[float, float]:
    """Mean and standard error of `after - before`, two measurements `[n]` of the same pairs."""
    first, second = np.asarray(before, np.float64), np.asarray(after, np.float64)
    if first.ndim != 1 or first.shape != second.shape:
        raise ValueError(
            f"values before {first.shape} and after {second.shape} must be one number a pair, of the same pairs"
        )
    return mean_and_error(second - first)


def change_of(name: str, before: ArrayLike, after: ArrayLike, *, higher_is_better: bool | None) -> Change:
    """The line of a before/after table for two measurements `[n]` of the same pairs."""
    difference = paired_difference(before, after)
    return Change(name, *mean_and_error(before), *mean_and_error(after), *difference, higher_is_better)


def defined(change: Change) -> Change:
    """The same line where `before` is what it is by definition: compared with nothing."""
    nothing = math.nan
    return dataclasses.replace(change, before_se=nothing, difference=nothing, difference_se=nothing, by_definition=True)


def compare(
    before_margins: ArrayLike, before_losses: ArrayLike, after_margins: ArrayLike, after_losses: ArrayLike
) -> tuple[Change, ...]:
    """The before/after table of the same pairs, all arrays [B]: reward accuracy, margin, loss."""
    before, after = np.asarray(before_margins, np.float64), np.asarray(after_margins, np.float64)
    return (
        change_of("reward accuracy", ranked_right(before), ranked_right(after), higher_is_better=True),
        change_of("margin", before, after, higher_is_better=True),
        change_of("DPO loss", before_losses, after_losses, higher_is_better=False),
    )


def ranked_right(margins: Floats) -> Floats:
    """1 for a pair ranked right, 1/2 for a tie, 0 for one ranked wrong, nan for a margin that is nan."""
    return 0.5 * (np.sign(margins) + 1.0)


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
