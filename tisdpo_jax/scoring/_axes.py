"""Which part each axis of a mesh plays for the fused head: the package's own axes by their names, others as told."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

Array = jax.Array
Axes = Mapping[str, str | Sequence[str]]
PARTS = ("data", "fsdp", "tensor")


class Parts(NamedTuple):
    """A mesh, and its axes by part: tokens lie along data and fsdp, the head as `[D over fsdp, V over tensor]`."""

    mesh: Any = None  # None on one device, and inside a shard_map: nothing is split
    data: tuple[str, ...] = ()
    fsdp: tuple[str, ...] = ()
    tensor: tuple[str, ...] = ()

    def size(self, axes: tuple[str, ...]) -> int:
        return math.prod(self.mesh.shape[axis] for axis in axes)

    def split(self) -> Parts:
        """Without the axes of one device, along which nothing travels."""
        data, fsdp, tensor = (tuple(axis for axis in part if self.mesh.shape[axis] > 1) for part in self[1:])
        return Parts(self.mesh, data, fsdp, tensor)


def parts_of(function: str, axes: Axes | None, arrays: Sequence[Array]) -> Parts:
    """The parts of the mesh that is set, or of that on which an array lies; `axes` says them, or names of `PARTS` do.

    Raises: ValueError for a part or an axis that is not there. Warns of axes that have no part, by name.
    """
    mesh = _mesh_of(arrays)
    free = _of_type(mesh, AxisType.Auto)
    # inside a shard_map of some axes nothing is guessed: jax 0.7 cannot map the others in there
    own = {name: name for name in PARTS if name in free} if not _of_type(mesh, AxisType.Manual) else {}
    part = _told(function, own if axes is None else axes, mesh) if own or axes is not None else {}
    # what is still Explicit here has been mapped by a vmap over an axis that lies along it
    part = {name: tuple(axis for axis in names if axis in free) for name, names in part.items()}
    used = [axis for names in part.values() for axis in names]
    idle = [axis for axis in free if axis not in used and mesh.shape[axis] > 1]
    if idle:
        shown = " and ".join(f"{axis!r} ({mesh.shape[axis]} devices)" for axis in idle)
        warnings.warn(
            f"{function}: mesh axis {shown} has no part here, so logits or heads may be gathered along it. Say what "
            "lies there: axes={'data': axes of the tokens, 'fsdp': axes of the tokens and of the head's rows, "
            "'tensor': axes of the head's columns}",
            stacklevel=4,
        )
    return Parts(mesh, **part) if used else Parts()


def automatic(function: Callable[..., tuple[Array, ...]], outputs: int) -> Callable[..., tuple[Array, ...]]:
    """`function(*arrays, targets)` with axes of type Explicit made Auto inside; outputs lie as the targets do."""

    def call(*arrays: Array) -> tuple[Array, ...]:
        mesh = _mesh_of(arrays)
        explicit = _of_type(mesh, AxisType.Explicit)
        if not explicit:
            return function(*arrays)
        placed = [_on(mesh, x) for x in arrays]
        like_targets = (jax.typeof(placed[-1]).sharding,) * outputs
        out: tuple[Array, ...] = jax.sharding.auto_axes(function, axes=explicit, out_sharding=like_targets)(*placed)
        return out

    return call


def mapped_over(mesh: Any) -> dict[str, Any]:
    """What tells shard_map which axes are left, inside another that has mapped some."""
    mapped = _of_type(mesh, AxisType.Manual)
    return {"axis_names": set(mesh.axis_names) - set(mapped)} if mapped else {}


def _mesh_of(arrays: Sequence[Array]) -> Any:
    mesh = jax.sharding.get_abstract_mesh()
    for x in arrays:
        if not mesh.empty:
            break
        mesh = jax.typeof(x).sharding.mesh
    return mesh


def _on(mesh: Any, x: Array) -> Array:
    """An array that lies on no mesh, as one of numpy does, whole on each device of this one."""
    if not jax.typeof(x).sharding.mesh.empty:
        return x
    return jax.sharding.reshard(x, NamedSharding(mesh, PartitionSpec(*[None] * x.ndim)))


def _of_type(mesh: Any, kind: AxisType) -> tuple[str, ...]:
    return tuple(axis for axis, its in zip(mesh.axis_names, mesh.axis_types, strict=True) if its == kind)


def _told(function: str, axes: Axes, mesh: Any) -> dict[str, tuple[str, ...]]:
    if not isinstance(axes, Mapping) or not set(axes) <= set(PARTS):
        raise ValueError(
            f"{function}: axes is {axes!r}; it must be a dict with keys of {', '.join(PARTS)}, and mesh axes as values"
        )
    named = {name: axes.get(name, ()) for name in PARTS}
    part = {name: (value,) if isinstance(value, str) else tuple(value) for name, value in named.items()}
    every = [axis for names in part.values() for axis in names]
    if mesh.empty:
        raise ValueError(
            f"{function}: axes names {', '.join(map(repr, every))}, but no mesh is set, nor do the arrays lie on one; "
            "use jax.set_mesh(mesh), or leave axes out on one device"
        )
    for axis in every:
        wrong = ""
        if axis not in mesh.axis_names:
            wrong = f", but the axes of the mesh are {', '.join(map(repr, mesh.axis_names))}"
        elif every.count(axis) > 1:
            wrong = " twice; an axis has one part"
        elif axis in _of_type(mesh, AxisType.Manual):
            wrong = (
                ", which a shard_map around the call has mapped: there each device has its own tokens and a whole "
                f"head. Leave {axis!r} out"
            )
        if wrong:
            raise ValueError(f"{function}: axes names {axis!r}{wrong}")
    return part
