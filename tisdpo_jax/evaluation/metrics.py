"""What a set of scored pairs says about a model, with standard errors. numpy only, no I/O.

A quantity that is not defined (a mean over no pair, a standard error over one) is `nan` in these
values and `None` in `as_json`, never a warning and never a zero that looks like a measurement.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
Limits = tuple[tuple[float, float], tuple[float, float]]
"""Smallest and largest weight that chosen, and that rejected tokens can get."""

QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)


@dataclasses.dataclass(frozen=True)
class PreferenceSummary:
    """Means over pairs, each with its standard error (std with ddof 1, over sqrt n)."""

    count: int
    reward_accuracy: float  # share of pairs with a positive margin; a tie counts one half
    reward_accuracy_se: float
    margin: float
    margin_se: float
    loss: float
    loss_se: float


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


@dataclasses.dataclass(frozen=True)
class SideWeights:
    """The weights of all tokens on one side. Shares are nan where the limits are not known."""

    count: int
    mean: float
    std: float
    share_at_lowest: float
    share_at_highest: float
    quantiles: tuple[float, ...]  # at QUANTILES


def preference_summary(margins: ArrayLike, losses: ArrayLike) -> PreferenceSummary:
    """Summary of per-pair margins [B] (chosen reward - rejected reward) and losses [B]."""
    margin, loss = _vector(margins, "margins"), _vector(losses, "losses")
    if margin.shape != loss.shape:
        raise ValueError(f"{margin.size} margins but {loss.size} losses: both are one number a pair")
    return PreferenceSummary(margin.size, *_mean_se(_score(margin)), *_mean_se(margin), *_mean_se(loss))


def paired_difference(before: ArrayLike, after: ArrayLike) -> tuple[float, float]:
    """Mean and standard error of `after - before`, two measurements [B] of the same pairs."""
    first, second = _vector(before, "before"), _vector(after, "after")
    if first.shape != second.shape:
        raise ValueError(
            f"{first.size} values before but {second.size} after: a paired difference needs the same pairs"
        )
    return _mean_se(second - first)


def defined(change: Change) -> Change:
    """The same line where `before` is what it is by definition: compared with nothing."""
    nothing = math.nan
    return dataclasses.replace(change, before_se=nothing, difference=nothing, difference_se=nothing, by_definition=True)


def compare(
    before_margins: ArrayLike, before_losses: ArrayLike, after_margins: ArrayLike, after_losses: ArrayLike
) -> tuple[Change, ...]:
    """The before/after table of the same pairs, all arrays [B]: reward accuracy, margin, loss."""
    before, after = preference_summary(before_margins, before_losses), preference_summary(after_margins, after_losses)
    scores = [_score(_vector(margins, "margins")) for margins in (before_margins, after_margins)]
    return (
        Change(
            "reward accuracy",
            *(before.reward_accuracy, before.reward_accuracy_se),
            *(after.reward_accuracy, after.reward_accuracy_se),
            *paired_difference(*scores),
            True,
        ),
        Change(
            "margin",
            *(before.margin, before.margin_se),
            *(after.margin, after.margin_se),
            *paired_difference(before_margins, after_margins),
            True,
        ),
        Change(
            "DPO loss",
            *(before.loss, before.loss_se),
            *(after.loss, after.loss_se),
            *paired_difference(before_losses, after_losses),
            False,
        ),
    )


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
    chosen, rejected = (values[..., side, :][kept[..., side, :]] for side in (0, 1))
    return _side(chosen, limits and limits[0]), _side(rejected, limits and limits[1])


def as_json(values: Mapping[str, Any] | PreferenceSummary | Change | SideWeights) -> dict[str, Any]:
    """The same numbers for `json.dumps(allow_nan=False)`: what is not finite becomes None."""
    fields = values if isinstance(values, Mapping) else dataclasses.asdict(values)
    return {name: _finite(value) for name, value in fields.items()}


def _side(values: Floats, limits: tuple[float, float] | None) -> SideWeights:
    if values.size == 0:
        return SideWeights(0, math.nan, math.nan, math.nan, math.nan, (math.nan,) * len(QUANTILES))
    lowest, highest = (
        (math.nan, math.nan)
        if limits is None
        else (float(np.mean(np.isclose(values, limit, rtol=1e-5, atol=0.0))) for limit in limits)
    )
    quantiles = tuple(float(q) for q in np.quantile(values, QUANTILES))
    return SideWeights(values.size, float(values.mean()), float(values.std()), lowest, highest, quantiles)


def _score(margins: Floats) -> Floats:
    """1 for a pair ranked right, 1/2 for a tie, 0 for one ranked wrong, nan for a margin that is nan."""
    return 0.5 * (np.sign(margins) + 1.0)


def _mean_se(values: Floats) -> tuple[float, float]:
    if values.size == 0:
        return math.nan, math.nan
    with np.errstate(invalid="ignore"):  # inf - inf: a mean that is not finite has no standard error
        mean = float(values.mean())
        se = float(values.std(ddof=1)) / math.sqrt(values.size) if values.size > 1 else math.nan
    return mean, se


def _vector(values: ArrayLike, name: str) -> Floats:
    array = np.asarray(values, np.float64)
    if array.ndim != 1:
        raise ValueError(f"{name} must be one number a pair, shape [B]; got shape {array.shape}")
    return array


def _finite(value: Any) -> Any:
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_finite(item) for item in value]
    if isinstance(value, float | np.floating):
        return float(value) if math.isfinite(value) else None
    return value
