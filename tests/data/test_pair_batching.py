"""Batches: what rows hold, masks from lengths, columns that travel with their pairs, filler pairs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tisdpo_jax.data import EncodedGroup, EncodedSet, Layout, RowShape, fit, make_batch, recorded_columns
from tisdpo_jax.data.encoded import Ids


def array(*values: int) -> Ids:
    return np.asarray(values, np.int32)


def encoded(*groups: EncodedGroup) -> EncodedSet:
    return EncodedSet(groups, (), "f.jsonl")


# The padding id 0 is a token like any other, in prompts and in responses.
FIRST = EncodedGroup("a", "f:1", {"main": array(0, 5)}, (array(7, 0, 0), array(8)))
SECOND = EncodedGroup("b", "f:2", {"main": array(4)}, (array(0), array(9, 9)))
BOTH = encoded(FIRST, SECOND)


def layout(indices: Any, **options: Any) -> Layout:
    return fit(BOTH, [np.asarray(indices)], **{"elements": 4, "multiple": 1, **options})


def test_a_pair_is_its_prompt_and_both_responses_behind_it() -> None:
    batch = make_batch(BOTH, [1, 0], layout=Layout(2, 4, (("main", RowShape(2, 8, 8)),)))
    assert list(batch.views) == ["main"]
    rows, slots, place, ends = batch.views["main"]
    assert rows.tree is not None and rows.copies is None
    # the longer pair first, though it is the second of the batch
    assert rows.tokens.tolist() == [[0, 5, 7, 0, 0, 8, 0, 0], [4, 0, 9, 9, 0, 0, 0, 0]]
    assert rows.positions.tolist() == [[0, 1, 2, 3, 4, 2, 0, 0], [0, 1, 1, 2, 0, 0, 0, 0]]
    assert rows.tree.pair.tolist() == [[1] * 6 + [0, 0], [1] * 4 + [0] * 4]
    assert rows.tree.branch.tolist() == [[0, 0, 1, 1, 1, 2, 0, 0], [0, 1, 2, 2, 0, 0, 0, 0]]
    assert slots.targets.tolist() == [[7, 0, 0, 8, 0, 0, 0, 0], [0, 9, 9, 0, 0, 0, 0, 0]]
    assert slots.source.tolist() == [[1, 2, 3, 1, 0, 0, 0, 0], [0, 0, 2, 0, 0, 0, 0, 0]]
    assert slots.elements.tolist() == [[8, 9, 10, 12, -1, -1, -1, -1], [0, 4, 5, -1, -1, -1, -1, -1]]
    assert slots.readers[0, :4].tolist() == [[-1, -1], [0, 3], [1, -1], [2, -1]]
    assert slots.readers[1, :4].tolist() == [[0, 1], [-1, -1], [2, -1], [-1, -1]]
    assert place.tolist() == [[[8, -1, -1, -1], [9, 10, -1, -1]], [[0, 1, 2, -1], [3, -1, -1, -1]]]
    assert ends.tolist() == [[9, 11], [4, 5]]
    assert batch.mask.tolist() == [[[1, 0, 0, 0], [1, 1, 0, 0]], [[1, 1, 1, 0], [1, 0, 0, 0]]]
    assert batch.record.tolist() == [1, 0]
    assert batch.columns == {} and batch.states is None
    assert {x.dtype for x in (*rows[:2], *rows.tree, *slots, place, ends, batch.record)} == {np.dtype(np.int32)}
    assert batch.mask.dtype == np.float32


def test_unpacked_a_row_is_one_conversation() -> None:
    """One prompt and one response a row, left-aligned; nothing but causality is needed to read it."""
    batch = make_batch(BOTH, [1, 0], layout=layout([1, 0], packed=False))
    rows, slots, place, ends = batch.views["main"]
    assert rows.tree is None and rows.copies is None
    assert rows.tokens.tolist() == [[4, 0, 0, 0, 0], [4, 9, 9, 0, 0], [0, 5, 7, 0, 0], [0, 5, 8, 0, 0]]
    assert rows.positions[2].tolist() == [0, 1, 2, 3, 4]
    assert slots.targets.tolist() == [[0, 0, 0, 0], [9, 9, 0, 0], [7, 0, 0, 0], [8, 0, 0, 0]]
    assert place.reshape(4, 4)[:, 0].tolist() == [0, 4, 8, 12]
    assert ends.tolist() == [[1, 7], [14, 17]]


def test_the_same_responses_stand_behind_the_prompt_of_every_view() -> None:
    prompts = {"main": FIRST.prompt, "plus": array(1, 2, 3, 4), "minus": array(6)}
    behind = EncodedGroup("a", "f:1", prompts, FIRST.responses)
    made = fit(encoded(behind), [np.asarray([0])], elements=4, views=("main", "plus", "minus"))
    batch = make_batch(encoded(behind), [0], layout=made)
    assert list(batch.views) == ["main", "plus", "minus"]
    for name, view in batch.views.items():
        prompt = behind.prompts[name].tolist()
        assert view.rows.tokens[0, : len(prompt) + 4].tolist() == [*prompt, 7, 0, 0, 8]
        np.testing.assert_array_equal(view.place, batch.views["main"].place)


def test_sides_are_those_of_the_layout() -> None:
    columns = {"weights": np.arange(2 * 2 * 4, dtype=np.float32).reshape(2, 2, 4), "margin": np.ones(2, np.float32)}
    found = {
        sides: make_batch(BOTH, [0, 1], layout=layout([0, 1], sides=sides), columns=columns)
        for sides in ((0, 1), (1, 0), (0,), (1,))
    }
    for sides, batch in found.items():
        assert batch.mask.shape == (2, len(sides), 4)
        np.testing.assert_array_equal(batch.mask, found[0, 1].mask[:, list(sides)])
        np.testing.assert_array_equal(batch.columns["weights"], columns["weights"][:, list(sides)])
        np.testing.assert_array_equal(batch.columns["margin"], columns["margin"])
    rows, slots, *_ = found[(0,)].views["main"]
    assert 9 not in rows.tokens and rows.tokens.size < found[0, 1].views["main"].rows.tokens.size
    assert sorted(slots.targets[slots.elements >= 0].tolist()) == [0, 0, 0, 7]


@pytest.mark.parametrize("packed", [True, False])
def test_fillers_are_empty(packed: bool) -> None:
    columns = {"weights": np.ones((2, 2, 4), np.float32), "margin": np.asarray([3.0, 4.0], np.float32)}
    indices = np.asarray([-1, 1, -1])
    batch = make_batch(BOTH, indices, layout=layout(indices, packed=packed), columns=columns)
    assert batch.record.tolist() == [-1, 1, -1]
    assert batch.columns["margin"].tolist() == [0.0, 4.0, 0.0]
    assert batch.columns["weights"].sum((1, 2)).tolist() == [0.0, 8.0, 0.0]
    view = batch.views["main"]
    assert (view.place[[0, 2]] == -1).all() and not batch.mask[[0, 2]].any()
    assert np.count_nonzero(view.slots.elements >= 0) == 3
    assert sorted(view.rows.tokens[view.rows.tokens > 0].tolist()) == ([4, 9, 9] if packed else [4, 4, 9, 9])


def test_a_batch_of_fillers_alone() -> None:
    batch = make_batch(BOTH, [-1, -1], layout=layout([0, 1]))
    assert not batch.mask.any() and (batch.views["main"].slots.elements == -1).all()


def test_what_does_not_fit_is_refused_and_named() -> None:
    small = layout([1, -1])
    with pytest.raises(ValueError, match=r"f:1: rows of 4 tokens are too short; this layout is for other batches"):
        make_batch(BOTH, [1, 0], layout=small)
    with pytest.raises(ValueError, match="f:1: 3 response tokens, but N is 2"):
        make_batch(BOTH, [0, 1], layout=layout([0, 1], elements=2))
    with pytest.raises(ValueError, match="3 pairs, but the layout has 2"):
        make_batch(BOTH, [0, 1, -1], layout=layout([0, 1]))
    with pytest.raises(ValueError, match="column 'w' has 3 rows for 2 pairs"):
        make_batch(BOTH, [0, 1], layout=layout([0, 1]), columns={"w": np.zeros(3)})
    with pytest.raises(IndexError):
        make_batch(BOTH, [0, 2], layout=layout([0, 1]))


def test_recorded_columns() -> None:
    weights = np.asarray([1.0, 2.0, 3.0], np.float32)
    both = (weights, weights[:1])
    first = EncodedGroup("a", "f:1", {"main": array(5)}, (array(7, 8, 9), array(8)), margin=2.0, weights=both)
    columns = recorded_columns(encoded(first), 4)
    assert columns["margin"].tolist() == [2.0]
    assert columns["weights"].tolist() == [[[1, 2, 3, 0], [1, 0, 0, 0]]]
    assert recorded_columns(encoded(first, SECOND), 4) == {}
    assert recorded_columns(encoded(), 4) == {}
