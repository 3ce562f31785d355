"""From the tensors of a checkpoint to sharded arrays, and back: all is checked first, then only what is needed is read.

The names and shapes of tensors follow from the table of parameters (`models.TABLE`).
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from tisdpo_jax.errors import CheckpointError, MissingKeyError, ShapeMismatchError, UnexpectedKeyError
from tisdpo_jax.models import Naming, TransformerConfig, flatten, parameters, unflatten
from tisdpo_jax.partitioning import to_host
from tisdpo_jax.types import Params

Index = tuple[slice | np.ndarray, ...]


@dataclasses.dataclass(frozen=True)
class Leaf:
    """What one of our arrays is made of."""

    names: tuple[str, ...]  # the tensors: one a layer when `stacked`, else a single one
    shape: tuple[int, ...]  # of our array
    stacked: bool = False  # axis 0 of our array is the layer
    transposed: bool = False  # the tensors are [out, in], our array is [in, out]
    paired_heads: int = 0  # rows of each of so many heads alternate between the rotary halves; 0: they do not
    offset: float = 0.0  # by which the tensors are larger

    @property
    def tensor_shape(self) -> tuple[int, ...]:
        """Of each tensor."""
        inner = self.shape[1:] if self.stacked else self.shape
        return inner[::-1] if self.transposed else inner


Layout = dict[str, Leaf]
"""Path of a parameter, as in `layers/attention/q/kernel` -> what it is made of."""


def layout(config: TransformerConfig, naming: Naming = "huggingface", *, paired_rows: bool = False) -> Layout:
    """What every parameter of the model is made of, in the order in which an export writes them.

    `paired_rows`: q and k have their rows in the order of llama.cpp's "llama" architecture.
    """
    heads = {"q": config.num_heads, "k": config.num_kv_heads} if paired_rows else {}
    return {
        row.path: Leaf(
            row.names(naming, config.num_layers),
            row.shape(config),
            stacked=row.stacked,
            transposed=row.path.endswith("/kernel"),
            paired_heads=heads.get(row.path.split("/")[-2], 0),
            # llama.cpp's files hold what a norm multiplies by
            offset=1.0 if naming == "gguf" and config.norm_offset and row.path.endswith("/scale") else 0.0,
        )
        for row in parameters(config)
    }


@dataclasses.dataclass(frozen=True)
class TensorSource:
    """The tensors of a checkpoint, and the way to a part of one."""

    path: Path  # the checkpoint as the user named it
    files: dict[str, Path]  # tensor -> the file that holds it
    shapes: dict[str, tuple[int, ...]]
    read: Callable[[str, Index], np.ndarray]  # (tensor, index a dimension) -> that part, in float32 or as stored


def assemble(
    layout: Layout, source: TensorSource, shardings: Params | None, dtype: Any, *, ignored: Collection[str] = ()
) -> Params:
    """The tree of `layout`, filled from `source`.

    Args:
      shardings: nested dict of `jax.sharding.Sharding`, or None for the default device. Every process
        reads only the parts that its own devices hold.
      dtype: of the arrays; values are rounded to nearest, ties to even.
      ignored: tensors that may be there and are not read.

    Raises: MissingKeyError, ShapeMismatchError, UnexpectedKeyError, all before anything is allocated;
      CheckpointError that names the tensor where a value is not finite.
    """
    placed = dict.fromkeys(layout) if shardings is None else flatten(shardings)
    check_tree(layout, placed, "shardings")
    check(layout, source, ignored)
    arrays = {path: _array(leaf, source, placed[path], jnp.dtype(dtype)) for path, leaf in layout.items()}
    _check_finite(layout, source, arrays)
    return unflatten(arrays)


def check_tree(layout: Layout, flat: Collection[str], what: str) -> None:
    """Raises ValueError when the paths are not those that the layout describes."""
    if differ := set(flat) ^ layout.keys():
        raise ValueError(f"{what} and the model's layout differ in {sorted(differ)}")


def check(layout: Layout, source: TensorSource, ignored: Collection[str]) -> None:
    """Whether all tensors are there, of their shapes, and no others. Raises as `assemble`."""
    wanted = {name: path for path, leaf in layout.items() for name in leaf.names}
    spare = [name for name in source.shapes if name not in wanted and name not in ignored]
    missing = [name for name in wanted if name not in source.shapes]
    if missing:
        name = missing[0]
        near = difflib.get_close_matches(name, spare, n=1)
        instead = f", and the checkpoint holds {near[0]!r} instead" if near else ""
        raise MissingKeyError(
            f"{source.path}: tensor {name!r} is missing ({len(missing)} missing in all); parameter {wanted[name]} is "
            f"made of it{instead}. Fetch the checkpoint again, or mend its config, which describes another model"
        )
    for name, path in wanted.items():
        if source.shapes[name] != (expected := layout[path].tensor_shape):
            raise ShapeMismatchError(
                f"{source.files[name]}: tensor {name!r} has shape {list(source.shapes[name])}, but parameter "
                f"{path} needs {list(expected)}. Mend the sizes in the checkpoint's config, or fetch it again"
            )
    if spare:
        raise UnexpectedKeyError(
            f"{source.files[spare[0]]}: tensor {spare[0]!r} has no place in the model ({len(spare)} such in all). The "
            f"config describes another model, or the file holds more than a causal language model: export it again"
        )


@jax.jit
def _finite(arrays: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """Of each array by its first axis, which are layers where it is stacked."""
    return {path: jnp.isfinite(array).all(axis=tuple(range(1, array.ndim))) for path, array in arrays.items()}


def _check_finite(layout: Layout, source: TensorSource, arrays: dict[str, jax.Array]) -> None:
    """Where the arrays lie, so that all processes come to the same end."""
    for path, flags in _finite(arrays).items():
        if not (flags := to_host(flags)).all():
            leaf = layout[path]
            name = leaf.names[int(flags.argmin()) if leaf.stacked else 0]
            raise CheckpointError(
                f"{source.files[name]}: tensor {name!r} (parameter {path}) holds NaN or infinity as "
                f"{arrays[path].dtype}; all that is computed with it would; fetch the file again, or "
                f"train that model anew"
            )


def _array(leaf: Leaf, source: TensorSource, sharding: Any, dtype: np.dtype) -> jax.Array:
    if sharding is None:
        return jnp.asarray(tensor_part(leaf, source, (slice(None),) * len(leaf.shape), dtype))
    parts: dict[str, np.ndarray] = {}  # devices that hold the same part share one read

    def read(index: Any) -> np.ndarray:
        if str(index) not in parts:
            parts[str(index)] = tensor_part(leaf, source, index, dtype)
        return parts[str(index)]

    return jax.make_array_from_callback(leaf.shape, sharding, read)


def tensor_part(leaf: Leaf, source: TensorSource, index: tuple[slice, ...], dtype: np.dtype) -> np.ndarray:
    """`array[index]` of the array that the leaf describes, in memory order, in `dtype`."""
    ranges = [slice(*s.indices(n)[:2]) for s, n in zip(index, leaf.shape, strict=True)]
    out = np.empty([r.stop - r.start for r in ranges], dtype)
    names = leaf.names[ranges[0]] if leaf.stacked else leaf.names
    blocks = out if leaf.stacked else out[None]
    inner: list[slice | np.ndarray] = list(ranges[1:] if leaf.stacked else ranges)
    if leaf.transposed:
        inner.reverse()
    if leaf.paired_heads:
        inner[0] = halves_from_pairs(leaf.tensor_shape[0], leaf.paired_heads)[inner[0]]
    for block, name in zip(blocks, names, strict=True):
        value = source.read(name, tuple(inner))
        value = value - np.float32(leaf.offset) if leaf.offset else value
        block[...] = value.T if leaf.transposed else value
    return out


def halves_from_pairs(rows: int, heads: int) -> np.ndarray:
    """`[rows]` int: where row j of a weight in the halves order stands in one whose rotary pairs are neighbours."""
    return np.arange(rows).reshape(heads, rows // heads // 2, 2).swapaxes(1, 2).reshape(-1)


def whole_matrix(source: TensorSource, name: str) -> np.ndarray:
    """A matrix of the checkpoint in float32. Raises: CheckpointError where a value is not finite."""
    value = np.asarray(source.read(name, (slice(None), slice(None))), np.float32)
    if not np.isfinite(value).all():
        raise CheckpointError(f"{source.files[name]}: tensor {name!r} holds NaN or infinity; fetch the file again")
    return value


def host_reader(layout: Layout, params: Params, dtype: np.dtype) -> Callable[[str], np.ndarray]:
    """The inverse of reading: what gives each tensor of a checkpoint on the host.

    Every process must ask for all of them, in one order: an array that spans processes is gathered one layer at a time,
    by all of them, so that no device ever holds a whole stack. Asked for in the order of `layout`, each of our arrays
    is brought to the host once.
    """
    leaves = flatten(params)
    places = {name: (path, layer) for path, leaf in layout.items() for layer, name in enumerate(leaf.names)}

    @functools.lru_cache(maxsize=1)
    def whole(path: str) -> Any:
        return leaves[path] if _spans_processes(leaves[path]) else np.asarray(leaves[path])

    def read(name: str) -> np.ndarray:
        path, layer = places[name]
        value = whole(path)[layer] if layout[path].stacked else whole(path)
        if _spans_processes(leaves[path]):
            value = multihost_utils.process_allgather(value, tiled=True)
        value = np.asarray(value).astype(dtype, copy=False)
        return value.T if layout[path].transposed else value

    return read


def _spans_processes(array: Any) -> bool:
    return isinstance(array, jax.Array) and not array.is_fully_addressable
