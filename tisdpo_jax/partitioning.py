"""The mesh, and the one table that says which array axis lies along which mesh axis.

Arrays are described by logical axis names from a closed vocabulary, the fields of `AxisRules`: a
name that is not a field raises. Every parameter must be covered by `models.PARAM_AXES`; an axis that does
not divide by its mesh axes raises, it is never silently replicated.
"""

from __future__ import annotations

import collections
import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils, multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from tisdpo_jax.errors import ConfigError

MESH_AXES = ("data", "fsdp", "tensor")


@dataclasses.dataclass(frozen=True)
class AxisRules:
    """Logical axis -> mesh axes. The whole partitioning policy is this table."""

    batch: tuple[str, ...] = ("data", "fsdp")
    embed: tuple[str, ...] = ("fsdp",)
    heads: tuple[str, ...] = ("tensor",)  # query heads, flattened with head_dim in kernels
    kv_heads: tuple[str, ...] = ("tensor",)
    mlp: tuple[str, ...] = ("tensor",)
    vocab: tuple[str, ...] = ("tensor",)
    layers: tuple[str, ...] = ()
    norm: tuple[str, ...] = ()
    head_dim: tuple[str, ...] = ()
    rank: tuple[str, ...] = ()
    label: tuple[str, ...] = ()  # of a reward model's head
    adapter_heads: tuple[str, ...] = ("tensor", "fsdp")  # of adapters: what fsdp does not split already
    adapter_kv_heads: tuple[str, ...] = ("tensor", "fsdp")
    adapter_mlp: tuple[str, ...] = ("tensor", "fsdp")


