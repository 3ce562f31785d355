"""Batches that are prepared ahead come in order, and a pass sees every group once."""

from __future__ import annotations

import contextlib
import threading
from typing import Any

import jax
import numpy as np
import pytest

from tisdpo_jax.data import Batches, balanced_batches, fit
from tisdpo_jax.testing import device_mesh, random_encoded
from tisdpo_jax.training.interrupt import Interrupt, Interrupted
from tisdpo_jax.training.passes import ahead, collect, one_pass

ENCODED = random_encoded(0, pairs=13, responses=3)


def batches(**options: Any) -> tuple[Batches, list[np.ndarray]]:
    order = balanced_batches(ENCODED.lengths(), 4)
    columns = {"number": np.arange(13, dtype=np.float32)}
    return Batches(ENCODED, fit(ENCODED, order, elements=6, shards=4, **options), columns), order


def test_items_come_in_order_and_a_fault_where_its_item_would_have() -> None:
    assert list(ahead(lambda x: x * x, range(7))) == [x * x for x in range(7)] and not list(ahead(str, ()))
    taken = []
    with pytest.raises(ZeroDivisionError):
        for value in ahead(lambda x: 6 // x, (3, 2, 1, 0, 1)):
            taken.append(value)
    assert taken == [2, 3, 6]


def test_as_many_are_made_ahead_as_it_says_and_by_another_thread() -> None:
    made, here = [], threading.get_ident()

    def make(item: int) -> int:
        made.append((item, threading.get_ident()))
        return item

    with contextlib.closing(ahead(make, range(9), depth=2)) as items:
        assert not made and next(items) == 0
        for item in items:
            if item == 3:
                break
    # item 3 was handed out, so no more than 4 and 5 were begun; and closing waited, so nothing comes behind it
    assert [item for item, _ in made] in ([0, 1, 2, 3, 4], [0, 1, 2, 3, 4, 5], [0, 1, 2, 3])
    assert all(thread != here for _, thread in made)
    assert not any(thread.name.startswith("batches") for thread in threading.enumerate())


def test_the_next_item_is_made_while_the_last_is_used() -> None:
    begun = [threading.Event() for _ in range(4)]

    def make(item: int) -> int:
        begun[item].set()
        return item

    for item in ahead(make, range(4)):
        assert all(event.wait(30) for event in begun[: item + 2])


@pytest.mark.parametrize("options", [{}, {"packed": False}, {"sides": (2, 0)}], ids=str)
def test_a_pass_sees_every_group_once(options: dict[str, Any]) -> None:
    made, order = batches(**options)
    mesh = device_mesh(2, 2, 2)
    run = jax.jit(lambda batch: {"length": batch.mask.sum(-1), "number": batch.columns["number"]})
    whole = collect(run, one_pass(made, order, mesh, label="lengths"), len(ENCODED))
    sides = list(made.layout.sides)
    np.testing.assert_array_equal(whole["length"], ENCODED.responses.sizes[:, sides])
    np.testing.assert_array_equal(whole["number"], np.arange(13))


def test_a_pass_ends_between_two_batches_when_asked_to() -> None:
    made, order = batches()
    interrupt, seen = Interrupt(), []
    with pytest.raises(Interrupted, match="while lengths"):
        for indices, _ in one_pass(made, order, device_mesh(1, 4, 2), label="lengths", interrupt=interrupt):
            seen.append(indices)
            if len(seen) == 2:
                interrupt.ask()
    np.testing.assert_array_equal(seen, order[:2])
