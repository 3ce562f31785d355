"""Laws of win rates and Bradley-Terry ratings."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tisdpo_jax.metrics import Outcomes, bradley_terry, ratings, win_rate
from tisdpo_jax.metrics.ratings import ELO

outcomes = st.lists(st.sampled_from([0.0, 0.5, 1.0]), min_size=2, max_size=40).map(np.array)


def plain(values) -> Outcomes:
    array = np.asarray(values, float)
    return Outcomes(array, np.zeros(array.shape, bool))


def games(strengths: np.ndarray, prompts: int, seed: int) -> dict[tuple[str, str], Outcomes]:
    """Simulated comparisons of models "0", "1", ... on the same prompts."""
    random = np.random.default_rng(seed)
    found = {}
    for one, other in itertools.combinations(range(len(strengths)), 2):
        chance = 1 / (1 + np.exp(strengths[other] - strengths[one]))
        found[str(one), str(other)] = plain(random.random(prompts) < chance)
    return found


@given(outcomes)
def test_swapping_the_models_flips_the_rate(values: np.ndarray) -> None:
    there, back = win_rate("a", "b", plain(values)), win_rate("b", "a", plain(1 - values))
    assert there.rate.value + back.rate.value == pytest.approx(1.0)
    assert (there.wins, there.ties, there.losses) == (back.losses, back.ties, back.wins)
    assert there.rate.low + back.rate.high == pytest.approx(1.0, abs=1e-9)


def test_two_models_have_the_closed_form() -> None:
    for wins, losses in ((30.0, 10.0), (7.5, 2.5), (12.0, 0.0), (0.0, 0.0)):
        strengths = bradley_terry([[0, wins], [losses, 0]])
        expected = np.log((wins + 0.5) / (losses + 0.5))
        assert strengths[0] - strengths[1] == pytest.approx(expected, abs=1e-9)
        assert strengths.sum() == pytest.approx(0.0, abs=1e-12)


def test_known_strengths_come_back() -> None:
    truth = np.array([1.5, 0.3, -0.4, -1.4])
    found = []
    for seed in range(12):
        named = {rating.name: rating.elo.value for rating in ratings("0123", games(truth, 400, seed), resamples=100)}
        found.append([named[str(number)] / ELO for number in range(4)])
    error = np.mean(found, axis=0) - truth
    assert np.abs(error).max() < 3 * np.std(found, axis=0, ddof=1).max() / np.sqrt(12) + 0.01


def test_intervals_of_ratings_cover_the_truth() -> None:
    truth = np.array([0.8, 0.0, -0.8])
    hits = []
    for seed in range(60):
        for rating in ratings("012", games(truth, 120, seed), resamples=200, seed=seed):
            hits.append(rating.elo.low <= ELO * truth[int(rating.name)] <= rating.elo.high)
    assert 0.88 <= np.mean(hits) <= 0.99


def test_expected_wins_are_the_wins() -> None:
    """The likelihood's maximum expects of every model just the wins that it had, the added half ones among them."""
    wins = np.random.default_rng(0).integers(3, 30, (5, 5)).astype(float)
    np.fill_diagonal(wins, 0)
    strengths = bradley_terry(wins)
    chance = 1 / (1 + np.exp(strengths[None] - strengths[:, None]))
    games = wins + wins.T + 1 - np.eye(5)
    np.testing.assert_allclose((games * chance).sum(-1), wins.sum(-1) + 2, rtol=1e-9)
    permuted = [3, 1, 4, 0, 2]
    np.testing.assert_allclose(bradley_terry(wins[permuted][:, permuted]), strengths[permuted], atol=1e-9)
    np.testing.assert_allclose(bradley_terry(wins.T), -bradley_terry(wins), atol=1e-9)
    np.testing.assert_allclose(bradley_terry(np.stack([wins, wins.T])), [strengths, -strengths], atol=1e-9)


def test_a_model_that_wins_or_loses_everything_is_finite() -> None:
    wins = np.array([[0, 500, 500], [0, 0, 250], [0, 250, 0]], float)
    strengths = bradley_terry(wins)
    assert np.isfinite(strengths).all() and strengths[0] > strengths[1] == pytest.approx(strengths[2])
    never_met = np.array([[0, 5, 0, 0], [5, 0, 0, 0], [0, 0, 0, 5], [0, 0, 5, 0]], float)
    np.testing.assert_allclose(bradley_terry(never_met), 0.0, atol=1e-9)


def test_the_anchor_is_0_and_moves_all_others_alike() -> None:
    found = games(np.array([1.0, 0.0, -1.0]), 80, 3)
    mean, anchored = (
        {rating.name: rating.elo for rating in ratings("012", found, anchor=anchor, resamples=100)}
        for anchor in ("", "2")
    )
    assert anchored["2"] == (0.0, 0.0, 0.0)
    assert anchored["0"].value - anchored["1"].value == pytest.approx(mean["0"].value - mean["1"].value)
    assert sum(interval.value for interval in mean.values()) == pytest.approx(0.0, abs=1e-9)
    assert [rating.name for rating in ratings("012", found, resamples=100)] == ["0", "1", "2"]
    with pytest.raises(ValueError, match="none of"):
        ratings("012", found, anchor="x")


def test_comparisons_without_a_verdict_do_not_count() -> None:
    values = np.array([1.0, np.nan, 0.0, 1.0, np.nan])
    rate = win_rate("a", "b", plain(values))
    assert rate.rate.value == pytest.approx(2 / 3) and rate.undecided == 2
    # as if they had not been held: ratings too
    found = {("a", "b"): plain(values), ("b", "c"): plain([1.0, 0.0, np.nan, np.nan, 0.5])}
    held = bradley_terry([[0, 2, 0], [1, 0, 1.5], [0, 1.5, 0]]) * ELO
    by_name = {rating.name: rating.elo.value for rating in ratings("abc", found, resamples=100)}
    assert [by_name[name] for name in "abc"] == pytest.approx(held)
    nothing = win_rate("a", "b", plain([np.nan, np.nan]))
    assert np.isnan(nothing.rate.value) and nothing.undecided == 2
