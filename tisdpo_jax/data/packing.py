"""Which groups share a row: the prompt once, its responses behind it, several groups a row; one shape for a stage.

Groups go to rows largest first, each to the row that is emptiest. What decides is the groups of a batch and nothing
else, so every process comes to the same rows, and a resumed run to those of before. A process writes only those rows
that its own devices hold.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from tisdpo_jax.data.encoded import EncodedSet

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


def fit(
    encoded: EncodedSet,
    batches: Iterable[Indices],
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
    dealt = [indices[part::parts] for indices in batches for part in range(parts)]
    count = max(map(len, dealt), default=1)
    members = [part[part >= 0] for part in dealt]

    def up(value: int) -> int:
        return max(-(-value // multiple), 1) * multiple

    def needed(sizes: Indices, members: list[Indices], rows: int, slot_weight: float) -> RowShape:
        loads = np.zeros(3, np.int64)
        for part in members:
            for row in assign(sizes[part], rows, counted(slot_weight, copies)):
                if row:
                    loads = np.maximum(loads, sizes[part[row]].sum(0))
        tokens, slots, unshared = (up(int(load)) for load in loads)
        return RowShape(rows, tokens, slots, unshared if copies else 0, slot_weight)

    def cost(shape: RowShape) -> float:
        attention = (shape.copies or shape.tokens) / (4.0 * width)
        return shape.rows * (shape.tokens * (1.0 + attention) + shape.slots * head)

    def longest(sizes: Indices) -> int:
        return up(max((int(sizes[part].max()) for part in members if len(part)), default=1))

    shapes = []
    for view in views:
        prompts, responses = encoded.prompts(view).sizes, encoded.responses.sizes[:, list(sides)]
        if packed:
            sizes, tried = places_taken(prompts, responses), list[RowShape]()
            for rows in range(shards, max(count, shards) + shards, shards):
                tried += [needed(sizes, members[:SEARCHED], rows, slot_weight) for slot_weight in SLOT_WEIGHTS]
                if min(shape.tokens for shape in tried[-len(SLOT_WEIGHTS) :]) <= longest(sizes[:, 0]):
                    break
            best = min(tried, key=cost)
            shape = needed(sizes, members, best.rows, best.slot_weight)
        else:
            shape = RowShape(count * len(sides), longest(prompts + responses.max(1, initial=0)), elements)
        shapes.append((view, dataclasses.replace(shape, rows=shape.rows * parts)))
    return Layout(count * parts, elements, tuple(shapes), sides, parts, packed)


def places_taken(prompts: Indices, responses: Indices) -> Indices:
    """Tokens, response tokens, and tokens with the prompt repeated, [n, 3], of groups with `responses [n, S]`."""
    slots = responses.sum(1)
    return np.stack([prompts + slots, slots, prompts * responses.shape[1] + slots], 1)


def counted(slot_weight: float, copies: bool) -> tuple[float, float, float]:
    """What fullness of each of `places_taken` counts where rows are filled."""
    return 1.0, slot_weight, 1.0 if copies else 0.0


def assign(sizes: Indices, rows: int, weights: Sequence[float]) -> list[list[int]]:
    """Items of each row: the largest first, each to the row that it leaves the emptiest.

    Args:
        sizes: [n, k], what each item takes of k kinds of places. A row is as full as the fullest kind, against an
            even share or, where one item alone takes more, that item.
        rows: how many.
        weights: [k], what fullness of each kind counts.
    """
    dealt: list[list[int]] = [[] for _ in range(rows)]
    if not len(sizes):
        return dealt
    items = np.asarray(sizes, np.float64)
    items = items / np.maximum(np.maximum(items.sum(0) / rows, items.max(0)), 1.0) * np.asarray(weights)
    loads, with_item = np.zeros((items.shape[1], rows)), np.empty((items.shape[1], rows))
    columns = items[:, :, None]
    for item in np.argsort(-items.max(1), kind="stable").tolist():
        np.add(loads, columns[item], out=with_item)
        row = int(with_item.max(0).argmin())
        dealt[row].append(item)
        loads[:, row] = with_item[:, row]
    return dealt
