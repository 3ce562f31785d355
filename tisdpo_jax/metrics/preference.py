"""Everything that scored pairs say about a policy against its reference, with intervals."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tisdpo_jax.metrics.calibration import Calibration, calibrate
from tisdpo_jax.metrics.changes import ranked_right
from tisdpo_jax.metrics.intervals import Floats, Interval, Statistic, bootstrap, mean_interval, ratio, share_interval

NO_GROUP = "(none)"
"""What pairs are listed under whose record names no subset."""


@dataclasses.dataclass(frozen=True, eq=False)
class PairScores:
    """Sums over the tokens of each response `[n, 2]`, and who each pair is."""

    policy: Floats  # log-likelihoods
    reference: Floats
    kl: Floats  # KL(policy || reference)
    tokens: Floats
    prompts: Sequence[str]  # [n], equal for pairs that share a prompt
    groups: Sequence[str | None] = ()  # [n], the subset of each pair; empty where none was asked for

    def margins(self, beta: float) -> Floats:
        """Implicit reward of chosen minus that of rejected, [n]: `beta * (log-ratio of chosen - that of rejected)`."""
        rewards = beta * (self.policy - self.reference)
        return rewards[:, 0] - rewards[:, 1]


@dataclasses.dataclass(frozen=True)
class Measure:
    """One number with its interval, and how many pairs it is over."""

    name: str
    count: int
    interval: Interval


@dataclasses.dataclass(frozen=True)
class LengthBias:
    """Whether longer responses get more reward than they should."""

    correlation: Interval  # Pearson, of margin with tokens of chosen - tokens of rejected
    accuracy: tuple[Measure, ...]  # where chosen is longer, where it is shorter, where both are as long


@dataclasses.dataclass(frozen=True)
class PairEvaluation:
    """What `evaluate_pairs` finds."""

    beta: float
    pairs: int
    prompts: int
    measures: tuple[Measure, ...]
    calibration: Calibration
    length: LengthBias
    groups: tuple[tuple[str, Measure, Measure], ...]  # name, reward accuracy, margin; empty where none was asked for


def evaluate_pairs(scores: PairScores, *, beta: float, resamples: int = 2000, seed: int = 0) -> PairEvaluation:
    """Reward accuracy, margin, likelihoods, KL, calibration, length bias, and accuracy by subset.

    A tie counts one half. Intervals are 95 % percentile intervals over resampled prompts.
    """
    margins = scores.margins(beta)
    right = ranked_right(margins)
    clusters = np.unique(np.asarray(scores.prompts, object).astype(str), return_inverse=True)[1]
    count = margins.size

    def share(name: str, kept: NDArray[np.bool_] | None = None) -> Measure:
        interval = share_interval(right, clusters, kept=kept, resamples=resamples, seed=seed)
        return Measure(name, count if kept is None else int(kept.sum()), interval)

    def average(name: str, values: ArrayLike, kept: NDArray[np.bool_] | None = None) -> Measure:
        interval = mean_interval(values, clusters, kept=kept, resamples=resamples, seed=seed)
        return Measure(name, count if kept is None else int(kept.sum()), interval)

    tokens = np.maximum(scores.tokens, 1)
    policy, reference = scores.policy / tokens, scores.reference / tokens
    measures = (
        share("reward accuracy"),
        average("margin", margins),
        average("DPO loss", np.logaddexp(0.0, -margins)),
        average("KL(policy || reference), a token", (scores.kl / tokens).mean(-1)),
        average("KL(policy || reference), a response", scores.kl.mean(-1)),
        *(
            average(f"log-likelihood of {side} a token, {model}", values[:, number])
            for model, values in (("policy", policy), ("reference", reference))
            for number, side in enumerate(("chosen", "rejected"))
        ),
    )
    difference = scores.tokens[:, 0] - scores.tokens[:, 1]
    length = LengthBias(
        bootstrap(_correlation(margins, difference), clusters, resamples=resamples, seed=seed),
        (
            share("chosen is longer", difference > 0),
            share("chosen is shorter", difference < 0),
            share("equally long", difference == 0),
        ),
    )
    groups = []
    if scores.groups:
        names = np.asarray([NO_GROUP if group is None else group for group in scores.groups], object)
        # those without a subset last, whatever the others are called
        for name in sorted(set(names), key=lambda name: (name == NO_GROUP, name)):
            kept = names == name
            groups.append((name, share("reward accuracy", kept), average("margin", margins, kept)))
    return PairEvaluation(
        beta=beta,
        pairs=count,
        prompts=len(set(scores.prompts)),
        measures=measures,
        calibration=calibrate(margins, clusters, resamples=resamples, seed=seed),
        length=length,
        groups=tuple(groups),
    )


def _correlation(x: Floats, y: Floats) -> Statistic:
    x, y = (values - values.mean() if values.size else values for values in (x, y))  # else variances cancel

    def statistic(weights: Floats) -> Floats:
        total = weights.sum(-1)
        mean_x, mean_y = ratio(weights @ x, total), ratio(weights @ y, total)
        variance_x, variance_y = (
            ratio(weights @ (values**2), total) - mean**2 for values, mean in ((x, mean_x), (y, mean_y))
        )
        product = np.sqrt(np.maximum(variance_x, 0.0) * np.maximum(variance_y, 0.0))
        tiny = 1e-12 * np.sqrt((x**2).mean() * (y**2).mean()) if x.size else 0.0
        return ratio(ratio(weights @ (x * y), total) - mean_x * mean_y, np.where(product > tiny, product, 0.0))

    return statistic
