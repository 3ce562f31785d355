"""From encoded groups to batches, with the values that travel with them: columns, and hidden states on disk."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

from tisdpo_jax.data.encoded import EncodedSet
from tisdpo_jax.data.packing import WHOLE, Indices, Layout, Share
from tisdpo_jax.data.rows import lay_out

if TYPE_CHECKING:  # at run time `make_batch` imports it: the rest of this room does not need jax
    from tisdpo_jax.types import Batch

_BITS = {"bfloat16": "<u2", "float32": "<f4"}  # .npy has no bfloat16: its bits are kept


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
        layout: what shape it has, from `fit` over all batches of the stage.
        columns: values with the group of `encoded` as first axis, whose rows travel with the groups; 0 in fillers.
        share: which rows, and which groups, are made.

    Returns:
        `types.Batch` with the views and responses of the layout.
    """
    from tisdpo_jax.types import Batch

    members = np.asarray(indices, np.int64)
    if len(members) != layout.pairs:
        raise ValueError(f"make_batch: {len(members)} pairs, but the layout has {layout.pairs}")
    views = {name: lay_out(encoded, members, name, layout, share) for name, _ in layout.views}
    own = members[share.of(len(members))]
    travelling = {}
    for name, column in (columns or {}).items():
        if len(column) != len(encoded):
            raise ValueError(f"column {name!r} has {len(column)} rows for {len(encoded)} pairs")
        values = np.zeros((len(own), *column.shape[1:]), column.dtype)
        values[own >= 0] = column[own[own >= 0]]
        travelling[name] = values[:, list(layout.sides)] if values.ndim > 1 else values
    mask: Any = (next(iter(views.values())).place >= 0).astype(np.float32)
    record: Any = own.astype(np.int32)
    return Batch(views, mask, record, travelling)  # type: ignore[arg-type]  # numpy until it is put on devices


@dataclasses.dataclass(frozen=True, eq=False)
class States:
    """Last hidden states of a frozen model at all response tokens of a data set, on disk, one row a token.

    Rows of `values`, mapped from a file: those of a response begin at its `starts [n, K]`.
    """

    values: npt.NDArray[Any]  # [tokens, D]
    starts: Indices
    dtype: str

    def by_slot(self, indices: Indices, elements: npt.NDArray[np.int32], layout: Layout) -> npt.NDArray[Any]:
        """What belongs to slots of a batch of these `indices`: `[R, M, D]`, zero in empty slots.

        Args:
            indices: [B], of the whole batch.
            elements: [R, M], of the batch's main view, or of those of its rows that a process holds.
            layout: of the batch.
        """
        slots = np.zeros((*elements.shape, self.values.shape[1]), self.values.dtype)
        slots[elements >= 0] = self.values[self._rows(indices, elements, layout)]
        return slots.view(ml_dtypes.bfloat16) if self.dtype == "bfloat16" else slots

    def write(self, indices: Indices, elements: npt.NDArray[np.int32], by_slot: Any, layout: Layout) -> None:
        """Puts states by slot `[R, M, D]` where they belong; the other arguments as for `by_slot`."""
        self.values[self._rows(indices, elements, layout)] = np.asarray(by_slot)[elements >= 0].view(self.values.dtype)

    def _rows(self, indices: Any, elements: npt.NDArray[np.int32], layout: Layout) -> Indices:
        """Rows of the tokens of all slots that have one."""
        row, slot = np.nonzero(elements >= 0)
        group, n = np.divmod(elements[row, slot], layout.elements)
        group, side = np.divmod(group, len(layout.sides))
        index = np.asarray(indices)[group * layout.parts + row % layout.parts]  # parts take rows and groups alike
        return self.starts[index, np.asarray(layout.sides)[side]] + n


def create(path: Any, encoded: EncodedSet, width: int, dtype: str) -> States:
    """A new file of states, to be filled by `write`: group by group, response by response."""
    shape = (len(encoded.responses.values), width)
    values = np.lib.format.open_memmap(path, mode="w+", dtype=_BITS[dtype], shape=shape)
    return States(values, encoded.responses.starts, dtype)


def open_states(path: Any, encoded: EncodedSet, width: int, dtype: str) -> States:
    """A file that `create` made. Raises: ValueError when it has another shape or type."""
    values, shape = np.lib.format.open_memmap(path, mode="r"), (len(encoded.responses.values), width)
    if values.shape != shape or values.dtype != np.dtype(_BITS[dtype]):
        raise ValueError(f"holds {values.dtype} {values.shape}, not {_BITS[dtype]} {shape}")
    return States(values, encoded.responses.starts, dtype)


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
        return batch._replace(states=self.states.by_slot(indices, elements, self.layout))  # type: ignore[arg-type]

    def tokens(self, indices: Indices) -> int:
        """Real tokens that the main view of a batch shows to a model."""
        rows = indices[indices >= 0]
        shared = 1 if self.layout.packed else len(self.layout.sides)
        responses = self.encoded.responses.sizes[rows][:, list(self.layout.sides)]
        return int(shared * self.encoded.prompts().sizes[rows].sum() + responses.sum())


def recorded_columns(encoded: EncodedSet, elements: int) -> dict[str, npt.NDArray[np.float32]]:
    """Columns that the records bring: "token_weights" [n, K, N] and "self_reward" [n], each if every group has it.

    Args:
        encoded: the groups.
        elements: N, the width of the responses.
    """
    columns: dict[str, npt.NDArray[np.float32]] = {}
    groups = encoded.groups
    if groups and all(group.margin is not None for group in groups):
        columns["self_reward"] = np.asarray([group.margin for group in groups], np.float32)
    if groups and all(group.weights is not None for group in groups):
        weights = np.zeros((len(groups), encoded.size, elements), np.float32)
        for b, group in enumerate(groups):
            for s, values in enumerate(group.weights or ()):
                weights[b, s, : len(values)] = values
        columns["token_weights"] = weights
    return columns
