"""From encoded groups to batches, and the order in which training sees them.

The order is a pure function of the step: nothing has to be saved but the step to resume, and any
number of processes agrees on the same global batches.
"""

from __future__ import annotations

import dataclasses
import functools
import heapq
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from tisdpo_jax.data.encoded import EncodedSet
from tisdpo_jax.data.packing import WHOLE, Layout, Share, lay_out
from tisdpo_jax.data.states import States

if TYPE_CHECKING:  # at run time `make_batch` imports it: the rest of this room does not need jax
    from tisdpo_jax.types import Batch

Indices = npt.NDArray[np.int64]

WINDOW = 16  # batches among which pairs are dealt out by length


def make_batch(
    encoded: EncodedSet,
    indices: Sequence[int] | Indices,
    *,
    layout: Layout,
    columns: Mapping[str, npt.NDArray[Any]] | None = None,
    share: Share = WHOLE,
) -> Batch:
    """A batch of numpy arrays, or the share of it that a process holds.

    Args:
        encoded: the groups.
        indices: [B] positions in `encoded.groups`, of the whole batch; -1 makes a filler, of mask 0.
        layout: what shape it has, from `packing.fit` over all batches of the stage.
        columns: values with the group of `encoded` as first axis, whose rows travel with the groups; 0 in fillers.
        share: which rows, and which groups, are made.

    Returns:
        `types.Batch` with the views and responses of the layout.
    """
    from tisdpo_jax.types import Batch, Copies, Rows, Slots, Tree, View

    members = np.asarray(indices, np.int64)
    if len(members) != layout.pairs:
        raise ValueError(f"make_batch: {len(members)} pairs, but the layout has {layout.pairs}")
    views: dict[str, Any] = {}
    place = np.zeros(0)
    for name, shape in layout.views:
        laid: Any = lay_out(encoded, members, name, layout, share)  # numpy until it is put on devices
        tree = Tree(laid.pair, laid.branch) if layout.packed else None
        copies = Copies(laid.copy_index, laid.copy_segments, laid.copy_back) if shape.copies else None
        rows = Rows(laid.tokens, laid.positions, tree, copies)
        slots = Slots(laid.source, laid.readers, laid.targets, laid.elements)
        views[name] = View(rows, slots, laid.place, laid.ends)
        place = laid.place
    mask, own = (place >= 0).astype(np.float32), members[share.of(len(members))]
    taken = _take_columns(columns or {}, own, len(encoded))
    picked = {name: value[:, list(layout.sides)] if value.ndim > 1 else value for name, value in taken.items()}
    arrays: Any = (views, mask, own.astype(np.int32), picked)
    return Batch(*arrays)


def _take_columns(columns: Mapping[str, npt.NDArray[Any]], rows: Indices, count: int) -> dict[str, npt.NDArray[Any]]:
    taken = {}
    for name, column in columns.items():
        if len(column) != count:
            raise ValueError(f"column {name!r} has {len(column)} rows for {count} pairs")
        taken[name] = np.zeros((len(rows), *column.shape[1:]), column.dtype)
        taken[name][rows >= 0] = column[rows[rows >= 0]]
    return taken


@dataclasses.dataclass(frozen=True)
class Batches:
    """Groups, how they are laid out, and what travels with them: batches of these, for training or for one pass."""

    encoded: EncodedSet
    layout: Layout
    columns: Mapping[str, npt.NDArray[Any]] = dataclasses.field(default_factory=dict)
    states: States | None = None  # of the reference

    def batch(self, indices: Indices, share: Share = WHOLE) -> Any:
        """The batch of these groups as host arrays, or the share of it that a process holds."""
        batch = make_batch(self.encoded, indices, layout=self.layout, columns=self.columns, share=share)
        if self.states is None:
            return batch
        elements = np.asarray(batch.views["main"].slots.elements)
        states: Any = self.states.by_slot(indices, elements, self.layout)
        return batch._replace(states=states)

    def tokens(self, indices: Indices) -> int:
        """Real tokens that the main view of a batch shows to a model."""
        rows = indices[indices >= 0]
        shared = 1 if self.layout.packed else len(self.layout.sides)
        responses = self.encoded.responses.sizes[rows][:, list(self.layout.sides)]
        return int(shared * self.encoded.prompts().sizes[rows].sum() + responses.sum())


