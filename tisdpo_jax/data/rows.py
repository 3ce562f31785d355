"""The arrays of a packed batch, by array arithmetic without a loop over tokens; `types.View` says what each holds."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from tisdpo_jax.data.encoded import EncodedSet
from tisdpo_jax.data.packing import WHOLE, Indices, Layout, RowShape, Share, assign, counted, places_taken

if TYPE_CHECKING:  # at run time `lay_out` imports it: the rest of this room does not need jax
    from tisdpo_jax.types import View


class _Standing(NamedTuple):
    """Where groups stand, row by row, one entry behind the other: prompts [C], and S responses behind each, [C, S]."""

    group: Indices  # [C] place in the batch
    row: Indices  # [C]
    number: Indices  # [C] which group it is in its row, from 1
    begin: Indices  # [C] place in the row of its prompt
    prompt: Indices  # [C] tokens of that
    prompt_ids: Indices  # [C] where they are in all prompts of the set
    side: Indices  # [C, S] which of the responses that the layout takes
    start: Indices  # [C, S] place in the row of its first token
    slot: Indices  # [C, S] its first slot
    copy: Indices  # [C, S] where its own copy of the prompt begins
    length: Indices  # [C, S] tokens
    ids: Indices  # [C, S] where they are in all responses of the set

    def held(self, axis: str, share: Share, size: int) -> _Standing:
        """Those whose "row" or "group" a process holds, which is then counted as the process does."""
        number = np.full(size, -1)
        number[share.of(size)] = np.arange(size // share.pieces * len(share.held))
        mine = number[getattr(self, axis)]
        arrays: Any = (array[mine >= 0] for array in self)
        return _Standing(*arrays)._replace(**{axis: mine[mine >= 0]})


def lay_out(encoded: EncodedSet, indices: Indices, view: str, layout: Layout, share: Share = WHOLE) -> View:
    """The rows of one view of a batch as numpy arrays, or the share of them that a process holds.

    Raises: ValueError when a batch does not fit the layout, which was then made for other batches.
    """
    from tisdpo_jax.types import Copies, Rows, Slots, Tree, View

    shape, sides = dict(layout.views)[view], len(layout.sides)
    standing = _stand(encoded, indices, view, layout, shape)
    rows, groups = len(share.of(shape.rows)), len(share.of(layout.pairs))
    tokens, positions, pair, branch = (_full(0, rows, shape.tokens) for _ in range(4))
    source, targets = _full(0, rows, shape.slots), _full(0, rows, shape.slots)
    elements, readers = _full(-1, rows, shape.slots), _full(-1, rows, shape.tokens, sides)

    mine = standing.held("row", share, shape.rows)
    of, _, n = _spread(mine.prompt[:, None])
    to = (mine.row * shape.tokens + mine.begin)[of] + n
    _put(tokens, to, encoded.prompts(view).values[mine.prompt_ids[of] + n])
    _put(positions, to, n)
    _put(pair, to, mine.number[of])

    of, run, n = _spread(mine.length)
    row, side, at = mine.row[of], mine.side.reshape(-1)[run], mine.start.reshape(-1)[run] + n
    to, token = row * shape.tokens + at, encoded.responses.values[mine.ids.reshape(-1)[run] + n]
    _put(tokens, to, token)
    _put(positions, to, mine.prompt[of] + n)
    _put(pair, to, mine.number[of])
    _put(branch, to, side + 1)
    # a token is predicted where the one before it stands, the first where the prompt ends
    before = np.where(n == 0, (mine.begin + mine.prompt)[of], at) - 1
    slot = mine.slot.reshape(-1)[run] + n
    to = row * shape.slots + slot
    _put(source, to, before)
    _put(targets, to, token)
    _put(elements, to, ((mine.group // layout.parts * sides)[of] + side) * layout.elements + n)
    # where a shared prompt ends all responses begin, so that place has a reader for each
    _put(readers, (row * shape.tokens + before) * sides + np.where(n == 0, side, 0), slot)

    tree = Tree(pair, branch) if layout.packed else None
    copies = Copies(*_copies(mine, rows, shape, sides)) if shape.copies else None
    place, ends = _places(standing.held("group", share, layout.pairs), groups, layout, shape)
    return View(Rows(tokens, positions, tree, copies), Slots(source, readers, targets, elements), place, ends)


def _stand(encoded: EncodedSet, indices: Indices, view: str, layout: Layout, shape: RowShape) -> _Standing:
    prompts, responses, sides = encoded.prompts(view), encoded.responses, np.asarray(layout.sides)
    group, row, number, side = _deal(places_taken(prompts.sizes, responses.sizes[:, sides]), indices, layout, shape)
    index = indices[group]
    which = index[:, None], sides[side]
    prompt, length = prompts.sizes[index], responses.sizes[which]
    takes = places_taken(prompt, length)
    earlier = takes.cumsum(0) - takes  # what groups before it take, of all rows and then of its own
    earlier -= np.maximum.accumulate(np.where(number[:, None] == 1, earlier, 0))
    limits = np.asarray([shape.tokens, shape.slots, shape.copies or np.iinfo(np.int64).max])
    full = np.any(earlier + takes > limits, axis=1)
    bad = np.flatnonzero(full | np.any(length > layout.elements, axis=1))
    if len(bad):
        origin, longest = encoded.groups[index[bad[0]]].origin, int(length[bad[0]].max())
        if full[bad[0]]:
            raise ValueError(f"{origin}: rows of {shape.tokens} tokens are too short; this layout is for other batches")
        raise ValueError(f"{origin}: {longest} response tokens, but N is {layout.elements}")
    begin, slot, copy = earlier.T
    ahead = length.cumsum(1) - length  # of the responses before it
    return _Standing(
        group=group,
        row=row,
        number=number,
        begin=begin,
        prompt=prompt,
        prompt_ids=prompts.starts[index],
        side=side,
        start=(begin + prompt)[:, None] + ahead,
        slot=slot[:, None] + ahead,
        copy=copy[:, None] + ahead + prompt[:, None] * np.arange(length.shape[1]),
        length=length,
        ids=responses.starts[which],
    )


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
        weights = counted(shape.slot_weight, shape.copies > 0)
        for r, items in enumerate(assign(sizes[indices[members]], shape.rows // parts, weights)):
            dealt += [(int(members[item]), r * parts + part, number) for number, item in enumerate(items, 1)]
    group, row, number = np.asarray(dealt, np.int64).reshape(-1, 3).T
    return group, row, number, np.broadcast_to(np.arange(count), (len(group), count))


def _copies(mine: _Standing, rows: int, shape: RowShape, sides: int) -> tuple[Any, Any, Any]:
    """Every response behind a prompt of its own, as `types.Copies` has it."""
    source, segments = _full(-1, rows, shape.copies), _full(0, rows, shape.copies)
    back = _full(-1, rows, shape.tokens, sides)
    of, run, n = _spread(mine.prompt[:, None] + mine.length)
    side, copy = mine.side.reshape(-1)[run], mine.copy.reshape(-1)[run] + n
    row, shared = mine.row[of], n < mine.prompt[of]
    at = np.where(shared, mine.begin[of], (mine.start - mine.prompt[:, None]).reshape(-1)[run]) + n
    to = row * shape.copies + copy
    _put(source, to, at)
    _put(segments, to, ((mine.number - 1) * sides + 1)[of] + side)
    _put(back, (row * shape.tokens + at) * sides + np.where(shared, side, 0), copy)
    return source, segments, back


def _places(mine: _Standing, groups: int, layout: Layout, shape: RowShape) -> tuple[Any, Any]:
    """The way back to `place` and `ends`, whatever process has the rows, which are counted within their part."""
    place, ends = _full(-1, groups, len(layout.sides), layout.elements), _full(-1, groups, len(layout.sides))
    row, (_, run, n) = mine.row // layout.parts, _spread(mine.length)
    to = (mine.group[:, None] * len(layout.sides) + mine.side) * layout.elements
    slot = (row * shape.slots)[:, None] + mine.slot
    _put(place, to.reshape(-1)[run] + n, slot.reshape(-1)[run] + n)
    last = row[:, None] * shape.tokens + mine.start + mine.length - 1
    ends[mine.group[:, None], mine.side] = np.where(mine.length > 0, last, -1)
    return place, ends


def _full(value: int, *dims: int) -> Any:
    """An array of `types.View`, numpy's until it is put on devices."""
    return np.full(dims, value, np.int32)


def _put(array: Any, to: Indices, values: Indices) -> None:
    array.reshape(-1)[to] = values


def _spread(sizes: Indices) -> tuple[Indices, Indices, Indices]:
    """For every token of runs of `sizes [C, S]`: its entry, its run among all, and its place there."""
    flat = sizes.reshape(-1)
    run, of = np.repeat(np.arange(len(flat)), flat), np.repeat(np.arange(len(sizes)), sizes.sum(1))
    return of, run, np.arange(len(run)) - np.repeat(np.cumsum(flat) - flat, flat)