def make_mesh(
    data: int = 1, fsdp: int = -1, tensor: int = 1, *, devices: Sequence[Any] | None = None, slices: str = "auto"
) -> Mesh:
    """A mesh ("data", "fsdp", "tensor") over `devices` (default: all); one size may be -1, the rest.

    Args:
      slices: where devices belong to several slices (`slice_index`), the axis over them; along the others all are of
        one slice. "auto" is data if its size divides by the slices, else fsdp.

    Raises: ConfigError for sizes that do not fit the devices or their slices.
    """
    devices = list(jax.devices() if devices is None else devices)
    sizes = [data, fsdp, tensor]
    if any(size != -1 and size < 1 for size in sizes) or sizes.count(-1) > 1:
        raise ConfigError(
            f"mesh sizes data={data} fsdp={fsdp} tensor={tensor}: each is at least 1, and at most one is -1"
        )
    if -1 in sizes:
        known = -math.prod(sizes)
        sizes[sizes.index(-1)] = max(len(devices) // known, 1)
    if math.prod(sizes) != len(devices):
        raise ConfigError(
            f"mesh data={sizes[0]} fsdp={sizes[1]} tensor={sizes[2]} needs {math.prod(sizes)} devices, but there are "
            f"{len(devices)}; change mesh.data, mesh.fsdp or mesh.tensor"
        )
    axis_types = (jax.sharding.AxisType.Auto,) * 3
    counts = collections.Counter(getattr(device, "slice_index", 0) for device in devices)
    if len(counts) > 1:
        between = _between_slices(sizes, counts, slices, tpu=devices[0].platform == "tpu")
        if between is not None:
            within = [size // parts for size, parts in zip(sizes, between, strict=True)]
            return Mesh(
                mesh_utils.create_hybrid_device_mesh(within, between, devices), MESH_AXES, axis_types=axis_types
            )
    if devices[0].platform == "tpu" or devices == list(jax.devices()):  # laid out as the interconnect lies
        return jax.make_mesh(tuple(sizes), MESH_AXES, axis_types=axis_types, devices=devices)
    return Mesh(np.asarray(devices).reshape(sizes), MESH_AXES, axis_types=axis_types)


def _between_slices(sizes: Sequence[int], counts: Mapping[Any, int], axis: str, *, tpu: bool) -> list[int] | None:
    """Parts of each axis that lie in different slices; None where devices other than TPUs are to lie as they come."""
    count, what = len(counts), f"mesh data={sizes[0]} fsdp={sizes[1]} tensor={sizes[2]}"
    wanted = ("data", "fsdp") if axis == "auto" else (axis,)
    fitting = [name for name in wanted if sizes[MESH_AXES.index(name)] % count == 0]
    if len(set(counts.values())) > 1 or not fitting:
        if not tpu and axis == "auto":  # GPUs count a slice for each host
            return None
        if len(set(counts.values())) > 1:
            raise ConfigError(f"{what}: the {count} slices have {sorted(counts.values())} devices; they must be alike")
        raise ConfigError(
            f"{what}: there are {count} slices, and mesh.{' and mesh.'.join(wanted)} cannot be divided by that; set "
            f"mesh.data to a multiple of {count}, or name another axis as mesh.slices"
        )
    return [count if name == fitting[0] else 1 for name in MESH_AXES]


def spec(axes: Sequence[str | None], rules: AxisRules = AxisRules()) -> PartitionSpec:
    """Logical axes -> PartitionSpec. Unknown names and a mesh axis used twice raise ValueError."""
    known = {field.name for field in dataclasses.fields(rules)}
    entries: list[Any] = []
    used: set[str] = set()
    for axis in axes:
        if axis is None:
            entries.append(None)
            continue
        if axis not in known:
            raise ValueError(f"unknown logical axis {axis!r} in {tuple(axes)}; known: {', '.join(sorted(known))}")
        mesh_axes = getattr(rules, axis)
        if used & set(mesh_axes):
            raise ValueError(f"axes {tuple(axes)} put mesh axis {sorted(used & set(mesh_axes))} on two dimensions")
        used |= set(mesh_axes)
        entries.append(mesh_axes[0] if len(mesh_axes) == 1 else (mesh_axes or None))
    return PartitionSpec(*entries)


def param_shardings(abstract: dict[str, Any], mesh: Mesh, *, rules: AxisRules = AxisRules()) -> dict[str, Any]:
    """A NamedSharding for every leaf of a parameter or adapter tree.

    Raises: ValueError for a leaf that `models.PARAM_AXES` does not cover, ConfigError for one that does
    not divide by its mesh axes; both name the path.
    """
    from tisdpo_jax.models import PARAM_AXES  # late: models lay out their activations by this module

    def of(path: str, leaf: Any) -> Any:
        if path not in PARAM_AXES:
            raise ValueError(f"parameter {path!r} has no entry in models.PARAM_AXES; every parameter needs one")
        axes = PARAM_AXES[path]
        if len(axes) != len(leaf.shape):
            raise ValueError(
                f"parameter {path!r} has shape {leaf.shape}, but PARAM_AXES names {len(axes)} axes: {axes}"
            )

        def place(array: Any, axes: Any) -> NamedSharding:
            layout = spec(axes, rules)
            check_divides(array.shape, layout, mesh, what=f"parameter {path!r}", names=axes)
            return NamedSharding(mesh, layout)

        return jax.tree.map(place, leaf, leaf.axes(axes) if hasattr(leaf, "axes") else axes)  # of several arrays

    return map_with_path(of, abstract)


def check_divides(shape: Sequence[int], layout: PartitionSpec, mesh: Mesh, *, what: str, names: Sequence[Any]) -> None:
    """Raises ConfigError when a dimension does not divide by the mesh axes that it lies along."""
    entries: list[Any] = [*layout]
    for size, entry, name in zip(shape, entries, names, strict=False):
        mesh_axes: tuple[str, ...] = () if entry is None else (entry,) if isinstance(entry, str) else tuple(entry)
        parts = math.prod(mesh.shape[axis] for axis in mesh_axes)
        if size % parts:
            raise ConfigError(
                f"{what}: its axis {name!r} of size {size} does not divide by mesh {'*'.join(mesh_axes)} = {parts}; "
                f"change mesh.{mesh_axes[-1]}"
            )


def check_heads(num_heads: int, num_kv_heads: int, mesh: Mesh) -> None:
    """Raises ConfigError when whole heads cannot be dealt out over the `tensor` axis."""
    for name, size in (("num_heads", num_heads), ("num_kv_heads", num_kv_heads)):
        if size % mesh.shape["tensor"]:
            raise ConfigError(
                f"model: {name} {size} does not divide by mesh.tensor {mesh.shape['tensor']}; change mesh.tensor"
            )


def places(batch_size: int, mesh: Mesh, *, parts: int = 1, field: str = "batch_size") -> int:
    """Places that a batch needs so that each of `parts` micro-batches divides by the mesh; fillers take what is over.

    Raises: ConfigError when micro-batches alone leave devices without a pair; fewer of them cost no memory.
    """
    shards = batch_shards(mesh)
    if parts > 1 and batch_size < shards * parts:
        stage = field.rpartition(".")[0]
        raise ConfigError(
            f"{field} {batch_size} in {parts} micro-batches leaves {batch_size // parts} pairs for mesh data*fsdp = "
            f"{shards} devices; set {stage}.gradient_accumulation_steps to {max(batch_size // shards, 1)}"
        )
    return -(-batch_size // (shards * parts)) * shards * parts


def batch_shardings(batch: Any, mesh: Mesh) -> Any:
    """Every array of a batch split by pairs over ("data", "fsdp"), whole along all other axes."""
    sharding = NamedSharding(mesh, spec(("batch",)))
    return jax.tree.map(lambda _: sharding, batch)


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec())


def batch_share(mesh: Mesh) -> tuple[tuple[int, ...], int]:
    """What this process holds of a batch: the numbers of its pieces along the first axis, in order, and of how many."""
    count = batch_shards(mesh)
    places = NamedSharding(mesh, spec(("batch",))).addressable_devices_indices_map((count,)).values()
    return tuple(sorted({index[0].start or 0 for index in places if index is not None})), count


def put_batch(batch: Any, mesh: Mesh) -> Any:
    """Host arrays of this process's share of a batch -> global device arrays. One process alone holds all of it."""
    sharding, (held, count) = NamedSharding(mesh, spec(("batch",))), batch_share(mesh)

    def put(x: np.ndarray) -> jax.Array:
        if len(x) % len(held):
            raise ValueError(f"{len(x)} rows of a batch are not divisible by the {len(held)} devices that share them")
        size = len(x) // len(held)

        def piece(index: tuple[slice, ...] | None) -> np.ndarray:
            assert index is not None  # of a device of this process
            at = held.index((index[0].start or 0) // size) * size
            return x[at : at + size]

        return jax.make_array_from_callback((size * count, *x.shape[1:]), sharding, piece)

    return jax.tree.map(put, batch)


def to_host(x: jax.Array) -> np.ndarray:
    """The whole array on this host, wherever its parts lie. Every process must call it."""
    if x.is_fully_addressable:
        return np.asarray(x)
    if x.is_fully_replicated:
        return np.asarray(x.addressable_data(0))
    return np.asarray(multihost_utils.process_allgather(x, tiled=True))


def batch_shards(mesh: Any) -> int:
    """Parts that a batch is split into."""
    return 1 if mesh is None else int(mesh.shape["data"] * mesh.shape["fsdp"])


def active_mesh() -> Any:
    """The mesh set by `jax.set_mesh` when the caller is under automatic sharding, else None."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or set(mesh.axis_names) != set(MESH_AXES):
        return None
    if any(kind != jax.sharding.AxisType.Auto for kind in mesh.axis_types):
        return None
    return mesh


def constrain(x: jax.Array, axes: Sequence[str | None]) -> jax.Array:
    """Pins the layout of an activation; without a mesh, or inside shard_map, it does nothing."""
    mesh = active_mesh()
    return x if mesh is None else jax.lax.with_sharding_constraint(x, NamedSharding(mesh, spec(axes)))


def map_with_path(function: Callable[[str, Any], Any], tree: dict[str, Any]) -> dict[str, Any]:
    """`function(path, leaf)` over a nested dict, path as in `layers/attention/q/kernel`."""

    def of(path: Any, leaf: Any) -> Any:
        return function(jax.tree_util.keystr(path, simple=True, separator="/"), leaf)

    mapped: dict[str, Any] = jax.tree_util.tree_map_with_path(of, tree, is_leaf=lambda x: not isinstance(x, dict))
    return mapped
