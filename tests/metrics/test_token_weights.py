"""Weights by side and by token: against a slow count by hand, and errors that know which tokens stand in one pair."""

from __future__ import annotations

import math

import numpy as np
import pytest

from tisdpo_jax.metrics import token_means, weight_limits, weight_statistics


def test_means_and_counts_are_those_by_hand() -> None:
    random = np.random.default_rng(0)
    tokens, pairs = random.integers(0, 12, 300), np.sort(random.integers(0, 25, 300))
    values = random.normal(tokens / 10, 1.0)
    found = token_means(tokens, values, pairs, minimum=20)
    assert [one.mean for one in found] == sorted((one.mean for one in found), reverse=True)
    assert {one.token for one in found} == {t for t in range(12) if (tokens == t).sum() >= 20}
    for one in found:
        own = values[tokens == one.token]
        assert (one.count, one.pairs) == (own.size, len(set(pairs[tokens == one.token])))
        assert one.mean == pytest.approx(own.mean())


def test_one_occurrence_a_pair_has_the_usual_error() -> None:
    values = np.random.default_rng(1).normal(size=40)
    (one,) = token_means(np.zeros(40, int), values, np.arange(40))
    assert one.error == pytest.approx(values.std(ddof=1) / math.sqrt(40))


def test_repeating_a_token_within_its_pairs_makes_nothing_surer() -> None:
    values, pairs = np.random.default_rng(2).normal(size=30), np.arange(30)
    (once,), (often,) = (token_means(np.zeros(30 * k, int), np.repeat(values, k), np.repeat(pairs, k)) for k in (1, 4))
    assert often.error == pytest.approx(once.error) and often.count == 4 * once.count


def test_order_does_not_matter_and_what_is_not_finite_is_left_out() -> None:
    random = np.random.default_rng(3)
    tokens, values, pairs = random.integers(0, 5, 100), random.normal(size=100), random.integers(0, 9, 100)
    spoiled = np.where(np.arange(100) % 7 == 0, -np.inf, values)
    kept, order = np.isfinite(spoiled), random.permutation(100)
    there = token_means(tokens[order], spoiled[order], pairs[order])
    here = token_means(tokens[kept], values[kept], pairs[kept])
    for one, other in zip(there, here, strict=True):
        assert (one.token, one.count, one.pairs) == (other.token, other.count, other.pairs)
        assert (one.mean, one.error) == pytest.approx((other.mean, other.error))
    assert token_means([], [], []) == [] and math.isnan(token_means([1] * 5, [0.0] * 5, [3] * 5)[0].error)


def paper_weights(ratios: np.ndarray) -> np.ndarray:
    """The paper's formula on log-ratios [..., 2, N], written here once more."""
    sign = np.array([[1.0], [-1.0]])
    return np.exp(sign * np.clip(ratios, -0.5, 1.5)).astype(np.float32)


def test_weight_statistics_by_side() -> None:
    random = np.random.default_rng(1)
    ratios = random.normal(0.4, 1.0, (50, 2, 20))
    mask = random.random(ratios.shape) < 0.7
    weights = paper_weights(ratios)
    for side, statistics in enumerate(weight_statistics(weights, mask, limits=weight_limits())):
        real = weights[:, side][mask[:, side]].astype(np.float64)
        low, high = (ratios[:, side][mask[:, side]] <= -0.5).mean(), (ratios[:, side][mask[:, side]] >= 1.5).mean()
        assert statistics.count == real.size
        assert (statistics.mean, statistics.std) == pytest.approx((real.mean(), real.std()))
        assert list(statistics.quantiles) == sorted(statistics.quantiles)
        assert statistics.quantiles[0] == real.min() and statistics.quantiles[-1] == real.max()
        clamped = (low, high) if side == 0 else (high, low)  # mu = -1 turns the ends round
        assert (statistics.share_at_lowest, statistics.share_at_highest) == pytest.approx(clamped)


def test_what_the_mask_hides_does_not_count_and_swapping_sides_swaps_the_statistics() -> None:
    weights = np.random.default_rng(2).gamma(2.0, 1.0, (4, 2, 6))
    mask = np.ones_like(weights)
    mask[:, :, 4:] = 0
    spoiled = np.where(mask == 0, np.nan, weights)
    assert weight_statistics(spoiled, mask, limits=weight_limits()) == weight_statistics(
        weights[..., :4], mask[..., :4], limits=weight_limits()
    )
    both = ((0.5, 2.0), (0.5, 2.0))
    there = weight_statistics(weights, mask, limits=both)
    assert weight_statistics(weights[:, ::-1], mask[:, ::-1], limits=both) == there[::-1]


def test_limits_are_those_of_the_paper_and_scale_with_k() -> None:
    chosen, rejected = weight_limits()
    assert chosen == pytest.approx((0.607, 4.482), abs=5e-4) and rejected == pytest.approx((0.223, 1.649), abs=5e-4)
    assert np.allclose(weight_limits(scale=3.0), 3 * np.array(weight_limits()))
    assert weight_limits(mu=-1.0) == weight_limits()[::-1]


def test_no_weights_and_no_limits_are_undefined() -> None:
    empty, _ = weight_statistics(np.zeros((3, 2, 4)), np.zeros((3, 2, 4)), limits=weight_limits())
    assert empty.count == 0 and all(math.isnan(value) for value in empty.quantiles)
    unknown, _ = weight_statistics(np.ones((3, 2, 4)), np.ones((3, 2, 4)))
    assert unknown.mean == 1 and math.isnan(unknown.share_at_lowest)
    with pytest.raises(ValueError, match=r"must both be \[..., 2, N\]"):
        weight_statistics(np.ones((2, 4)), np.ones((2, 3)))
    with pytest.raises(ValueError, match=r"must both be \[..., 2, N\]"):
        weight_statistics(np.ones((4, 3)), np.ones((4, 3)))
