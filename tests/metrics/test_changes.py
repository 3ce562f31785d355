"""Laws of the before/after table: what permuting, negating and pairing must do to the numbers."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tisdpo_jax.metrics import area_under_curve, auc, compare, mean_and_error, paired_difference

numbers = st.lists(st.floats(-50, 50).map(lambda x: round(x, 3)), min_size=2, max_size=30).map(np.array)


@given(numbers, st.randoms(use_true_random=False))
def test_accuracy_is_of_signs_a_tie_one_half_and_order_does_not_matter(margins: np.ndarray, random) -> None:
    order = list(range(margins.size))
    random.shuffle(order)
    accuracy, margin, loss = compare(margins, margins**2, -3 * margins[order], margins[order] ** 2)
    assert accuracy.before == pytest.approx(np.mean((margins > 0) + 0.5 * (margins == 0)))
    assert accuracy.before + accuracy.after == pytest.approx(1.0)
    assert accuracy.before_se == pytest.approx(accuracy.after_se, abs=1e-12)
    assert margin.after == pytest.approx(-3 * margin.before, abs=1e-9)
    assert (loss.before, loss.before_se) == pytest.approx((loss.after, loss.after_se), abs=1e-9)
    for row in (accuracy, margin, loss):
        assert row.difference == pytest.approx(row.after - row.before, abs=1e-9)
    assert [row.higher_is_better for row in (accuracy, margin, loss)] == [True, True, False]
    if loss.difference_se > 0:
        assert loss.standard_errors == pytest.approx(-loss.difference / loss.difference_se)


@given(numbers)
def test_paired_difference_is_antisymmetric_and_ignores_what_pairs_have_in_common(values: np.ndarray) -> None:
    noise = np.linspace(-1, 1, values.size)
    there, back = paired_difference(values, values + noise), paired_difference(values + noise, values)
    assert there[0] == pytest.approx(-back[0], abs=1e-9) and there[1] == pytest.approx(back[1], abs=1e-9)
    by_hand = math.sqrt(((noise - noise.mean()) ** 2).sum() / (noise.size - 1) / noise.size)
    assert there[1] == pytest.approx(by_hand, abs=1e-9)
    assert paired_difference(values, values) == (0.0, 0.0)


@pytest.mark.parametrize("count", [0, 1])
def test_too_few_pairs_are_undefined_and_never_a_number(count: int) -> None:
    for change in compare(*[np.ones(count)] * 4):
        assert math.isnan(change.before_se) and math.isnan(change.standard_errors)
        assert math.isnan(change.before) == (count == 0)


def test_a_margin_that_is_not_a_number_is_not_taken_for_a_wrong_one() -> None:
    accuracy, *_ = compare([1.0, math.nan], [0.0, 0.0], [math.inf, -1.0], [0.0, math.inf])
    assert math.isnan(accuracy.before) and accuracy.after == 0.5
    assert math.isnan(mean_and_error([math.inf, -math.inf])[0])


def test_measurements_of_other_pairs_are_refused() -> None:
    with pytest.raises(ValueError, match=r"before \(3,\) and after \(2,\) .* of the same pairs"):
        paired_difference([1, 2, 3], [1, 2])
    with pytest.raises(ValueError, match="one number a pair"):
        compare([[1, 2]], [[1, 2]], [1, 2], [1, 2])


def test_area_under_the_curve_is_the_share_of_pairs_in_order() -> None:
    random = np.random.default_rng(0)
    scores = random.integers(0, 5, (30, 2)).astype(float)  # with ties
    pairs = (scores[:, None, 0] > scores[None, :, 1]) + 0.5 * (scores[:, None, 0] == scores[None, :, 1])
    assert area_under_curve(scores[:7, 0], scores[:, 1]) == pytest.approx(pairs[:7].mean())
    placements = pairs.mean(1) + pairs.mean(0)
    assert auc(scores) == pytest.approx((pairs.mean(), placements.std(ddof=1) / math.sqrt(30)))
    assert auc(np.array([[2.0, 0.0], [3.0, 1.0]])) == (1.0, 0.0) and auc(np.zeros((4, 2))) == (0.5, 0.0)
    assert math.isnan(auc(np.zeros((0, 2)))[0]) and math.isnan(area_under_curve(scores[:0, 0], scores[:, 1]))
    draws = [auc(random.normal([1.0, 0.0], 1.0, (60, 2))) for _ in range(150)]
    values, errors = np.array(draws).T
    assert abs(values.mean() - 0.7602) < 0.01  # normal, one standard deviation apart: Phi(1 / sqrt 2)
    assert abs(errors.mean() / values.std() - 1) < 0.15
