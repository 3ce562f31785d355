"""Last hidden states on disk: what was written for a token is read for it, whatever batch it then stands in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from tisdpo_jax.data import Batches, Share, States, create, fit, make_batch, open_states
from tisdpo_jax.testing import random_encoded

WIDTH = 4
ENCODED = random_encoded(0, pairs=10, elements=5)


def value(pair: int, side: int, element: int) -> np.ndarray:
    """Numbers that bfloat16 holds exactly, and that say where they belong."""
    return np.asarray([pair, side, element, 1.0], np.float32)


def written(path: Path, dtype: str, **layout: Any) -> States:
    """The states of all pairs, from batches of 4 in no particular order, the last with fillers."""
    batches = [np.asarray(x) for x in ([7, 2, 9, 0], [1, 3, 4, 8], [5, -1, 6, -1])]
    made = fit(ENCODED, batches, elements=5, **layout)
    found = create(path, ENCODED, WIDTH, dtype)
    for indices in batches:
        view = make_batch(ENCODED, indices, layout=made).views["main"]
        by_slot = np.full((*view.slots.elements.shape, WIDTH), 99.0, np.float32)  # in empty slots too
        for row, slot in np.argwhere(view.slots.elements >= 0):
            number, rest = divmod(int(view.slots.elements[row, slot]), 10)
            by_slot[row, slot] = value(int(indices[number]), *divmod(rest, 5))
        by_slot = by_slot.astype(ml_dtypes.bfloat16) if dtype == "bfloat16" else by_slot
        found.write(indices, view.slots.elements, by_slot, made)
    return found


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    "layout",
    [{}, {"packed": False}, {"parts": 2}, {"sides": (1, 0)}, {"sides": (1,)}, {"sides": (0,), "parts": 3}],
    ids=str,
)
def test_what_is_read_for_a_token_is_what_was_written_for_it(
    tmp_path: Path, layout: dict[str, Any], dtype: str
) -> None:
    written(tmp_path / "states.npy", dtype)
    found = open_states(tmp_path / "states.npy", ENCODED, WIDTH, dtype)
    indices = np.asarray([3, -1, 9, 1, 0, 8])
    made = fit(ENCODED, [indices], elements=5, **layout)
    batch = make_batch(ENCODED, indices, layout=made)
    view, parts = batch.views["main"], made.parts
    got = found.by_slot(indices, view.slots.elements, made)
    assert got.dtype == (np.float32 if dtype == "float32" else ml_dtypes.bfloat16)
    np.testing.assert_array_equal(got[view.slots.elements < 0].astype(np.float32), 0.0)
    for b, s, n in np.argwhere(view.place >= 0):
        row, slot = divmod(int(view.place[b, s, n]), view.slots.elements.shape[1])
        expected = value(indices[b], made.sides[s], n)
        np.testing.assert_array_equal(got[row * parts + b % parts, slot].astype(np.float32), expected)


def test_a_process_reads_what_its_own_rows_need(tmp_path: Path) -> None:
    found = written(tmp_path / "states.npy", "bfloat16")
    indices = np.asarray([3, -1, 9, 1, 0, 8, -1, 2])
    made = fit(ENCODED, [indices], elements=5, shards=4, parts=2)
    whole = Batches(ENCODED, made, states=found)
    parts = [whole.batch(indices, Share(held, 4)).states for held in ((0, 1), (2, 3))]
    np.testing.assert_array_equal(np.concatenate(parts), whole.batch(indices).states)


def test_one_row_a_token_and_no_more(tmp_path: Path) -> None:
    found = written(tmp_path / "states.npy", "float32")
    lengths = [len(ids) for pair in ENCODED.groups for ids in (pair.chosen, pair.rejected)]
    assert found.values.shape == (sum(lengths), WIDTH)
    expected = [
        value(b, s, n)
        for b, pair in enumerate(ENCODED.groups)
        for s, ids in enumerate((pair.chosen, pair.rejected))
        for n in range(len(ids))
    ]
    np.testing.assert_array_equal(found.values, expected)


def test_a_file_of_something_else_is_refused(tmp_path: Path) -> None:
    written(tmp_path / "states.npy", "bfloat16")
    for width, dtype, encoded in (
        (8, "bfloat16", ENCODED),
        (4, "float32", ENCODED),
        (4, "bfloat16", random_encoded(1)),
    ):
        with pytest.raises(ValueError, match=r"holds uint16 \([0-9]+, 4\), not"):
            open_states(tmp_path / "states.npy", encoded, width, dtype)
