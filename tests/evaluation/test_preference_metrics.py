"""Laws of the summaries: what permuting, negating, doubling and padding pairs must do to the numbers."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tisdpo_jax.evaluation import (
    as_json,
    compare,
    paired_difference,
    preference_summary,
    weight_limits,
    weight_statistics,
)

numbers = st.lists(st.floats(-50, 50).map(lambda x: round(x, 3)), min_size=2, max_size=30).map(np.array)


@given(numbers)
def test_a_model_and_its_opposite_share_the_accuracy(margins: np.ndarray) -> None:
    one, other = preference_summary(margins, margins), preference_summary(-margins, -margins)
    assert one.reward_accuracy + other.reward_accuracy == pytest.approx(1.0, abs=1e-12)
    assert one.margin == pytest.approx(-other.margin, abs=1e-12)
    assert one.reward_accuracy_se == pytest.approx(other.reward_accuracy_se, abs=1e-12)


@given(numbers, st.randoms(use_true_random=False))
def test_the_order_of_pairs_does_not_matter(margins: np.ndarray, random) -> None:
    order = list(range(margins.size))
    random.shuffle(order)
    first, second = preference_summary(margins, margins**2), preference_summary(margins[order], margins[order] ** 2)
    for name, value in vars(first).items():
        assert getattr(second, name) == pytest.approx(value, rel=1e-9, abs=1e-9)


@given(numbers)
def test_accuracy_depends_on_signs_alone_and_a_tie_counts_one_half(margins: np.ndarray) -> None:
    summary = preference_summary(margins, margins)
    wins, ties = np.sum(margins > 0), np.sum(margins == 0)
    assert summary.reward_accuracy == pytest.approx((wins + ties / 2) / margins.size)
    assert preference_summary(margins * 3, margins).reward_accuracy == summary.reward_accuracy


@given(numbers)
def test_standard_error_is_that_of_a_mean(values: np.ndarray) -> None:
    n = values.size
    by_hand = math.sqrt(sum((x - sum(values) / n) ** 2 for x in values) / (n - 1) / n)
    assert preference_summary(values, values).loss_se == pytest.approx(by_hand, rel=1e-9, abs=1e-9)


def test_the_standard_error_of_an_untrained_model_is_zero() -> None:
    summary = preference_summary(np.zeros(5), np.full(5, math.log(2)))
    assert (summary.reward_accuracy, summary.reward_accuracy_se, summary.margin, summary.margin_se) == (0.5, 0, 0, 0)
    assert summary.loss == pytest.approx(math.log(2)) and summary.loss_se == pytest.approx(0)


@given(numbers)
def test_paired_difference_is_antisymmetric_and_ignores_what_pairs_have_in_common(values: np.ndarray) -> None:
    noise = np.linspace(-1, 1, values.size)
    there, back = paired_difference(values, values + noise), paired_difference(values + noise, values)
    assert there[0] == pytest.approx(-back[0], abs=1e-9) and there[1] == pytest.approx(back[1], abs=1e-9)
    assert there[1] == pytest.approx(preference_summary(noise, noise).margin_se, abs=1e-9)
    assert paired_difference(values, values) == (0.0, 0.0)


def test_compare_says_what_the_summaries_and_paired_differences_say() -> None:
    random = np.random.default_rng(0)
    arrays = before_margins, before_losses, after_margins, after_losses = random.normal(size=(4, 40))
    before, after = preference_summary(before_margins, before_losses), preference_summary(after_margins, after_losses)
    accuracy, margin, loss = compare(*arrays)
    assert [row.name for row in (accuracy, margin, loss)] == ["reward accuracy", "margin", "DPO loss"]
    assert (accuracy.before, accuracy.before_se) == (before.reward_accuracy, before.reward_accuracy_se)
    assert (margin.after, margin.after_se) == (after.margin, after.margin_se)
    assert (loss.before, loss.after) == (before.loss, after.loss)
    assert (margin.difference, margin.difference_se) == paired_difference(before_margins, after_margins)
    for row in (accuracy, margin, loss):
        assert row.difference == pytest.approx(row.after - row.before)
    assert [row.higher_is_better for row in (accuracy, margin, loss)] == [True, True, False]
    assert loss.standard_errors == pytest.approx(-loss.difference / loss.difference_se)


@pytest.mark.parametrize("count", [0, 1])
def test_too_few_pairs_are_undefined_and_never_a_number(count: int) -> None:
    summary = preference_summary(np.ones(count), np.ones(count))
    assert summary.count == count and math.isnan(summary.margin_se)
    row = json.loads(json.dumps(as_json(summary), allow_nan=False))
    assert row["reward_accuracy_se"] is None and row["margin"] == (1.0 if count else None)
    assert all(math.isnan(change.standard_errors) for change in compare(*[np.ones(count)] * 4))


def test_a_margin_that_is_not_a_number_is_not_taken_for_a_wrong_one() -> None:
    assert math.isnan(preference_summary([1.0, math.nan], [0.0, 0.0]).reward_accuracy)
    infinite = preference_summary([math.inf, -1.0], [0.0, math.inf])
    assert infinite.reward_accuracy == 0.5 and as_json(infinite)["loss"] is None


def test_measurements_of_other_pairs_are_refused() -> None:
    with pytest.raises(ValueError, match="3 values before but 2 after"):
        paired_difference([1, 2, 3], [1, 2])
    with pytest.raises(ValueError, match="2 margins but 1 losses"):
        preference_summary([1, 2], [1])
    with pytest.raises(ValueError, match="one number a pair"):
        preference_summary([[1, 2]], [[1, 2]])


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
    assert empty.count == 0 and all(value is None for value in as_json(empty)["quantiles"])
    unknown, _ = weight_statistics(np.ones((3, 2, 4)), np.ones((3, 2, 4)))
    assert unknown.mean == 1 and math.isnan(unknown.share_at_lowest)
    with pytest.raises(ValueError, match=r"must both be \[..., 2, N\]"):
        weight_statistics(np.ones((2, 4)), np.ones((2, 3)))
    with pytest.raises(ValueError, match=r"must both be \[..., 2, N\]"):
        weight_statistics(np.ones((4, 3)), np.ones((4, 3)))
