"""Everything that a reward model's numbers for pairs say about it, with intervals.

A margin is the reward of the chosen response minus that of the rejected one, the logit of "the chosen one is better".
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
from scipy import stats
from scipy.special import expit

from tisdpo_jax.metrics.intervals import Floats, Interval, Statistic, bootstrap, ratio
from tisdpo_jax.metrics.pairs import Calibration, LengthBias, Measure, Measuring, calibrate, correlation

_NEWTON = 60  # steps at most
_STEEPEST = 1e4  # an inverse temperature, or a coefficient, above which pairs are separable


@dataclasses.dataclass(frozen=True, eq=False)
class RewardScores:
    """Rewards and tokens of each response `[n, 2]`, and who each pair is."""

    rewards: Floats
    tokens: Floats
    target: Floats  # [n], probability that the chosen response is the better one, as labelled
    prompts: Sequence[str]  # [n], equal for pairs that share a prompt
    strengths: Sequence[str | None] = ()  # [n], in the words of the records; empty where no record has one
    groups: Sequence[str | None] = ()  # [n], the subset of each pair; empty where none was asked for


@dataclasses.dataclass(frozen=True)
class RewardEvaluation:
    """What `evaluate_rewards` finds.

    temperature   T of `sigmoid(margin / T)` that fits held-out labels best: above 1, margins are too sure. nan where
                  no such T is: all pairs ranked right, or margins that say nothing.
    rising        Spearman's correlation of margins with the labels' probabilities; nan where all are alike.
    preferred     tokens of the response with the higher reward, minus the mean of both.
    slope         b of `P(chosen) = sigmoid(a margin + b extra / 100)`, extra tokens of the chosen response: what length
                  tells beyond the reward. Below 0, the reward pays too much for it.
    """

    pairs: int
    prompts: int
    measures: tuple[Measure, ...]
    calibration: Calibration
    temperature: Interval
    length: LengthBias
    preferred: Interval
    slope: Interval
    rising: Interval
    strengths: tuple[tuple[str, Measure, Measure], ...]  # name, accuracy, margin; the surest label first
    groups: tuple[tuple[str, Measure, Measure], ...]


def evaluate_rewards(scores: RewardScores, *, resamples: int = 2000, seed: int = 0) -> RewardEvaluation:
    """Accuracy, margin, losses, calibration with its temperature, margins by strength, length bias.

    A tie counts one half. Intervals are 95 % percentile intervals over resampled prompts.
    """
    rewards, tokens = scores.rewards, scores.tokens
    margins = rewards[:, 0] - rewards[:, 1]
    measuring = Measuring.of(margins, scores.prompts, resamples, seed)
    everything, extra = np.ones(margins.size, bool), tokens[:, 0] - tokens[:, 1]
    hard, soft = np.logaddexp(0.0, -margins), np.logaddexp(0.0, -margins) + (1 - scores.target) * margins
    values = {"margin": margins, "loss against hard labels": hard, "loss against the labels' strengths": soft}
    values |= {f"reward of {side}": rewards[:, number] for number, side in enumerate(("chosen", "rejected"))}
    preferred = np.sign(margins) * extra / 2
    labels = np.asarray(scores.strengths, object)
    sureness = {name: float(scores.target[labels == name].mean()) for name in _named(scores)}
    by_name = {name: (name, accuracy, margin) for name, accuracy, margin in measuring.by_group(scores.strengths)}
    options = measuring.options
    return RewardEvaluation(
        pairs=margins.size,
        prompts=len(set(scores.prompts)),
        measures=(
            measuring.share("reward accuracy", everything),
            *(measuring.mean(name, array, everything) for name, array in values.items()),
        ),
        calibration=calibrate(margins, **options),
        temperature=_defined(bootstrap(_temperature(margins), **options)[0]),
        length=measuring.length(tokens),
        preferred=measuring.mean("", preferred, everything).interval,
        slope=_defined(bootstrap(_slope(margins, extra / 100), **options)[0]),
        rising=bootstrap(_spearman(margins, scores.target), **options)[0],
        strengths=tuple(sorted(by_name.values(), key=lambda row: -sureness.get(row[0], 1.0))),
        groups=measuring.by_group(scores.groups),
    )


def _defined(interval: Interval) -> Interval:
    """Without the ends of what has no value itself; a temperature of 0 is none."""
    return interval if abs(interval.value) > 0 else Interval(*[math.nan] * 3)


def _named(scores: RewardScores) -> list[str]:
    return sorted({name for name in scores.strengths if name is not None})


def _temperature(margins: Floats) -> Statistic:
    """T of the smallest mean `log(1 + exp(-margin / T))`: its derivative by 1 / T, which rises, is 0 there.

    0 where no pair is ranked wrong, as any smaller T is better; nan where the mean margin is not above 0.
    """
    size = float(np.sqrt(np.mean(margins**2))) if margins.size else 0.0
    scaled = margins / size if size else margins

    def statistic(weights: Floats) -> Floats:
        right = weights @ scaled > 0
        there = right & ((weights * (scaled < 0)).sum(-1) > 0)
        inverse = np.ones(len(weights))
        for _ in range(_NEWTON):
            wrong = weights * expit(-inverse[:, None] * scaled)
            steep = (wrong * expit(inverse[:, None] * scaled)) @ scaled**2
            step = ratio(wrong @ scaled, steep)
            inverse = np.where(there, np.clip(inverse + step, inverse / 4, inverse * 4), np.nan)
            if not there.any() or np.nanmax(np.abs(step[there]) / inverse[there]) < 1e-10:
                break
        return np.where(there, size / inverse, np.where(right, 0.0, np.nan))

    return statistic


def _slope(margins: Floats, extra: Floats) -> Statistic:
    """b of the likeliest `sigmoid(a margin + b extra)`; nan where pairs are separable, or all are equally long."""
    size = float(np.sqrt(np.mean(margins**2))) if margins.size else 0.0
    x = np.stack([margins / size if size else margins, extra], -1)

    def statistic(weights: Floats) -> Floats:
        theta = np.zeros((len(weights), 2))
        step = np.full_like(theta, np.nan)
        for _ in range(_NEWTON):
            logit = theta @ x.T
            wrong = weights * expit(-logit)
            gradient, flat = wrong @ x, wrong * expit(logit)
            aa, ab, bb = flat @ x[:, 0] ** 2, flat @ (x[:, 0] * x[:, 1]), flat @ x[:, 1] ** 2
            volume = aa * bb - ab**2
            volume = np.where(volume > 1e-9 * aa * bb, volume, 0.0)
            ga, gb = gradient.T
            step = np.stack([ratio(bb * ga - ab * gb, volume), ratio(aa * gb - ab * ga, volume)], -1)
            theta = theta + np.clip(step, -4, 4)
            if not np.isfinite(step).any() or np.nanmax(np.abs(step)) < 1e-10:
                break
        settled = (np.abs(step) < 1e-6).all(-1) & (np.abs(theta) < _STEEPEST).all(-1)
        return np.where(settled, theta[:, 1], np.nan)

    return statistic


def _spearman(x: Floats, y: Floats) -> Statistic:
    """Correlation of ranks, which are those among all pairs in every resample."""
    return correlation(stats.rankdata(x), stats.rankdata(y))
