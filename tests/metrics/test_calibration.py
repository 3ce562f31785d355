"""Calibration of simulated bets: those that are what they say, those that boast, and those that doubt."""

from __future__ import annotations

import math

import numpy as np
import pytest

from tisdpo_jax.metrics import calibrate


def bets(seed: int, count: int, factor: float = 1.0) -> np.ndarray:
    """Margins of which a share of exactly sigmoid(|margin|) is positive, then stretched by `factor`."""
    random = np.random.default_rng(seed)
    size = random.exponential(1.5, count)
    right = random.random(count) < 1 / (1 + np.exp(-size))
    return np.where(right, size, -size) * factor


def test_calibrated_margins_have_no_error_beyond_chance() -> None:
    errors = [calibrate(bets(seed, 2000), np.arange(2000), resamples=100) for seed in range(20)]
    found = np.array([one.error.value - one.chance for one in errors])
    assert abs(found.mean()) < 3 * found.std(ddof=1) / math.sqrt(20) + 1e-4
    assert max(one.error.value for one in errors) < 0.05


@pytest.mark.parametrize("factor", [3.0, 0.3])
def test_boasting_and_doubting_are_seen(factor: float) -> None:
    found = calibrate(bets(0, 3000, factor), np.arange(3000), resamples=200)
    assert found.error.low > 2 * found.chance
    sides = [one.accuracy - one.confidence for one in found.bins if one.count > 100]
    assert all(side < 0 for side in sides) if factor > 1 else all(side > 0 for side in sides)


def test_the_brier_score_is_best_for_the_true_margins() -> None:
    honest, boast = (calibrate(bets(1, 5000, factor), np.arange(5000), resamples=100) for factor in (1.0, 3.0))
    assert honest.brier.value < boast.brier.value
    sure, wrong = (calibrate(np.full(9, margin), np.arange(9)).brier.value for margin in (9.0, -9.0))
    assert sure < 1e-6 and wrong > 0.999
    nothing = calibrate(np.zeros(50), np.arange(50))
    assert nothing.brier.value == pytest.approx(0.25) and nothing.error.value == pytest.approx(0.0)


def test_bins_hold_every_pair_once_and_give_the_error_by_hand() -> None:
    margins = np.concatenate([bets(2, 500), [0.0, 50.0, -50.0, 1000.0]])
    found = calibrate(margins, np.arange(504), resamples=100)
    assert sum(one.count for one in found.bins) == 504
    by_hand = sum(one.count * abs(one.accuracy - one.confidence) for one in found.bins if one.count) / 504
    assert found.error.value == pytest.approx(by_hand)
    assert [one.low for one in found.bins] == pytest.approx(np.linspace(0.5, 0.95, 10))


def test_no_pairs_are_undefined() -> None:
    empty = calibrate([], [])
    assert math.isnan(empty.error.value) and math.isnan(empty.chance) and all(one.count == 0 for one in empty.bins)