def recorded_columns(encoded: EncodedSet, elements: int) -> dict[str, npt.NDArray[np.float32]]:
    """Columns that the records brought along: "weights" [n, K, N] and "margin" [n], each if every group has it.

    Args:
        encoded: the groups.
        elements: N, the width of the responses.
    """
    columns: dict[str, npt.NDArray[np.float32]] = {}
    groups = encoded.groups
    if groups and all(group.margin is not None for group in groups):
        columns["margin"] = np.asarray([group.margin for group in groups], np.float32)
    if groups and all(group.weights is not None for group in groups):
        weights = np.zeros((len(groups), encoded.size, elements), np.float32)
        for b, group in enumerate(groups):
            for s, values in enumerate(group.weights or ()):
                weights[b, s, : len(values)] = values
        columns["weights"] = weights
    return columns


def num_steps(n: int, batch_size: int, epochs: float) -> int:
    """Batches that it takes to see each of n pairs `epochs` times; the last may be filled up."""
    return -(-_num_examples(n, epochs) // batch_size)


def _num_examples(n: int, epochs: float) -> int:
    return math.ceil(round(n * epochs, 6))  # 50 * 1.1 is a little more than 55


@dataclasses.dataclass(frozen=True, eq=False)
class Order:
    """Which pairs each batch of a training has: a pure function of its fields.

    Epochs are permutations laid end to end, so a batch may hold the end of one and the beginning of the next. Within
    windows of `WINDOW` batches, pairs are dealt out so that batches hold about equally many tokens, which is what
    lets one small shape fit them all.
    """

    lengths: Indices  # [n], tokens of each pair
    batch_size: int
    seed: int
    epochs: float
    places: int = 0  # entries of a batch where it is filled up to divide by the devices; 0: batch_size

    @property
    def steps(self) -> int:
        return num_steps(len(self.lengths), self.batch_size, self.epochs)

    def batch(self, step: int) -> Indices:
        """Pairs of batch `step`, [places]; -1 fills up."""
        if not 0 <= step < self.steps:
            raise ValueError(f"step {step} is outside the {self.steps} steps of {self.epochs:g} epochs")
        members = _window(self, step // WINDOW)[step % WINDOW]
        return np.pad(members, (0, max(self.places - self.batch_size, 0)), constant_values=-1)

    def batches(self) -> Iterator[Indices]:
        """All of them, in order."""
        return map(self.batch, range(self.steps))


@functools.lru_cache(maxsize=4)
def _window(order: Order, window: int) -> list[Indices]:
    n, size = len(order.lengths), order.batch_size
    first = window * WINDOW
    count = min(WINDOW, order.steps - first)
    positions = np.arange(first * size, min((first + count) * size, _num_examples(n, order.epochs)))
    members = np.empty(len(positions), np.int64)
    for epoch in np.unique(positions // n):
        here = positions // n == epoch
        members[here] = _permutation(n, order.seed, int(epoch))[positions[here] % n]
    return _deal(members, order.lengths[members], count, size)


def _deal(members: Indices, lengths: Indices, count: int, size: int) -> list[Indices]:
    """`members` in `count` batches of at most `size`: longest first, each to the batch with the fewest tokens."""
    heap = [(0, number) for number in range(count)]
    dealt: list[list[int]] = [[] for _ in range(count)]
    for item in np.argsort(-lengths, kind="stable"):
        load, number = heapq.heappop(heap)
        dealt[number].append(int(item))
        if len(dealt[number]) < size:
            heapq.heappush(heap, (load + int(lengths[item]), number))
    batches = []
    for items in dealt:
        batch = np.full(size, -1, np.int64)
        batch[: len(items)] = members[sorted(items)]  # in the order of the permutation: places in a batch say nothing
        batches.append(batch)
    return batches


def _permutation(n: int, seed: int, epoch: int) -> Indices:
    # Raw bits of a bit generator are promised never to change between releases of numpy; `permutation` is not.
    keys = np.random.Philox(np.random.SeedSequence([seed, epoch])).random_raw(n)
    return np.argsort(keys, kind="stable").astype(np.int64)


def balanced_batches(lengths: Indices, batch_size: int) -> list[Indices]:
    """Each of n pairs once, in any order, in batches of about equally many tokens; -1 fills up."""
    count = -(-len(lengths) // batch_size)
    return _deal(np.arange(len(lengths), dtype=np.int64), lengths, count, batch_size)
