"""Batches on devices, prepared ahead of the step that takes them; and one pass over all groups of a data set."""

from __future__ import annotations

import collections
import contextlib
import itertools
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

import jax
import numpy as np
import numpy.typing as npt
from jax.sharding import Mesh

from tisdpo_jax import partitioning
from tisdpo_jax.data import Batches, Share
from tisdpo_jax.training.interrupt import Interrupt
from tisdpo_jax.training.metrics import progress

Indices = npt.NDArray[np.int64]
T = TypeVar("T")
Item = TypeVar("Item")

AHEAD = 2  # batches that wait for the step, beside the one that it takes


def ahead(make: Callable[[Item], T], items: Iterable[Item], *, depth: int = AHEAD) -> Generator[T, None, None]:
    """`make(item)` of all items, in order, made in a background thread, at most `depth` before they are asked for.

    What `make` raises is raised where its result would have come. To be closed where it is left early: that waits for
    the one that is being made, and makes no other.
    """
    source, waiting = iter(items), collections.deque[Future[T]]()
    with ThreadPoolExecutor(1, thread_name_prefix="batches") as thread:
        try:
            waiting.extend(thread.submit(make, item) for item in itertools.islice(source, depth))
            while waiting:
                ready = waiting.popleft().result()
                waiting.extend(thread.submit(make, item) for item in itertools.islice(source, 1))
                yield ready
        finally:
            for future in waiting:
                future.cancel()


def on_devices(batches: Batches, indices: Indices, mesh: Mesh) -> Any:
    """The batch of these groups on the mesh: each process lays out and sends the rows that its own devices hold."""
    return partitioning.put_batch(batches.batch(indices, Share(*partitioning.batch_share(mesh))), mesh)


def one_pass(
    batches: Batches,
    order: Sequence[Indices],
    mesh: Mesh,
    *,
    label: str,
    interrupt: Interrupt | None = None,
    shown: bool = True,
) -> Iterator[tuple[Indices, Any]]:
    """The batches of `order` on the mesh, each with its indices [B], -1 for fillers. All processes go through it alike.

    Raises: Interrupted between two batches, when asked to stop.
    """
    with contextlib.closing(ahead(lambda indices: on_devices(batches, indices, mesh), order)) as ready:
        for indices, batch in zip(progress(order, label, enabled=shown), ready, strict=True):
            if interrupt is not None:
                interrupt.poll(label)
            yield indices, batch


def collect(run: Callable[[Any], Any], batches: Iterable[tuple[Indices, Any]], count: int) -> Any:
    """What `run` says of all `count` groups: arrays [n, ...] on the host, of the arrays [B, ...] that it gives a batch.

    It may give a tree of them. Values are fetched while the next batch is computed.
    """
    whole: Any = None
    late: list[tuple[Indices, Any]] = []

    def keep() -> None:
        nonlocal whole
        for indices, result in late:
            values = jax.tree.map(partitioning.to_host, result)
            if whole is None:
                whole = jax.tree.map(lambda x: np.zeros((count, *x.shape[1:]), x.dtype), values)
            for into, value in zip(jax.tree.leaves(whole), jax.tree.leaves(values), strict=True):
                into[indices[indices >= 0]] = value[indices >= 0]

    for indices, batch in batches:
        result = run(batch)
        keep()
        late = [(indices, result)]
    keep()
    return whole
