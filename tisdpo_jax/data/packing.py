"""Laying pairs into rows: the prompt once, both responses behind it, several pairs a row; one shape for a whole stage.

Pairs go to rows largest first, each to the row that is emptiest. What decides is the pairs of a batch and nothing
else, so every process lays out the same global batch, and a resumed run the same as before.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from tisdpo_jax.data.encoded import EncodedPair, EncodedSet

Ints = npt.NDArray[np.int32]

SLOT_WEIGHTS = (1.0, 0.7, 0.4, 0.0)  # tried; which is best depends on the lengths and on what the head costs
SEARCHED = 32  # batches that the number of rows is chosen by; the length of rows is then made to fit them all


@dataclasses.dataclass(frozen=True)
class RowShape:
    """The rows of one view in every batch of a stage."""

    rows: int  # R
    tokens: int  # T
    slots: int  # M
    copies: int = 0  # U; 0 where the attention back end needs none
    slot_weight: float = 1.0  # how much even slots count against even tokens where pairs are dealt to rows


@dataclasses.dataclass(frozen=True)
class Layout:
    """How pairs become the arrays of a batch; one for all batches of a stage, so that its step is compiled once."""

    pairs: int  # B
    elements: int  # N
    views: tuple[tuple[str, RowShape], ...]
    sides: tuple[int, ...] = (0, 1)  # (1, 0) swaps the pairs, (0,) and (1,) take one side alone
    parts: int = 1  # micro-batches: part p has the pairs, and the rows, p, p + parts, p + 2 parts, ...
    packed: bool = True


class LaidOut(NamedTuple):
    """The arrays of `types.View`, by numpy."""

    tokens: Ints
    positions: Ints
    pair: Ints
    branch: Ints
    source: Ints
    readers: Ints
    targets: Ints
    elements: Ints
    place: Ints
    copy_index: Ints
    copy_segments: Ints
    copy_back: Ints


def fit(
    encoded: EncodedSet,
    batches: Iterable[npt.NDArray[np.int64]],
    *,
    elements: int,
    shards: int = 1,
    parts: int = 1,
    sides: tuple[int, ...] = (0, 1),
    views: Sequence[str] = ("main",),
    packed: bool = True,
    copies: bool = False,
    multiple: int = 8,
    width: int = 1024,
    head: float = 0.1,
) -> Layout:
    """The smallest layout that holds each of `batches`.

    Rows and their length are chosen together: as few tokens as possible in the product, longer rows counted dearer
    for what attention costs, and slots for what the head costs.

    Args:
        encoded: the pairs.
        batches: [B] indices of every batch of the stage; -1 is a filler.
        elements: N.
        shards: devices that rows are dealt out to; their number is a multiple of it.
        parts, sides, packed: as in `Layout`.
        views: names of the views that the stage shows.
        copies: whether the attention back end needs the prompts repeated.
        multiple: of T, U and M.
        width: of the model; attention over a row of T tokens costs about T / (4 width) of the matrices.
        head: what the head costs, against the layers.
    """
    groups = [part for indices in batches for part in _parts(indices, parts)]
    count = max((len(group) for group in groups), default=1)
    found = []
    for view in views:
        if packed:
            shape = _packed_shape(encoded, groups, view, sides, shards, copies, multiple, width, head)
        else:
            lengths = (_longest_row(encoded.pairs[i], view, sides) for group in groups for i in group if i >= 0)
            longest = max(lengths, default=1)
            shape = RowShape(count * len(sides), _round_up(longest, multiple), elements)
        found.append((view, dataclasses.replace(shape, rows=shape.rows * parts)))
    return Layout(count * parts, elements, tuple(found), sides, parts, packed)


def _packed_shape(
    encoded: EncodedSet,
    groups: list[npt.NDArray[np.int64]],
    view: str,
    sides: tuple[int, ...],
    shards: int,
    copies: bool,
    multiple: int,
    width: int,
    head: float,
) -> RowShape:
    sizes = np.asarray([_sizes(pair, view, sides) for pair in encoded.pairs], np.int64)  # [n, 3]
    members = [group[group >= 0] for group in groups]
    longest = max((int(sizes[group, 0].max()) for group in members if len(group)), default=1)
    most = max((len(group) for group in groups), default=1)

    def needed(groups: list[npt.NDArray[np.int64]], rows: int, slot_weight: float) -> RowShape:
        loads = np.zeros(3, np.int64)
        for group in groups:
            for row in assign(sizes[group], rows, _weights(slot_weight, copies)):
                if row:
                    loads = np.maximum(loads, sizes[group[row]].sum(0))
        tokens, slots, unshared = (_round_up(int(load), multiple) for load in loads)
        return RowShape(rows, tokens, slots, unshared if copies else 0, slot_weight)

    def cost(shape: RowShape) -> float:
        attention = (shape.copies or shape.tokens) / (4.0 * width)
        return shape.rows * (shape.tokens * (1.0 + attention) + shape.slots * head)

    tried: list[RowShape] = []
    for rows in range(shards, max(most, shards) + shards, shards):
        tried += [needed(members[:SEARCHED], rows, slot_weight) for slot_weight in SLOT_WEIGHTS]
        if min(shape.tokens for shape in tried[-len(SLOT_WEIGHTS) :]) <= _round_up(longest, multiple):
            break
    best = min(tried, key=cost)
    return needed(members, best.rows, best.slot_weight)


def _weights(slot_weight: float, copies: bool) -> tuple[float, float, float]:
    return 1.0, slot_weight, 1.0 if copies else 0.0


def assign(sizes: npt.NDArray[np.int64], rows: int, weights: Sequence[float]) -> list[list[int]]:
    """Items of each row: the largest first, each to the row that it leaves the emptiest.

    Args:
        sizes: [n, k], what each item takes of k kinds of places. A row is as full as the fullest kind, against an
            even share or, where one item alone takes more, that item.
        rows: how many.
        weights: [k], what fullness of each kind counts.
    """
    items = np.asarray(sizes, np.float64)
    if not len(items):
        return [[] for _ in range(rows)]
    items = items / np.maximum(np.maximum(items.sum(0) / rows, items.max(0)), 1.0) * np.asarray(weights)
    loads = np.zeros((rows, items.shape[1]))
    found: list[list[int]] = [[] for _ in range(rows)]
    for item in np.argsort(-items.max(1), kind="stable"):
        row = int(np.argmin((loads + items[item]).max(1)))
        found[row].append(int(item))
        loads[row] += items[item]
    return found


def _parts(indices: npt.NDArray[np.int64], parts: int) -> list[npt.NDArray[np.int64]]:
    return [indices[part::parts] for part in range(parts)]


def _responses(pair: EncodedPair, sides: tuple[int, ...]) -> list[Ints]:
    return [(pair.chosen, pair.rejected)[side] for side in sides]


def _sizes(pair: EncodedPair, view: str, sides: tuple[int, ...]) -> tuple[int, int, int]:
    """Tokens, response tokens, and tokens with the prompt repeated."""
    prompt, responses = len(pair.prompts[view]), sum(map(len, _responses(pair, sides)))
    return prompt + responses, responses, prompt * len(sides) + responses


def _longest_row(pair: EncodedPair, view: str, sides: tuple[int, ...]) -> int:
    return len(pair.prompts[view]) + max(map(len, _responses(pair, sides)))


def _round_up(value: int, multiple: int) -> int:
    return max(-(-value // multiple), 1) * multiple


def lay_out(encoded: EncodedSet, indices: npt.NDArray[np.int64], view: str, layout: Layout) -> LaidOut:
    """The rows of one view of a batch.

    Raises: ValueError when a batch does not fit the layout, which was then made for other batches.
    """
    shape, sides = dict(layout.views)[view], layout.sides
    out = _empty(shape, layout)
    for part, members in enumerate(_parts(indices, layout.parts)):
        pairs = [(number, encoded.pairs[i]) for number, i in enumerate(members) if i >= 0]
        rows = shape.rows // layout.parts
        if layout.packed:
            sizes = np.asarray([_sizes(pair, view, sides) for _, pair in pairs], np.int64).reshape(-1, 3)
            parted = assign(sizes, rows, _weights(shape.slot_weight, shape.copies > 0))
            dealt = [[(*pairs[item], tuple(range(len(sides)))) for item in row] for row in parted]
        else:
            dealt = [[] for _ in range(rows)]
            for number, pair in pairs:
                for s in range(len(sides)):
                    dealt[number * len(sides) + s].append((number, pair, (s,)))
        for row, content in enumerate(dealt):
            _fill(out, row, part, content, view, layout, shape)
    return out


def _empty(shape: RowShape, layout: Layout) -> LaidOut:
    def full(value: int, *dims: int) -> Ints:
        return np.full(dims, value, np.int32)

    rows, sides = shape.rows, len(layout.sides)
    return LaidOut(
        full(0, rows, shape.tokens),
        full(0, rows, shape.tokens),
        full(0, rows, shape.tokens),
        full(0, rows, shape.tokens),
        full(0, rows, shape.slots),
        full(-1, rows, shape.tokens, sides),
        full(0, rows, shape.slots),
        full(-1, rows, shape.slots),
        full(-1, layout.pairs, sides, layout.elements),
        full(-1, rows, shape.copies),
        full(0, rows, shape.copies),
        full(-1, rows, shape.tokens, sides),
    )


def _fill(
    out: LaidOut,
    row: int,
    part: int,
    content: list[tuple[int, EncodedPair, tuple[int, ...]]],
    view: str,
    layout: Layout,
    shape: RowShape,
) -> None:
    """One row: its pairs one after the other. `row` counts within its part, which is how elements find their slots."""
    at = row * layout.parts + part
    cursor = slot = copy = 0
    for number, (pair_number, pair, present) in enumerate(content, 1):
        prompt = pair.prompts[view]
        responses = _responses(pair, layout.sides)
        begin, size = cursor, len(prompt)
        total = size + sum(len(responses[s]) for s in present)
        unshared = copy + total + size * (len(present) - 1) if shape.copies else 0
        if begin + total > shape.tokens or slot + total - size > shape.slots or unshared > shape.copies:
            raise ValueError(
                f"{pair.origin}: rows of {shape.tokens} tokens are too short; this layout is for other batches"
            )
        _write(out, at, begin, prompt, np.arange(size), number, 0)
        cursor += size
        for s in present:
            response = responses[s]
            n = len(response)
            if n > layout.elements:
                raise ValueError(f"{pair.origin}: {n} response tokens, but N is {layout.elements}")
            _write(out, at, cursor, response, size + np.arange(n), number, s + 1)
            source = np.concatenate([[begin + size - 1], cursor + np.arange(n - 1)])
            slots = slot + np.arange(n)
            out.source[at, slots] = source
            out.targets[at, slots] = response
            # behind a shared prompt stand all sides, so its last place has a reader for each
            out.readers[at, source, np.where(source == begin + size - 1, s, 0)] = slots
            out.elements[at, slots] = (pair_number * len(layout.sides) + s) * layout.elements + np.arange(n)
            out.place[pair_number * layout.parts + part, s, :n] = row * shape.slots + slots
            if shape.copies:
                index = np.concatenate([begin + np.arange(size), cursor + np.arange(n)])
                places = copy + np.arange(len(index))
                out.copy_index[at, places] = index
                out.copy_segments[at, places] = (number - 1) * len(layout.sides) + s + 1
                out.copy_back[at, index, np.where(np.arange(len(index)) < size, s, 0)] = places
                copy += len(index)
            cursor, slot = cursor + n, slot + n


def _write(out: LaidOut, row: int, begin: int, ids: Ints, positions: Any, pair: int, branch: int) -> None:
    place = slice(begin, begin + len(ids))
    out.tokens[row, place] = ids
    out.positions[row, place] = positions
    out.pair[row, place] = pair
    out.branch[row, place] = branch
