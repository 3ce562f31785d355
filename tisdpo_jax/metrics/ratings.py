"""Win rates of two models, and Bradley-Terry ratings of several, with intervals over resampled prompts."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import expit

from tisdpo_jax.metrics.intervals import Floats, Interval, bootstrap, share_interval

ELO = 400.0 / math.log(10.0)
"""Elo points of one nat: 400 points are odds of ten to one."""

_STEPS = 100  # of Newton, at most


@dataclasses.dataclass(frozen=True, eq=False)
class Outcomes:
    """One model against another, prompt by prompt."""

    values: Floats  # [n] 1 the first wins, 0 the second, 1/2 a tie, nan no verdict
    inconsistent: NDArray[np.bool_]  # [n], ties that are none: the verdict turned with the order


@dataclasses.dataclass(frozen=True)
class WinRate:
    """One model against another. `undecided` comparisons have no clear verdict and are not in the rate."""

    first: str
    second: str
    rate: Interval  # of `first`, ties counted one half
    wins: int
    ties: int  # inconsistent ones among them
    losses: int
    inconsistent: int
    undecided: int


@dataclasses.dataclass(frozen=True)
class Rating:
    """Strength of one model on the Elo scale."""

    name: str
    elo: Interval


def win_rate(first: str, second: str, outcomes: Outcomes, *, resamples: int = 2000, seed: int = 0) -> WinRate:
    """Win rate of `first` over the prompts of `outcomes`; swapping the models gives one minus it."""
    values = outcomes.values
    decided = np.isfinite(values)
    rate = share_interval(values, np.arange(values.size), kept=decided, resamples=resamples, seed=seed)
    wins, ties, losses = (int((values == value).sum()) for value in (1.0, 0.5, 0.0))
    inconsistent, undecided = int(outcomes.inconsistent.sum()), int(values.size - decided.sum())
    return WinRate(first, second, rate, wins, ties, losses, inconsistent, undecided)


def bradley_terry(wins: ArrayLike) -> Floats:
    """Strengths `[..., M]` in nats, of mean 0: the maximum of the likelihood of Bradley and Terry (1952).

    `P(i beats j) = sigmoid(strength_i - strength_j)`; a tie is half a win for each. One game is added between any two
    models, half of it won by each: a model that won or lost everything has a finite rating then, and models that never
    met can be compared; with n games a pair the pull to 0 is of order 1 / n. Two models: the difference is
    `log((wins + 1 / 2) / (losses + 1 / 2))`.

    Args:
      wins: `[..., M, M]`, how often i beat j, ties counted one half; the diagonal is not read.
    """
    won = np.asarray(wins, np.float64)
    models = won.shape[-1]
    off = 1.0 - np.eye(models)
    won = (won + 0.5) * off
    games = won + np.swapaxes(won, -1, -2)
    strengths = np.zeros(won.shape[:-1])
    for _ in range(_STEPS):  # the likelihood is concave
        chance = expit(strengths[..., :, None] - strengths[..., None, :])
        gradient = (won - games * chance).sum(-1)
        curvature = games * chance * (1.0 - chance) * off
        hessian = curvature.sum(-1)[..., None] * np.eye(models) - curvature
        # a constant added to all strengths changes nothing: that direction is fixed, at the mean
        step = np.linalg.solve(hessian + 1.0 / models, gradient[..., None])[..., 0]
        largest = np.abs(step).max(-1, keepdims=True)
        strengths = strengths + step * np.minimum(1.0, 2.0 / np.maximum(largest, 1e-300))
        if largest.max() < 1e-10:
            break
    return strengths - strengths.mean(-1, keepdims=True)


def ratings(
    names: Sequence[str],
    outcomes: Mapping[tuple[str, str], Outcomes],
    *,
    anchor: str = "",
    resamples: int = 2000,
    seed: int = 0,
) -> tuple[Rating, ...]:
    """Elo ratings of models from all their comparisons, best first; whole prompts are resampled.

    Args:
      outcomes: of (a, b) over the same prompts in the same order, one entry for two models that were compared.
      anchor: the model whose rating is 0; empty makes the mean 0.
    """
    place = {name: number for number, name in enumerate(names)}
    if anchor and anchor not in place:
        raise ValueError(f"the anchor {anchor!r} is none of {', '.join(names)}")
    prompts = len(next(iter(outcomes.values())).values)

    def statistics(weights: Floats) -> Floats:
        wins = np.zeros((weights.shape[0], len(names), len(names)))
        for (one, other), outcome in outcomes.items():
            decided = np.isfinite(outcome.values)
            value = np.where(decided, outcome.values, 0.0)
            wins[:, place[one], place[other]] += weights @ value
            wins[:, place[other], place[one]] += weights @ (decided - value)
        strengths = ELO * bradley_terry(wins)
        return strengths - strengths[:, [place[anchor]]] if anchor else strengths

    intervals = bootstrap(statistics, np.arange(prompts), resamples=resamples, seed=seed)
    rated = [Rating(name, interval) for name, interval in zip(names, intervals, strict=True)]
    return tuple(sorted(rated, key=lambda rating: -rating.elo.value))
