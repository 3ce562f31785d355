"""Everything that scored pairs say about a policy against its reference, with intervals.

Calibration: a margin is the logit of "the chosen response is the better one" (Bradley-Terry). Every pair has its chosen
response first, so the event is always true, and accuracy would say nothing about a bin; each pair is therefore read as
the model's own bet: confidence `sigmoid(|margin|)` in [1/2, 1] on the response that it prefers, and whether that one is
the chosen one.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import expit

from tisdpo_jax.metrics.changes import ranked_right
from tisdpo_jax.metrics.intervals import Floats, Interval, Statistic, bootstrap, mean_interval, ratio, share_interval

NO_GROUP = "(none)"
"""What pairs are listed under whose record names no subset."""

_BINS = 10
_DRAWS = 200  # of calibrated bets, for `Calibration.chance`


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
    measuring = Measuring.of(margins, scores.prompts, resamples, seed)
    share, mean, everything = measuring.share, measuring.mean, np.ones(margins.size, bool)
    tokens = np.maximum(scores.tokens, 1)
    likelihoods = (("policy", scores.policy / tokens), ("reference", scores.reference / tokens))
    values = {
        "margin": margins,
        "DPO loss": np.logaddexp(0.0, -margins),
        "KL(policy || reference), a token": (scores.kl / tokens).mean(-1),
        "KL(policy || reference), a response": scores.kl.mean(-1),
    } | {
        f"log-likelihood of {side} a token, {model}": sides[:, number]
        for model, sides in likelihoods
        for number, side in enumerate(("chosen", "rejected"))
    }
    return PairEvaluation(
        beta=beta,
        pairs=margins.size,
        prompts=len(set(scores.prompts)),
        measures=(
            share("reward accuracy", everything),
            *(mean(name, array, everything) for name, array in values.items()),
        ),
        calibration=calibrate(margins, **measuring.options),
        length=measuring.length(scores.tokens),
        groups=measuring.by_group(scores.groups),
    )


@dataclasses.dataclass(frozen=True, eq=False)
class Measuring:
    """What is said of margins `[n]`, whatever they are margins of."""

    margins: Floats
    right: Floats
    options: Any  # of the bootstrap

    @classmethod
    def of(cls, margins: Floats, prompts: Sequence[str], resamples: int, seed: int) -> Measuring:
        clusters = np.unique(np.asarray(prompts, object).astype(str), return_inverse=True)[1]
        return cls(margins, ranked_right(margins), {"clusters": clusters, "resamples": resamples, "seed": seed})

    def share(self, name: str, kept: NDArray[np.bool_]) -> Measure:
        """How many of these pairs are ranked right."""
        return Measure(name, int(kept.sum()), share_interval(self.right, kept=kept, **self.options))

    def mean(self, name: str, values: Floats, kept: NDArray[np.bool_]) -> Measure:
        return Measure(name, int(kept.sum()), mean_interval(values, kept=kept, **self.options))

    def length(self, tokens: Floats) -> LengthBias:
        """Of responses with so many `tokens [n, 2]`."""
        extra = tokens[:, 0] - tokens[:, 1]
        kept = {"chosen is longer": extra > 0, "chosen is shorter": extra < 0, "equally long": extra == 0}
        return LengthBias(
            bootstrap(correlation(self.margins, extra), **self.options)[0],
            tuple(self.share(name, inside) for name, inside in kept.items()),
        )

    def by_group(self, groups: Sequence[str | None]) -> tuple[tuple[str, Measure, Measure], ...]:
        """(name, reward accuracy, margin) of each; those without one last, nothing where none was asked for."""
        names = np.asarray([NO_GROUP if group is None else group for group in groups], object)
        subsets = sorted(set(names), key=lambda name: (name == NO_GROUP, name))
        return tuple(
            (name, self.share("reward accuracy", names == name), self.mean("margin", self.margins, names == name))
            for name in subsets
        )


def calibrate(margins: ArrayLike, clusters: ArrayLike, *, resamples: int = 2000, seed: int = 0) -> Calibration:
    """Calibration of margins [n] (chosen reward - rejected reward, in nats).

    Error: sum over bins of its share times |accuracy - mean confidence|, bins of equal width over [1/2, 1] (Naeini,
    Cooper and Hauskrecht, 2015). Brier score: mean of `(1 - sigmoid(margin))^2`, 1/4 for a model that knows nothing.
    A tie is right by one half.
    """
    margin = np.asarray(margins, np.float64)
    confidence, right = expit(np.abs(margin)), ranked_right(margin)
    place = np.minimum(((confidence - 0.5) * 2 * _BINS).astype(np.int64), _BINS - 1)

    def error(right: Floats) -> Statistic:
        gaps = np.zeros((margin.size, _BINS))  # deviations of a bin are summed before their sign is dropped
        gaps[np.arange(margin.size), place] = right - confidence
        return lambda weights: ratio(np.abs(weights @ gaps).sum(-1), weights.sum(-1))

    random = np.random.default_rng(seed)
    everything = np.ones((1, margin.size))
    drawn = ((random.random(margin.size) < confidence).astype(np.float64) for _ in range(_DRAWS))
    edges = np.linspace(0.5, 1.0, _BINS + 1)
    bins = []
    for number, (low, high) in enumerate(itertools.pairwise(edges)):
        inside = place == number
        means = [float(values[inside].mean()) if inside.any() else float("nan") for values in (confidence, right)]
        bins.append(ReliabilityBin(float(low), float(high), int(inside.sum()), *means))
    return Calibration(
        bootstrap(error(right), clusters, resamples=resamples, seed=seed)[0],
        float(np.mean([error(bets)(everything)[0] for bets in drawn])),
        mean_interval(expit(-margin) ** 2, clusters, resamples=resamples, seed=seed),
        tuple(bins),
    )


def correlation(x: Floats, y: Floats) -> Statistic:
    """Pearson's, of resampled pairs of values `[n]`."""
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
