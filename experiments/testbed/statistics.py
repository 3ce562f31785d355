"""How well scores find key tokens, and what differs between methods, over seeds."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import stats

from tisdpo_jax.metrics import area_under_curve, paired_difference

Floats = npt.NDArray[np.float64]


class Found(NamedTuple):
    """How well token scores tell true rewards."""

    good: float  # area under the curve: a good token above any other
    bad: float  # a bad token below any other
    rank: float  # Spearman's correlation of score and reward

    @property
    def keys(self) -> float:
        """Area under the curve of key tokens, good and bad alike."""
        return (self.good + self.bad) / 2


class Difference(NamedTuple):
    mean: float
    error: float  # standard error of the mean
    p: float  # of a two-sided t-test on pairs


def quality(scores: Floats, rewards: Floats, mask: Floats) -> Found:
    """Scores of tokens against their true rewards, over all real tokens together.

    Args:
      scores, rewards, mask: the same shape.
    """
    real = mask > 0
    seen, true = scores[real], rewards[real]
    constant = np.ptp(seen) == 0 or np.ptp(true) == 0
    rank = 0.0 if constant else float(stats.spearmanr(seen, true).statistic)
    good = area_under_curve(seen[true > 0], seen[true <= 0])
    bad = area_under_curve(-seen[true < 0], -seen[true >= 0])
    return Found(good, bad, rank)


def paired(values: Floats, other: Floats) -> Difference:
    """`values - other`, `[S]` each, same seeds in the same order. p is 1 where nothing differs."""
    p = 1.0 if not (values != other).any() else float(stats.ttest_rel(values, other).pvalue)
    return Difference(*paired_difference(other, values), p)


def at_kl(rewards: Floats, kls: Floats, kl: float) -> Floats:
    """Reward of each seed where its policies spend `kl`: between the points of its grid, and of no training at 0.

    Args:
      rewards, kls: `[S, points]`, in any order; a point (0, reward without training) is to be among them.
      kl: at most the largest of each seed; beyond it the reward is that at the largest.
    """
    found = np.empty(len(rewards))
    for seed, (reward, spent) in enumerate(zip(rewards, kls, strict=True)):
        order = np.argsort(spent)
        found[seed] = np.interp(kl, spent[order], np.maximum.accumulate(reward[order]))
    return found
