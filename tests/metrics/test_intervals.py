"""Laws of resampled intervals: they cover the truth about as often as they say, whole clusters move together."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from tisdpo_jax.metrics import intervals, mean_interval, wilson
from tisdpo_jax.metrics.intervals import bootstrap, share_interval


def covered(draw, truth: float, trials: int = 150) -> float:
    """How often the interval of `draw(random) -> (values, clusters)` holds the truth."""
    hits = 0
    for seed in range(trials):
        values, clusters = draw(np.random.default_rng(seed))
        found = mean_interval(values, clusters, resamples=200, seed=seed)
        hits += found.low <= truth <= found.high
    return hits / trials


def test_it_covers_the_truth_at_about_its_level() -> None:
    def pairs(random):
        return random.gamma(2.0, 1.0, 60), np.arange(60)

    # three standard errors of 150 trials are 0.05; percentile intervals of 60 skewed values fall a little short
    assert 0.88 <= covered(pairs, 2.0) <= 0.985


def test_pairs_that_share_a_prompt_are_drawn_together() -> None:
    def shared(random):
        prompts = np.repeat(np.arange(40), 5)
        return random.normal(size=40)[prompts] + 0.2 * random.normal(size=200), prompts

    assert 0.88 <= covered(shared, 0.0) <= 0.985
    # taken for 200 independent pairs, the intervals would be far too narrow: this is why
    assert covered(lambda random: (shared(random)[0], np.arange(200)), 0.0) < 0.7


def test_repeating_every_pair_within_its_cluster_changes_nothing() -> None:
    values = np.random.default_rng(0).normal(size=30)
    once = mean_interval(values, np.arange(30))
    thrice = mean_interval(np.repeat(values, 3), np.repeat(np.arange(30), 3))
    assert thrice == pytest.approx(once)


def test_the_same_seed_gives_the_same_interval_and_names_of_clusters_do_not_matter() -> None:
    values = np.random.default_rng(1).normal(size=50)
    one = mean_interval(values, np.arange(50), seed=3)
    assert mean_interval(values, [f"p{n:02d}" for n in range(50)], seed=3) == one
    other = mean_interval(values, np.arange(50), seed=4)
    assert other != one and other.value == one.value and other.low == pytest.approx(one.low, abs=0.05)
    assert mean_interval(-values, np.arange(50), seed=3) == pytest.approx((-one.value, -one.high, -one.low))


def test_blocks_of_resamples_are_one_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(2).normal(size=20)
    whole = mean_interval(values, np.arange(20), resamples=500)
    monkeypatch.setattr(intervals, "_CELLS", 100)
    assert mean_interval(values, np.arange(20), resamples=500) == pytest.approx(whole)


def test_all_right_is_not_certainty() -> None:
    right = share_interval(np.ones(5), np.arange(5))
    assert right.value == 1 and right.high == 1 and 0.5 < right.low < 0.6
    # five pairs of one prompt say less than five of five
    assert share_interval(np.ones(5), [0, 0, 1, 1, 1]).low < right.low
    assert share_interval(np.zeros(5), np.arange(5)).high == pytest.approx(1 - right.low)
    ties = share_interval(np.full(4, 0.5), np.arange(4))
    assert ties.value == 0.5 and ties.low < 0.3 and ties.high > 0.7
    assert share_interval([1, 1, 0.5], np.arange(3)).value < 1


def test_wilson_is_that_of_scipy_where_successes_are_whole() -> None:
    for successes, trials in ((15, 50), (0, 4), (9, 9)):
        expected = stats.binomtest(successes, trials).proportion_ci(method="wilson")
        assert wilson(successes / trials, trials) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_what_is_not_defined_is_nan() -> None:
    assert all(math.isnan(x) for x in mean_interval([], []))
    lone = mean_interval([2.0, 3.0], [7, 7])
    assert lone.value == 2.5 and math.isnan(lone.low)
    part = mean_interval([1.0, math.nan, 3.0], np.arange(3), kept=[True, False, True])
    assert part.value == 2.0 and part.low >= 1.0
    assert math.isnan(mean_interval([1.0, 2.0], [0, 1], kept=[False, False]).value)
    with pytest.raises(ValueError, match="one value a pair"):
        mean_interval(np.ones(4), np.ones((2, 2)))


def test_several_statistics_share_their_resamples() -> None:
    values = np.random.default_rng(3).normal(size=(25, 2))

    def both(weights):
        return np.stack([weights @ values[:, k] / weights.sum(-1) for k in (0, 1)], axis=-1)

    for k, interval in enumerate(bootstrap(both, np.arange(25), seed=9)):
        assert interval == pytest.approx(mean_interval(values[:, k], np.arange(25), seed=9))
