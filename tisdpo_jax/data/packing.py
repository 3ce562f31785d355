"""Laying groups into rows: the prompt once, its responses behind it, several groups a row; one shape for a whole stage.

Groups go to rows largest first, each to the row that is emptiest. What decides is the groups of a batch and nothing
else, so every process comes to the same rows, and a resumed run to those of before. A process writes only those rows
that its own devices hold.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from tisdpo_jax.data.encoded import EncodedSet

Ints = npt.NDArray[np.int32]
Indices = npt.NDArray[np.int64]

SLOT_WEIGHTS = (1.0, 0.7, 0.4, 0.0)  # tried; which is best depends on the lengths and on what the head costs
SEARCHED = 32  # batches that the number of rows is chosen by; the length of rows is then made to fit them all


@dataclasses.dataclass(frozen=True)
class RowShape:
    """The rows of one view in every batch of a stage."""

    rows: int  # R
    tokens: int  # T
    slots: int  # M
    copies: int = 0  # U; 0 where the attention back end needs none
    slot_weight: float = 1.0  # how much even slots count against even tokens where groups are dealt to rows


@dataclasses.dataclass(frozen=True)
class Layout:
    """How groups become the arrays of a batch; one for all batches of a stage, so that its step is compiled once."""

    pairs: int  # B
    elements: int  # N
    views: tuple[tuple[str, RowShape], ...]
    sides: tuple[int, ...] = (0, 1)  # of the K responses those that are taken; of a pair, (1, 0) swaps them
    parts: int = 1  # micro-batches: part p has the groups, and the rows, p, p + parts, p + 2 parts, ...
    packed: bool = True


class Share(NamedTuple):
    """What a process holds of a batch that is cut along its first axis into `pieces` of equal size."""

    held: tuple[int, ...] = (0,)
    pieces: int = 1

    def of(self, size: int) -> Indices:
        """The places of an axis that are held, in order."""
        if size % self.pieces:
            raise ValueError(f"{size} rows of a batch cannot be shared by {self.pieces} devices")
        return np.arange(size).reshape(self.pieces, -1)[list(self.held)].reshape(-1)


WHOLE = Share()


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
    ends: Ints
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
    sides: tuple[int, ...] | None = None,
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
        encoded: the groups.
        batches: [B] indices of every batch of the stage; -1 is a filler.
        elements: N.
        shards: devices that rows are dealt out to; their number is a multiple of it.
        parts, sides, packed: as in `Layout`; all responses without `sides`.
        views: names of the views that the stage shows.
        copies: whether the attention back end needs the prompts repeated.
        multiple: of T, U and M.
        width: of the model; attention over a row of T tokens costs about T / (4 width) of the matrices.
        head: what the head costs, against the layers.
    """
    sides = tuple(range(encoded.size)) if sides is None else sides
    dealt = [part for indices in batches for part in _parts(indices, parts)]
    count = max((len(members) for members in dealt), default=1)
    members = [part[part >= 0] for part in dealt]
    shapes = []
    for view in views:
        prompts, responses = encoded.prompts(view).sizes, encoded.responses.sizes[:, list(sides)]
        if packed:
            most = max((len(part) for part in dealt), default=1)
            shape = _packed_shape(_sizes(prompts, responses), members, most, shards, copies, multiple, width, head)
        else:
            rows = prompts + responses.max(1, initial=0)
            longest = max((int(rows[part].max()) for part in members if len(part)), default=1)
            shape = RowShape(count * len(sides), _round_up(longest, multiple), elements)
        shapes.append((view, dataclasses.replace(shape, rows=shape.rows * parts)))
    return Layout(count * parts, elements, tuple(shapes), sides, parts, packed)


def _packed_shape(
    sizes: Indices,
    members: list[Indices],
    most: int,
    shards: int,
    copies: bool,
    multiple: int,
    width: int,
    head: float,
) -> RowShape:
    longest = max((int(sizes[part, 0].max()) for part in members if len(part)), default=1)

    def needed(members: list[Indices], rows: int, slot_weight: float) -> RowShape:
        loads = np.zeros(3, np.int64)
        for part in members:
            for row in assign(sizes[part], rows, _weights(slot_weight, copies)):
                if row:
                    loads = np.maximum(loads, sizes[part[row]].sum(0))
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
    loads, with_item = np.zeros((items.shape[1], rows)), np.empty((items.shape[1], rows))
    dealt: list[list[int]] = [[] for _ in range(rows)]
    columns = items[:, :, None]
    for item in np.argsort(-items.max(1), kind="stable").tolist():
        np.add(loads, columns[item], out=with_item)
        row = int(with_item.max(0).argmin())
        dealt[row].append(item)
        loads[:, row] = with_item[:, row]
    return dealt


def _parts(indices: npt.NDArray[np.int64], parts: int) -> list[npt.NDArray[np.int64]]:
    return [indices[part::parts] for part in range(parts)]


