"""Means by token: against a slow count by hand, and errors that know which tokens stand in one pair."""

from __future__ import annotations

import math

import numpy as np
import pytest

from tisdpo_jax.evaluation.extremes import TokenMean, extreme_grid, token_means


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


def test_the_table_shows_both_ends() -> None:
    found = [TokenMean(n, 9, 3, 1.0 - n / 10, 0.1) for n in range(40)]
    grid = extreme_grid("t", found, [f"w{n}" for n in range(40)], shown=3)
    assert [row[0] for row in grid.rows] == ["w0", "w1", "w2", "w37", "w38", "w39"]
    assert grid.rows[0][5] == pytest.approx(math.e)
    assert len(extreme_grid("t", found[:6], [str(n) for n in range(6)], shown=3).rows) == 6
