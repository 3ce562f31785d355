"""Last hidden states of a frozen model at all response tokens of a data set, on disk, one row a token."""

from __future__ import annotations

import dataclasses
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

from tisdpo_jax.data.encoded import EncodedSet
from tisdpo_jax.data.packing import Layout

_BITS = {"bfloat16": "<u2", "float32": "<f4"}  # .npy has no bfloat16: its bits are kept


@dataclasses.dataclass(frozen=True, eq=False)
class States:
    """Rows of `values`, mapped from a file: those of a response begin at its `starts [n, 2]`."""

    values: npt.NDArray[Any]  # [tokens, D]
    starts: npt.NDArray[np.int64]
    dtype: str

    def by_slot(
        self, indices: npt.NDArray[np.int64], elements: npt.NDArray[np.int32], layout: Layout
    ) -> npt.NDArray[Any]:
        """What belongs to the slots of a batch of these `indices`: `[R, M, D]`, zero in empty slots.

        Args:
            elements: [R, M], of the batch's main view.
        """
        sides, size = len(layout.sides), layout.elements
        part = np.arange(len(elements))[:, None] % layout.parts
        pair = np.asarray(indices)[np.maximum(elements // (sides * size), 0) * layout.parts + part]
        side = np.asarray(layout.sides)[elements // size % sides]
        rows = np.where(elements >= 0, self.starts[pair, side] + elements % size, 0)
        found = np.where((elements >= 0)[..., None], self.values[rows], np.zeros((), self.values.dtype))
        return found.view(ml_dtypes.bfloat16) if self.dtype == "bfloat16" else found


def starts(encoded: EncodedSet) -> npt.NDArray[np.int64]:
    """Where the rows of each response begin, [n, 2]: pair by pair, chosen first."""
    lengths = [[len(pair.chosen), len(pair.rejected)] for pair in encoded.pairs]
    flat = np.asarray(lengths, np.int64).reshape(-1)
    return (np.cumsum(flat) - flat).reshape(-1, 2)


def create(path: Any, encoded: EncodedSet, width: int, dtype: str) -> States:
    """A new file, to be filled by writing to `values`."""
    rows = int(sum(len(pair.chosen) + len(pair.rejected) for pair in encoded.pairs))
    values = np.lib.format.open_memmap(path, mode="w+", dtype=_BITS[dtype], shape=(rows, width))
    return States(values, starts(encoded), dtype)


def open_states(path: Any, encoded: EncodedSet, width: int, dtype: str) -> States:
    """A file that `create` made. Raises: ValueError when it has another shape or type."""
    values = np.lib.format.open_memmap(path, mode="r")
    rows = int(sum(len(pair.chosen) + len(pair.rejected) for pair in encoded.pairs))
    if values.shape != (rows, width) or values.dtype != np.dtype(_BITS[dtype]):
        raise ValueError(f"holds {values.dtype} {values.shape}, not {_BITS[dtype]} {(rows, width)}")
    return States(values, starts(encoded), dtype)


def write(states: States, indices: npt.NDArray[np.int64], place: npt.NDArray[np.int32], by_slot: Any) -> None:
    """Puts the states of a batch, by slot `[R, M, D]`, where they belong. `place [B, 2, N]` is that of its view."""
    flat = np.asarray(by_slot).reshape(-1, by_slot.shape[-1])
    for pair, index in enumerate(indices):
        for side in range(place.shape[1] if index >= 0 else 0):
            slots = place[pair, side][place[pair, side] >= 0]
            start = states.starts[index, side]
            states.values[start : start + len(slots)] = flat[slots].view(states.values.dtype)
