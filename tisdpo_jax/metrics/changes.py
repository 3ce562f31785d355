"""Before and after: what a set of scored pairs says about two models, with paired standard errors."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
from numpy.typing import ArrayLike

from tisdpo_jax.metrics.intervals import Floats, as_vector, mean_and_error, paired_difference


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


def defined(change: Change) -> Change:
    """The same line where `before` is what it is by definition: compared with nothing."""
    nothing = math.nan
    return dataclasses.replace(change, before_se=nothing, difference=nothing, difference_se=nothing, by_definition=True)


def compare(
    before_margins: ArrayLike, before_losses: ArrayLike, after_margins: ArrayLike, after_losses: ArrayLike
) -> tuple[Change, ...]:
    """The before/after table of the same pairs, all arrays [B]: reward accuracy, margin, loss."""

    def change(name: str, before: Floats, after: Floats, higher_is_better: bool) -> Change:
        values = (*mean_and_error(before), *mean_and_error(after), *paired_difference(before, after))
        return Change(name, *values, higher_is_better)

    margins = [as_vector(values, "margins") for values in (before_margins, after_margins)]
    losses = [as_vector(values, "losses") for values in (before_losses, after_losses)]
    return (
        change("reward accuracy", ranked_right(margins[0]), ranked_right(margins[1]), True),
        change("margin", margins[0], margins[1], True),
        change("DPO loss", losses[0], losses[1], False),
    )


def ranked_right(margins: Floats) -> Floats:
    """1 for a pair ranked right, 1/2 for a tie, 0 for one ranked wrong, nan for a margin that is nan."""
    return 0.5 * (np.sign(margins) + 1.0)
