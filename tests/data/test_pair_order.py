"""The order of pairs: every pair once an epoch, batches of about equally many tokens, a pure function of the step."""

from __future__ import annotations

import dataclasses
from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tisdpo_jax.data import Order, balanced_batches, num_steps
from tisdpo_jax.data.order import WINDOW


def order(n: int, batch_size: int, *, seed: int = 0, epochs: float = 1.0) -> Order:
    lengths = np.random.default_rng(n).integers(1, 30, n)
    return Order(lengths, batch_size, seed, epochs)


sizes: dict[str, Any] = {"n": st.integers(1, 90), "batch_size": st.integers(1, 17), "seed": st.integers(0, 3)}


@given(**sizes, epochs=st.sampled_from([1.0, 2.0, 3.0, 0.5, 1.5, 0.1]))
def test_each_pair_is_seen_exactly_epochs_times(n: int, batch_size: int, seed: int, epochs: float) -> None:
    made = order(n, batch_size, seed=seed, epochs=epochs)
    batches = list(made.batches())
    total = int(np.ceil(round(n * epochs, 9)))
    assert made.steps == len(batches) == num_steps(n, batch_size, epochs) == -(-total // batch_size)
    assert all(batch.shape == (batch_size,) and batch.dtype == np.int64 for batch in batches)
    seen = np.concatenate(batches)
    counts = Counter(seen[seen >= 0].tolist())
    assert counts.total() == total, "fillers only for what pairs there are too few of"
    assert set(counts.values()) <= {int(np.floor(epochs)), int(np.ceil(epochs))}


@settings(max_examples=25)
@given(**sizes)
def test_pairs_stay_in_the_window_of_their_place_in_the_epoch(n: int, batch_size: int, seed: int) -> None:
    """Whole epochs one after the other: pairs are dealt out within windows of batches, and no further."""
    made = order(n, batch_size, seed=seed, epochs=3.0)
    batches = list(made.batches())
    for epoch in range(3):
        first, last = (epoch * n) // (WINDOW * batch_size), ((epoch + 1) * n - 1) // (WINDOW * batch_size)
        inside = np.concatenate(batches[first * WINDOW : (last + 1) * WINDOW])
        assert set(range(n)) <= set(inside.tolist())
    # a window holds the same pairs, whatever their lengths are
    other = dataclasses.replace(made, lengths=np.ones(n, np.int64))
    for start in range(0, made.steps, WINDOW):
        one, two = (np.concatenate(list(o.batches())[start : start + WINDOW]) for o in (made, other))
        assert sorted(one) == sorted(two)


@settings(max_examples=40)
@given(**sizes, data=st.data())
def test_any_step_may_be_asked_for_first(n: int, batch_size: int, seed: int, data: Any) -> None:
    """Nothing is remembered from step to step, so a resumed run and every process see the same batches."""
    whole = list(order(n, batch_size, seed=seed, epochs=2.0).batches())
    for step in data.draw(st.permutations(range(len(whole))))[:5]:
        again = order(n, batch_size, seed=seed, epochs=2.0)  # another object: nothing of it was asked before
        np.testing.assert_array_equal(again.batch(step), whole[step])


def test_order_depends_on_seed_and_epoch() -> None:
    lengths = np.ones(50 * WINDOW, np.int64)  # an epoch is a window
    epochs = {
        (seed, number): np.concatenate(list(Order(lengths, 50, seed, 3.0).batches())).reshape(3, -1)[number]
        for seed in range(3)
        for number in range(3)
    }
    assert len({tuple(order.tolist()) for order in epochs.values()}) == 9
    for order in epochs.values():
        assert sorted(order) == list(range(len(lengths))) and (order != np.arange(len(lengths))).mean() > 0.9


def test_order_is_the_same_for_ever() -> None:
    """A run resumes on another machine, with another numpy, where it stopped."""
    # one batch: the permutation itself
    assert Order(np.ones(8, np.int64), 8, 0, 1.0).batch(0).tolist() == [0, 3, 7, 5, 1, 2, 6, 4]
    lengths = np.asarray([9, 1, 4, 4, 7, 2, 3, 8])
    made = Order(lengths, 3, 0, 1.5)
    assert [batch.tolist() for batch in made.batches()] == [[0, 5, 3], [3, 7, 2], [2, 6, 7], [1, 4, 4]]


def test_places_beyond_the_batch_size_are_fillers_and_change_nothing_else() -> None:
    lengths = np.random.default_rng(0).integers(1, 90, 50)
    plain, filled = Order(lengths, 6, 0, 1.5), Order(lengths, 6, 0, 1.5, places=8)
    assert filled.steps == plain.steps
    for one, other in zip(filled.batches(), plain.batches(), strict=True):
        assert one.shape == (8,) and (one[6:] == -1).all()
        np.testing.assert_array_equal(one[:6], other)


def spread(lengths: Any, batches: Any) -> float:
    """Tokens of the fullest batch, less those of the emptiest, as a part of the mean."""
    totals = np.asarray([lengths[batch[batch >= 0]].sum() for batch in batches])
    return float((totals.max() - totals.min()) / totals.mean())


def test_batches_hold_about_equally_many_tokens() -> None:
    lengths = np.random.default_rng(0).lognormal(4.5, 0.8, 8 * 64).astype(np.int64) + 2  # as conversations are
    made = Order(lengths, 8, 0, 1.0)
    batches = list(made.batches())
    plain = np.concatenate([Order(lengths, 1, 0, 1.0).batch(step) for step in range(len(lengths))]).reshape(-1, 8)
    for start in range(0, len(batches), WINDOW):
        window = batches[start : start + WINDOW]
        assert spread(lengths, window) < 0.1 * spread(lengths, plain[start : start + WINDOW])
    # and not by putting long ones together: all batches are full, and in each long and short stand in any order
    assert all((batch >= 0).all() for batch in batches)
    falling = [np.corrcoef(np.arange(8), lengths[batch])[0, 1] for batch in batches]
    assert abs(np.mean(falling)) < 0.15


def test_only_the_last_window_has_fillers() -> None:
    made = order(5 * 16 * 2 + 7, 5)
    batches = list(made.batches())
    assert made.steps == 34
    assert all((batch >= 0).all() for batch in batches[: 2 * WINDOW])
    assert sum(int((batch < 0).sum()) for batch in batches[2 * WINDOW :]) == 3


def test_steps_outside_the_run_are_refused() -> None:
    assert num_steps(7, 4, 1.0) == 2
    assert num_steps(50, 1, 1.1) == 55  # 50 * 1.1 is a little above 55
    assert num_steps(5, 4, 0.0) == 0
    for step in (-1, 2):
        with pytest.raises(ValueError, match=r"step -?[0-9] is outside the 2 steps of 1 epochs"):
            order(7, 4).batch(step)


@given(n=st.integers(0, 90), batch_size=st.integers(1, 17))
def test_balanced_batches_are_all_pairs_once(n: int, batch_size: int) -> None:
    lengths = np.random.default_rng(n).integers(1, 30, n)
    batches = balanced_batches(lengths, batch_size)
    assert len(batches) == -(-n // batch_size) and all(batch.shape == (batch_size,) for batch in batches)
    seen = np.concatenate([np.zeros(0, np.int64), *batches])
    assert sorted(seen[seen >= 0].tolist()) == list(range(n))
    for one, other in zip(batches, balanced_batches(lengths, batch_size), strict=True):
        np.testing.assert_array_equal(one, other)


def test_balanced_batches_are_balanced() -> None:
    lengths = np.random.default_rng(0).lognormal(4.5, 0.8, 512).astype(np.int64) + 2
    assert spread(lengths, balanced_batches(lengths, 8)) < 0.2 * spread(lengths, np.arange(512).reshape(-1, 8))
