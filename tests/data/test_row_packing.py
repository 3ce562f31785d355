"""Laying pairs into rows: every response token in one slot behind its own prompt; one shape for all batches."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tisdpo_jax.data import EncodedGroup, EncodedSet, Layout, Order, RowShape, Share, fit, make_batch
from tisdpo_jax.data.packing import assign
from tisdpo_jax.data.rows import lay_out
from tisdpo_jax.testing import random_encoded
from tisdpo_jax.types import Batch, View

VIEWS = ("main", "plus", "minus")


def groups_of(lengths: list[list[int]]) -> EncodedSet:
    """Groups of given lengths (prompt, plus, minus, responses), no token twice."""
    counter = itertools.count(1)
    draw = lambda n: np.asarray(list(itertools.islice(counter, n)), np.int32)  # noqa: E731 (one line says it)
    groups = []
    for number, sizes in enumerate(lengths):
        drawn = [draw(size) for size in sizes]
        prompts = dict(zip(VIEWS, drawn[:3], strict=True))
        groups.append(EncodedGroup(str(number), f"here:{number}", prompts, tuple(drawn[3:])))
    return EncodedSet(tuple(groups), (), "here")


def check(encoded: EncodedSet, indices: Any, layout: Layout, batch: Batch) -> None:
    """What a batch has to be, said token by token."""
    for name, shape in layout.views:
        view = batch.views[name]
        assert view.rows.tokens.shape == view.rows.positions.shape == (shape.rows, shape.tokens)
        assert view.slots.source.shape == view.slots.targets.shape == (shape.rows, shape.slots)
        assert (view.rows.copies is not None) == bool(shape.copies) and (view.rows.tree is not None) == layout.packed
        check_elements(encoded, indices, layout, name, view)
        check_inverses(layout, view)
        if view.rows.copies is not None:
            check_copies(encoded, indices, layout, name, view)
        np.testing.assert_array_equal(batch.mask, view.place >= 0)
    np.testing.assert_array_equal(batch.record, indices)


def check_elements(encoded: EncodedSet, indices: Any, layout: Layout, name: str, view: View) -> None:
    """The place that predicts an element sees the prompt and what comes before it in the response, at 0, 1, 2, ..."""
    sides, parts, count = len(layout.sides), layout.parts, 0
    places = np.arange(view.rows.tokens.shape[1])
    for b, index in enumerate(indices):
        for s, side in enumerate(layout.sides):
            pair = encoded.groups[index] if index >= 0 else None
            response = () if pair is None else pair.responses[side]
            assert (view.place[b, s, len(response) :] == -1).all()
            assert (view.ends[b, s] < 0) == (len(response) == 0)
            for n, token in enumerate(response):
                row, slot = divmod(int(view.place[b, s, n]), view.slots.source.shape[1])
                row = row * parts + b % parts  # counted within the part
                assert view.slots.targets[row, slot] == token
                assert view.slots.elements[row, slot] == ((b // parts) * sides + s) * layout.elements + n
                source, seen = view.slots.source[row, slot], places <= view.slots.source[row, slot]
                if view.rows.tree is not None:
                    here, branch = view.rows.tree.pair[row], view.rows.tree.branch[row]
                    seen &= (here == here[source]) & ((branch == 0) | (branch == s + 1))
                assert pair is not None
                before = [*pair.prompts[name], *response[:n]]
                assert view.rows.tokens[row, seen].tolist() == before
                assert view.rows.positions[row, seen].tolist() == list(range(len(before)))
                count += 1
            if len(response):
                row, last = divmod(int(view.ends[b, s]), len(places))
                row = row * parts + b % parts
                assert view.rows.tokens[row, last] == response[-1]
                assert view.rows.positions[row, last] == len(before)
                assert view.rows.tree is None or view.rows.tree.branch[row, last] == s + 1
    assert np.count_nonzero(view.slots.elements >= 0) == np.count_nonzero(view.place >= 0) == count


def check_inverses(layout: Layout, view: View) -> None:
    real = view.slots.elements >= 0
    reads = {(r, view.slots.source[r, m], m) for r, m in np.argwhere(real)}
    read = [(r, t, view.slots.readers[r, t, k]) for r, t, k in np.argwhere(view.slots.readers >= 0)]
    assert len(read) == len(reads) and set(read) == reads
    for part in range(layout.parts):
        place, elements = view.place[part :: layout.parts].ravel(), view.slots.elements[part :: layout.parts].ravel()
        there = np.flatnonzero(place >= 0)
        np.testing.assert_array_equal(elements[place[there]], there)
        slots = np.flatnonzero(elements >= 0)
        np.testing.assert_array_equal(place[elements[slots]], slots)


def check_copies(encoded: EncodedSet, indices: Any, layout: Layout, name: str, view: View) -> None:
    source, segments, back = view.rows.copies  # type: ignore[misc]  # not None: asked for
    reads = {(r, source[r, u], u) for r, u in np.argwhere(source >= 0)}
    read = [(r, t, back[r, t, k]) for r, t, k in np.argwhere(back >= 0)]
    assert len(read) == len(reads) and set(read) == reads
    np.testing.assert_array_equal(segments > 0, source >= 0)
    found = []
    for row, number in {(r, segments[r, u]) for r, u in np.argwhere(segments > 0)}:
        where = np.flatnonzero(segments[row] == number)
        assert (np.diff(where) == 1).all()
        assert view.rows.positions[row, source[row, where]].tolist() == list(range(len(where)))
        found.append(view.rows.tokens[row, source[row, where]].tolist())
    real = [encoded.groups[i] for i in indices if i >= 0]
    expected = [[*pair.prompts[name], *pair.responses[side]] for pair in real for side in layout.sides]
    assert sorted(found) == sorted(expected)


@st.composite
def lengths_of_groups(draw: Any) -> list[list[int]]:
    """Of groups of 1 to 4 responses, some of them empty."""
    size = draw(st.integers(1, 4))
    group = st.tuples(*[st.integers(1, 9)] * 3, *[st.integers(0, 9)] * size).map(list)
    return draw(st.lists(group, min_size=1, max_size=9))


@settings(max_examples=80)
@given(
    lengths=lengths_of_groups(),
    fillers=st.integers(0, 3),
    options=st.fixed_dictionaries(
        {
            "sides": st.sampled_from([None, (0, 1), (1, 0), (0,), (1,)]),
            "shards": st.integers(1, 4),
            "multiple": st.sampled_from([1, 4]),
            "views": st.sampled_from([("main",), VIEWS]),
            "packed": st.booleans(),
            "copies": st.booleans(),
        }
    ),
    parts=st.integers(1, 3),
    seed=st.integers(0, 5),
)
def test_every_batch_is_laid_out_as_it_should(
    lengths: list[list[int]], fillers: int, options: dict[str, Any], parts: int, seed: int
) -> None:
    encoded = groups_of(lengths)
    options["copies"] &= options["packed"]
    options["sides"] = options["sides"] if options["sides"] != (1, 0) or encoded.size == 2 else None
    if options["sides"] and max(options["sides"]) >= encoded.size:
        options["sides"] = None
    fillers += -(len(lengths) + fillers) % parts
    indices = np.random.default_rng(seed).permutation([*range(len(lengths)), *[-1] * fillers])
    layout = fit(encoded, [indices], elements=9, parts=parts, **options)
    check(encoded, indices, layout, make_batch(encoded, indices, layout=layout))


def test_pairs_are_laid_out_as_they_always_were() -> None:
    """Kept from when pairs, and nothing else, were laid out token by token: every array of many batches."""
    digest = hashlib.sha256()
    ways = itertools.product(((True, False), (True, True), (False, False)), ((0, 1), (1, 0), (0,), (1,)), (1, 2, 3))
    for seed, ((packed, copies), sides, parts) in enumerate(ways):
        encoded = random_encoded(seed, pairs=13, prompts={"plus": 5, "minus": 11})
        indices = np.random.default_rng(seed).permutation([*range(13), *[-1] * 11])
        options: dict[str, Any] = {"parts": parts, "sides": sides, "packed": packed, "copies": copies}
        layout = fit(encoded, [indices], elements=6, shards=1 + seed % 2, views=VIEWS, multiple=4, **options)
        digest.update(repr(layout.views).encode())
        for array in leaves(make_batch(encoded, indices, layout=layout).views):
            digest.update(f"{array.shape} {array.dtype}".encode() + array.tobytes())
    assert digest.hexdigest() == "e1cf3eda6d4eb2a383fa698a5d72e6fcb1c2a2ccc287054574254af4fc2917b5"


@settings(max_examples=40)
@given(
    seed=st.integers(0, 99),
    size=st.integers(1, 4),
    parts=st.integers(1, 2),
    packed=st.booleans(),
    processes=st.sampled_from([((0, 1), (2, 3)), ((0, 2), (1, 3)), ((3,), (0, 1, 2))]),
)
def test_what_processes_lay_out_is_the_whole_batch(
    seed: int, size: int, parts: int, packed: bool, processes: tuple[tuple[int, ...], ...]
) -> None:
    encoded = random_encoded(seed, pairs=13, responses=size, prompts={"plus": 5, "minus": 11})
    indices = np.random.default_rng(seed).permutation([*range(13), -1, -1, -1])
    options: dict[str, Any] = {"shards": 4, "parts": parts, "packed": packed, "copies": packed, "views": VIEWS}
    layout, columns = fit(encoded, [indices], elements=6, **options), {"margin": np.arange(13.0)}
    whole = make_batch(encoded, indices, layout=layout, columns=columns)
    for held in processes:
        share = make_batch(encoded, indices, layout=layout, columns=columns, share=Share(held, 4))
        for mine, everything in zip(leaves(share), leaves(whole), strict=True):
            pieces = np.split(everything, 4)
            np.testing.assert_array_equal(mine, np.concatenate([pieces[piece] for piece in held]))


def leaves(tree: Any) -> list[np.ndarray]:
    parts = tree.values() if isinstance(tree, dict) else tree if isinstance(tree, tuple) else None
    return [tree] if parts is None else [leaf for part in parts if part is not None for leaf in leaves(part)]


def test_prompts_and_responses_of_one_token() -> None:
    encoded, indices = groups_of([[1] * 5, [1, 1, 1, 1, 4], [3, 1, 1, 1, 1]]), np.arange(3)
    for options in ({}, {"packed": False}, {"copies": True}):
        layout = fit(encoded, [indices], elements=4, multiple=1, views=VIEWS, **options)
        check(encoded, indices, layout, make_batch(encoded, indices, layout=layout))


@given(
    sizes=st.lists(st.lists(st.integers(1, 40), min_size=3, max_size=3), max_size=30),
    rows=st.integers(1, 8),
    weights=st.sampled_from([(1.0, 0.0, 0.0), (1.0, 0.7, 0.0), (1.0, 1.0, 1.0), (0.0, 1.0, 0.0)]),
)
def test_rows_are_filled_evenly(sizes: list[list[int]], rows: int, weights: tuple[float, ...]) -> None:
    """Every item in one row, and none that would have left another row emptier when it came."""
    items = np.asarray(sizes, np.int64).reshape(-1, 3)
    found = assign(items, rows, weights)
    assert len(found) == rows and sorted(itertools.chain(*found)) == list(range(len(items)))
    for one, other in zip(found, assign(items.copy(), rows, weights), strict=True):
        assert one == other
    if not len(items):
        return
    share = weights * items / np.maximum(items.sum(0) / rows, items.max(0))
    loads = np.stack([share[row].sum(0) for row in found])
    for row, load in zip(found, loads, strict=True):
        assert not row or all(load.max() <= (other + share[row[-1]]).max() + 1e-9 for other in loads)


def test_the_rows_of_a_batch_are_the_same_for_ever() -> None:
    """A run resumes on another machine, with another numpy, in the rows that it had."""
    tokens, slots = [5, 9, 1, 5, 7, 2, 2], [1, 2, 1, 4, 1, 1, 2]
    sizes = np.asarray([tokens, slots], np.int64).T
    assert assign(sizes, 3, (1.0, 0.0)) == [[1, 6], [4, 5, 2], [0, 3]]
    assert assign(sizes, 3, (1.0, 0.7)) == [[1, 5], [3, 0], [4, 6, 2]]


def test_the_layout_depends_on_the_batches_alone() -> None:
    encoded = random_encoded(0, pairs=24, prompt=40, elements=30)
    batches = list(np.arange(24).reshape(3, 8))
    layout = fit(encoded, batches, elements=32, copies=True)
    assert layout == fit(encoded, iter(batches), elements=32, copies=True)
    assert layout == fit(random_encoded(0, pairs=24, prompt=40, elements=30), batches[::-1], elements=32, copies=True)
    for batch in batches:
        one, two = (lay_out(encoded, batch, "main", layout) for _ in range(2))
        for mine, theirs in zip(leaves(one), leaves(two), strict=True):
            np.testing.assert_array_equal(mine, theirs)


# One layout for all batches of a stage.


@settings(max_examples=30)
@given(
    seed=st.integers(0, 99),
    shards=st.integers(1, 4),
    parts=st.integers(1, 2),
    multiple=st.sampled_from([1, 8]),
    packed=st.booleans(),
)
def test_the_layout_is_the_smallest_that_holds_all_batches(
    seed: int, shards: int, parts: int, multiple: int, packed: bool
) -> None:
    encoded = random_encoded(seed, pairs=30, prompt=20, elements=12)
    batches = [np.append(batch, -1) for batch in np.random.default_rng(seed).permutation(28).reshape(4, 7)]
    options: dict[str, Any] = {"elements": 12, "parts": parts, "packed": packed, "copies": packed}
    layout = fit(encoded, batches, shards=shards, multiple=multiple, **options)
    ((_, shape),) = layout.views
    if packed:
        assert shape.rows % (shards * parts) == 0
        assert all(size % multiple == 0 for size in (shape.tokens, shape.slots, shape.copies))
    used = np.zeros(3, np.int64)
    for batch in batches:
        out = lay_out(encoded, batch, "main", layout)
        tokens = (out.slots.readers >= 0).any(-1) | (out.rows.positions > 0)
        filled = [12, 0]
        if packed:
            filled = [(out.slots.elements >= 0).sum(1).max(), (out.rows.copies.source >= 0).sum(1).max()]
            tokens |= out.rows.tree.pair > 0
        used = np.maximum(used, [np.flatnonzero(tokens.any(0)).max() + 1, *filled])
    for size, needed in zip((shape.tokens, shape.slots, shape.copies), used, strict=True):
        assert 0 <= size - needed < multiple


def test_few_tokens_are_padding() -> None:
    """Lengths as conversations have them: packed and balanced, most of the tokens of every batch are real."""
    random = np.random.default_rng(0)
    sizes = np.clip(random.lognormal(4.5, 0.9, (512, 3)), 2, 400).astype(np.int64)
    encoded = groups_of([[prompt, 1, 1, *both] for prompt, *both in sizes.tolist()])
    order = Order(encoded.lengths(), 16, 0, 1.0)
    real = encoded.lengths().sum() / order.steps

    def used(**options: Any) -> float:
        ((_, shape),) = fit(encoded, order.batches(), elements=400, **options).views
        return float(real / (shape.rows * shape.tokens))

    assert used() > 0.85 and used(shards=4) > 0.75
    assert used(packed=False) < 0.35


def test_long_rows_are_dearer_for_narrow_models() -> None:
    encoded = random_encoded(0, pairs=32, prompt=30, elements=20)
    tokens = [fit(encoded, [np.arange(32)], elements=20, width=width).views[0][1].tokens for width in (4, 100, 10**9)]
    assert tokens == sorted(tokens) and tokens[0] < tokens[-1]


# Refusals.


def test_another_batch_than_the_layout_was_made_for() -> None:
    """Each limit alone: tokens, slots, copies."""
    small = groups_of([[4, 1, 1, 2, 2], [6, 1, 1, 2, 2], [2, 1, 1, 4, 4]])
    layout = fit(small, [np.asarray([0])], elements=4, multiple=1, copies=True)
    assert layout.views == (("main", RowShape(1, 8, 4, 12)),)

    def with_room(**sizes: int) -> Layout:
        return dataclasses.replace(layout, views=(("main", dataclasses.replace(layout.views[0][1], **sizes)),))

    for index, room in ((1, {"slots": 99, "copies": 99}), (2, {"tokens": 99, "copies": 99})):
        with pytest.raises(ValueError, match=f"here:{index}: rows of .* this layout is for other batches"):
            lay_out(small, np.asarray([index]), "main", with_room(**room))


def test_copies_that_do_not_fit_are_refused() -> None:
    small = groups_of([[4, 1, 1, 2, 2], [6, 1, 1, 1, 1]])
    layout = fit(small, [np.asarray([0])], elements=4, multiple=1, copies=True)
    with pytest.raises(ValueError, match=r"here:1: .*this layout is for other batches"):
        lay_out(small, np.asarray([1]), "main", layout)


def test_a_view_that_the_pairs_do_not_have() -> None:
    encoded = random_encoded(0)
    with pytest.raises(KeyError, match="plus"):
        fit(encoded, [np.arange(4)], elements=6, views=("plus",))


@pytest.mark.parametrize("packed", [True, False])
def test_batches_of_fillers_alone_have_a_layout(packed: bool) -> None:
    encoded = random_encoded(0, pairs=2)
    nothing = np.full(4, -1)
    layout = fit(encoded, [nothing], elements=6, packed=packed)
    batch = make_batch(encoded, nothing, layout=layout)
    assert not batch.mask.any() and (batch.record == -1).all()
