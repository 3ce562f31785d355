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
    """Rows of `values`, mapped from a file: those of a response begin at its `starts [n, K]`."""

    values: npt.NDArray[Any]  # [tokens, D]
    starts: npt.NDArray[np.int64]
    dtype: str

    def by_slot(
        self, indices: npt.NDArray[np.int64], elements: npt.NDArray[np.int32], layout: Layout
    ) -> npt.NDArray[Any]:
        """What belongs to slots of a batch of these `indices`: `[R, M, D]`, zero in empty slots.

        Args:
            indices: [B], of the whole batch.
            elements: [R, M], of the batch's main view, or of those of its rows that a process holds.
        """
        slots = np.zeros((*elements.shape, self.values.shape[1]), self.values.dtype)
        slots[elements >= 0] = self.values[self._rows(indices, elements, layout)]
        return slots.view(ml_dtypes.bfloat16) if self.dtype == "bfloat16" else slots

    def write(
        self, indices: npt.NDArray[np.int64], elements: npt.NDArray[np.int32], by_slot: Any, layout: Layout
    ) -> None:
        """Puts states by slot `[R, M, D]` where they belong; the other arguments as for `by_slot`."""
        self.values[self._rows(indices, elements, layout)] = np.asarray(by_slot)[elements >= 0].view(self.values.dtype)

    def _rows(self, indices: Any, elements: npt.NDArray[np.int32], layout: Layout) -> npt.NDArray[np.int64]:
        """Rows of the tokens of all slots that have one."""
        row, slot = np.nonzero(elements >= 0)
        group, n = np.divmod(elements[row, slot], layout.elements)
        group, side = np.divmod(group, len(layout.sides))
        index = np.asarray(indices)[group * layout.parts + row % layout.parts]  # parts take rows and groups alike
        return self.starts[index, np.asarray(layout.sides)[side]] + n


def create(path: Any, encoded: EncodedSet, width: int, dtype: str) -> States:
    """A new file, to be filled by `write`: group by group, response by response."""
    shape = (len(encoded.responses.values), width)
    values = np.lib.format.open_memmap(path, mode="w+", dtype=_BITS[dtype], shape=shape)
    return States(values, encoded.responses.starts, dtype)


def open_states(path: Any, encoded: EncodedSet, width: int, dtype: str) -> States:
    """A file that `create` made. Raises: ValueError when it has another shape or type."""
    values, shape = np.lib.format.open_memmap(path, mode="r"), (len(encoded.responses.values), width)
    if values.shape != shape or values.dtype != np.dtype(_BITS[dtype]):
        raise ValueError(f"holds {values.dtype} {values.shape}, not {_BITS[dtype]} {shape}")
    return States(values, encoded.responses.starts, dtype)
