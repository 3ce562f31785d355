"""Reading the embedding table where it lies."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from tisdpo_jax import partitioning

Array = jax.Array


def look_up(table: Array, tokens: Array, dtype: Any) -> Array:
    """`table[tokens]` as `[R, T, D]` in `dtype`, for a table `[V, D]` and tokens `[R, T]`.

    On a mesh the table stays split: each device has some columns of it, so it looks up the tokens of its whole group,
    and the devices then exchange columns of all tokens for all columns of their own. Neither the table nor its
    gradient, which is summed in the table's dtype, is ever whole.
    """
    mesh = partitioning.active_mesh()
    rows = tokens.shape[0]
    if mesh is None or mesh.size == 1 or rows % partitioning.batch_shards(mesh):
        return jnp.take(table, tokens, axis=0).astype(dtype)
    group, slices = mesh.shape["fsdp"], mesh.shape["tensor"]

    def local(table: Array, tokens: Array) -> Array:
        if group > 1:
            tokens = jax.lax.all_gather(tokens, "fsdp", tiled=True)
        if slices > 1:
            tokens = tokens - jax.lax.axis_index("tensor") * table.shape[0]
        found = jnp.take(table, tokens, axis=0, mode="clip").astype(dtype)
        if slices > 1:
            here = (tokens >= 0) & (tokens < table.shape[0])
            found = jnp.where(here[..., None], found, jnp.zeros((), dtype))
        if group > 1:
            found = jax.lax.all_to_all(found, "fsdp", split_axis=0, concat_axis=2, tiled=True)
        return jax.lax.psum(found, "tensor")

    batch = PartitionSpec(("data", "fsdp"))
    return jax.shard_map(local, mesh=mesh, in_specs=(PartitionSpec("tensor", "fsdp"), batch), out_specs=batch)(
        table, tokens
    )