def _sizes(prompts: Indices, responses: Indices) -> Indices:
    """Tokens, response tokens, and tokens with the prompt repeated, [n, 3], of groups with `responses [n, S]`."""
    slots = responses.sum(1)
    return np.stack([prompts + slots, slots, prompts * responses.shape[1] + slots], 1)


def _round_up(value: int, multiple: int) -> int:
    return max(-(-value // multiple), 1) * multiple


class _Runs(NamedTuple):
    """Where the responses of a batch go, one entry each, row by row; an entry of one group follows the other."""

    group: Indices  # place in the batch
    row: Indices
    number: Indices  # which group it is in its row, from 1
    side: Indices  # which of the responses that the layout takes
    opens: Indices  # 1 or 0, whether the prompt is written before it: once a group, or a row
    begin: Indices  # place in the row of its prompt ...
    start: Indices  # ... and of its first token
    slot: Indices  # ... its first slot ...
    copy: Indices  # ... and where its own copy of the prompt begins
    prompt: Indices  # tokens of the prompt ...
    length: Indices  # ... and of the response
    prompt_ids: Indices  # where these are in all tokens of the set
    ids: Indices

    def of(self, kept: npt.NDArray[np.bool_]) -> _Runs:
        arrays: Any = (x[kept] for x in self)
        return _Runs(*arrays)


def lay_out(encoded: EncodedSet, indices: Indices, view: str, layout: Layout, share: Share = WHOLE) -> LaidOut:
    """The rows of one view of a batch, or the share of them that a process holds.

    Raises: ValueError when a batch does not fit the layout, which was then made for other batches.
    """
    shape = dict(layout.views)[view]
    runs, out = _runs(encoded, indices, view, layout, shape), _empty(shape, layout, share)
    row = np.full(shape.rows, -1)
    row[share.of(shape.rows)] = np.arange(len(out.tokens))
    mine = runs.of(row[runs.row] >= 0)
    mine = mine._replace(row=row[mine.row])  # as this process counts them
    _write_tokens(out, mine, encoded.prompts(view).values, encoded.responses.values)
    _write_slots(out, mine, layout)
    if shape.copies:
        _write_copies(out, mine, len(layout.sides))

    group = np.full(layout.pairs, -1)
    group[share.of(layout.pairs)] = np.arange(len(out.place))
    mine = runs.of(group[runs.group] >= 0)  # whatever process has their rows, which are counted within their part
    mine = mine._replace(group=group[mine.group], row=mine.row // layout.parts)
    run, n = _spread(mine.length)
    out.place[mine.group[run], mine.side[run], n] = (mine.row * shape.slots + mine.slot)[run] + n
    last = mine.row * shape.tokens + mine.start + mine.length - 1
    out.ends[mine.group, mine.side] = np.where(mine.length > 0, last, -1)
    return out


def _runs(encoded: EncodedSet, indices: Indices, view: str, layout: Layout, shape: RowShape) -> _Runs:
    prompts, responses, sides = encoded.prompts(view), encoded.responses, list(layout.sides)
    group, row, number, side = _deal(_sizes(prompts.sizes, responses.sizes[:, sides]), indices, layout, shape)
    index = indices[group]
    which = index[:, None], np.asarray(sides)[side]
    size, length = prompts.sizes[index], responses.sizes[which]

    def before(taken: Indices) -> Indices:
        """What the groups of a row before each one take."""
        total = np.cumsum(taken) - taken
        return total - np.maximum.accumulate(np.where(number == 1, total, 0))

    slots, earlier = length.sum(1), length.cumsum(1) - length
    unshared = size * length.shape[1] + slots
    begin, slot, copy = before(size + slots), before(slots), before(unshared)
    full = (begin + size + slots > shape.tokens) | (slot + slots > shape.slots)
    full |= (copy + unshared > shape.copies) & (shape.copies > 0)
    bad = np.flatnonzero(full | (length > layout.elements).any(1))
    if len(bad):
        origin, longest = encoded.groups[index[bad[0]]].origin, int(length[bad[0]].max())
        if full[bad[0]]:
            raise ValueError(f"{origin}: rows of {shape.tokens} tokens are too short; this layout is for other batches")
        raise ValueError(f"{origin}: {longest} response tokens, but N is {layout.elements}")
    place = np.arange(length.shape[1])
    each = _Runs(
        group=group[:, None],
        row=row[:, None],
        number=number[:, None],
        side=side,
        opens=(place == 0)[None].astype(np.int64),
        begin=begin[:, None],
        start=(begin + size)[:, None] + earlier,
        slot=slot[:, None] + earlier,
        copy=copy[:, None] + earlier + size[:, None] * place,
        prompt=size[:, None],
        length=length,
        prompt_ids=prompts.starts[index][:, None],
        ids=responses.starts[which],
    )
    arrays: Any = (np.broadcast_to(x, length.shape).reshape(-1) for x in each)
    return _Runs(*arrays)


def _deal(
    sizes: Indices, indices: Indices, layout: Layout, shape: RowShape
) -> tuple[Indices, Indices, Indices, Indices]:
    """What stands in the rows, row by row: groups by their place in the batch, their row, their number in it, [C] each,
    and the responses that are laid out behind the prompt, [C, S]; in rows that are not packed one, [C, 1]."""
    real, count, parts = np.flatnonzero(indices >= 0), len(layout.sides), layout.parts
    if not layout.packed:
        group, side = np.repeat(real, count).astype(np.int64), np.tile(np.arange(count), len(real))
        row = (group // parts * count + side) * parts + group % parts
        return group, row, np.ones_like(group), side[:, None]
    dealt: list[tuple[int, int, int]] = []
    for part in range(parts):
        members = real[real % parts == part]
        weights = _weights(shape.slot_weight, shape.copies > 0)
        for r, items in enumerate(assign(sizes[indices[members]], shape.rows // parts, weights)):
            dealt += [(int(members[item]), r * parts + part, number) for number, item in enumerate(items, 1)]
    group, row, number = np.asarray(dealt, np.int64).reshape(-1, 3).T
    return group, row, number, np.broadcast_to(np.arange(count), (len(group), count))


def _write_tokens(out: LaidOut, runs: _Runs, prompt_ids: Ints, response_ids: Ints) -> None:
    width = out.tokens.shape[1]
    heads = runs.of(runs.opens > 0)
    run, n = _spread(heads.prompt)
    to = (heads.row * width + heads.begin)[run] + n
    out.tokens.reshape(-1)[to] = prompt_ids[heads.prompt_ids[run] + n]
    out.positions.reshape(-1)[to] = n
    out.pair.reshape(-1)[to] = heads.number[run]
    run, n = _spread(runs.length)
    to = (runs.row * width + runs.start)[run] + n
    out.tokens.reshape(-1)[to] = response_ids[runs.ids[run] + n]
    out.positions.reshape(-1)[to] = runs.prompt[run] + n
    out.pair.reshape(-1)[to] = runs.number[run]
    out.branch.reshape(-1)[to] = runs.side[run] + 1


def _write_slots(out: LaidOut, runs: _Runs, layout: Layout) -> None:
    """A token is predicted where the one before it stands, the first where the prompt ends."""
    width, sides = out.tokens.shape[1], len(layout.sides)
    run, n = _spread(runs.length)
    slot = runs.slot[run] + n
    source = np.where(n == 0, (runs.begin + runs.prompt)[run], runs.start[run] + n) - 1
    to = runs.row[run] * out.source.shape[1] + slot
    out.source.reshape(-1)[to] = source
    out.targets.reshape(-1)[to] = out.tokens.reshape(-1)[(runs.row * width + runs.start)[run] + n]
    out.elements.reshape(-1)[to] = ((runs.group // layout.parts * sides + runs.side) * layout.elements)[run] + n
    # where a shared prompt ends all responses begin, so that place has a reader for each
    reader = np.where(n == 0, runs.side[run], 0)
    out.readers.reshape(-1)[(runs.row[run] * width + source) * sides + reader] = slot


def _write_copies(out: LaidOut, runs: _Runs, sides: int) -> None:
    """Every response behind a prompt of its own."""
    run, n = _spread(runs.prompt + runs.length)
    shared = n < runs.prompt[run]
    source = np.where(shared, runs.begin[run], (runs.start - runs.prompt)[run]) + n
    copy = runs.copy[run] + n
    to = runs.row[run] * out.copy_index.shape[1] + copy
    out.copy_index.reshape(-1)[to] = source
    out.copy_segments.reshape(-1)[to] = ((runs.number - 1) * sides + runs.side + 1)[run]
    reader = np.where(shared, runs.side[run], 0)
    out.copy_back.reshape(-1)[(runs.row[run] * out.tokens.shape[1] + source) * sides + reader] = copy


def _spread(sizes: Indices) -> tuple[Indices, Indices]:
    """For every token of runs of these sizes: the number of its run, and its place there."""
    run = np.repeat(np.arange(len(sizes)), sizes)
    return run, np.arange(len(run)) - np.repeat(np.cumsum(sizes) - sizes, sizes)


def _empty(shape: RowShape, layout: Layout, share: Share) -> LaidOut:
    def full(value: int, *dims: int) -> Ints:
        return np.full(dims, value, np.int32)

    rows, groups, sides = len(share.of(shape.rows)), len(share.of(layout.pairs)), len(layout.sides)
    return LaidOut(
        tokens=full(0, rows, shape.tokens),
        positions=full(0, rows, shape.tokens),
        pair=full(0, rows, shape.tokens),
        branch=full(0, rows, shape.tokens),
        source=full(0, rows, shape.slots),
        readers=full(-1, rows, shape.tokens, sides),
        targets=full(0, rows, shape.slots),
        elements=full(-1, rows, shape.slots),
        place=full(-1, groups, sides, layout.elements),
        ends=full(-1, groups, sides),
        copy_index=full(-1, rows, shape.copies),
        copy_segments=full(0, rows, shape.copies),
        copy_back=full(-1, rows, shape.tokens, sides),
    )
