"""The order in which training sees groups: a pure function of the step.

Nothing has to be saved but the step to resume, and any number of processes agrees on the same global batches.
"""

from __future__ import annotations

import dataclasses
import functools
import heapq
import math
from collections.abc import Iterator

import numpy as np

from tisdpo_jax.data.packing import Indices

WINDOW = 16  # batches among which pairs are dealt out by length


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
        # Raw bits of a bit generator are promised never to change between releases of numpy; `permutation` is not.
        keys = np.random.Philox(np.random.SeedSequence([order.seed, int(epoch)])).random_raw(n)
        members[here] = np.argsort(keys, kind="stable")[positions[here] % n]
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
    # in the order of the permutation: places in a batch say nothing
    batches = [members[sorted(items)] for items in dealt]
    return [np.pad(batch, (0, size - len(batch)), constant_values=-1) for batch in batches]


def balanced_batches(lengths: Indices, batch_size: int) -> list[Indices]:
    """Each of n pairs once, in any order, in batches of about equally many tokens; -1 fills up."""
    count = -(-len(lengths) // batch_size)
    return _deal(np.arange(len(lengths), dtype=np.int64), lengths, count, batch_size)
