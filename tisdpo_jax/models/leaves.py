"""How a weight is stored, and the one place where it is read: an array, or a pytree that stands where one would.

Trees stay plain nested dicts. An array is the dense leaf; any other says itself what its product with an input is, so
nothing else in the package knows how it is stored. Tokens become states here (`take_rows`), and states logits (`Head`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from tisdpo_jax import partitioning
from tisdpo_jax.models.config import TransformerConfig
from tisdpo_jax.types import Params, Variables

Array = jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Int8:
    """A matrix in 8 bits with a scale for every output channel: `values * scale`."""

    values: Any  # [..., in, out] int8
    scale: Any  # [..., out] float32

    @classmethod
    def of(cls, kernel: Array) -> Int8:
        """Symmetric and to the nearest; the largest entry of a channel becomes 127."""
        wide = kernel.astype(jnp.float32)
        largest = jnp.max(jnp.abs(wide), axis=-2, keepdims=True)
        scale = jnp.where(largest > 0, largest / 127.0, 1.0)
        return cls(jnp.round(wide / scale).astype(jnp.int8), scale[..., 0, :])

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.values.shape)

    @property
    def dtype(self) -> Any:
        return self.values.dtype

    def axes(self, axes: tuple[str, ...]) -> Int8:
        """Logical axes of its arrays, for those of the matrix."""
        return Int8(axes, (*axes[:-2], axes[-1]))

    def matmul(self, x: Array, axes: Sequence[str | None]) -> Array:
        values = partitioning.constrain(self.values, axes)  # gathered as int8
        return (x @ values.astype(x.dtype)) * self.scale.astype(x.dtype)  # a scale belongs to an output

    def take(self, ids: Array, dtype: Any) -> Array:
        return jnp.take(self.values, ids, axis=0).astype(dtype) * self.scale.astype(dtype)

    def dense(self) -> Array:
        return self.values.astype(jnp.float32) * self.scale[..., None, :]


Weight = Array | Int8


def quantize(params: Params) -> Params:
    """Parameters whose layer kernels are `Int8`. The rest keeps its dtype: it is little, and the head makes the KL."""

    def visit(node: Params) -> Params:
        return {
            name: visit(value) if isinstance(value, dict) else Int8.of(value) if name == "kernel" else value
            for name, value in node.items()
        }

    return {**params, "layers": visit(params["layers"])}


def matmul(x: Array, weight: Weight, axes: Sequence[str]) -> Array:
    """`x @ weight` in the dtype of `x [n, in]`; `axes` are the logical axes of the weight `[in, out]`."""
    if isinstance(weight, Int8):
        return weight.matmul(x, gathered(axes))
    return x @ weight.astype(x.dtype)


def dense(weight: Weight) -> Array:
    """The weight as an array."""
    return weight.dense() if isinstance(weight, Int8) else weight


def gathered(axes: Sequence[str]) -> tuple[str | None, ...]:
    """How a weight lies where it is used: whole along the model's width, which parameters are split along."""
    return tuple(None if axis == "embed" else axis for axis in axes)


def take_rows(table: Weight, tokens: Array, dtype: Any) -> Array:
    """`table[tokens]` as `[R, T, D]` in `dtype`, for a table `[V, D]` and tokens `[R, T]`.

    On a mesh the table stays split: each device has some columns of it, so it looks up the tokens of its whole group,
    and the devices then exchange columns of all tokens for all columns of their own. Neither the table nor its
    gradient, which is summed in the table's dtype, is ever whole.
    """
    if isinstance(table, Int8):
        return table.take(tokens, dtype)
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
        rows = jnp.take(table, tokens, axis=0, mode="clip").astype(dtype)
        if slices > 1:
            here = (tokens >= 0) & (tokens < table.shape[0])
            rows = jnp.where(here[..., None], rows, jnp.zeros((), dtype))
        if group > 1:
            rows = jax.lax.all_to_all(rows, "fsdp", split_axis=0, concat_axis=2, tiled=True)
        return jax.lax.psum(rows, "tensor")

    batch = PartitionSpec(("data", "fsdp"))
    return jax.shard_map(local, mesh=mesh, in_specs=(PartitionSpec("tensor", "fsdp"), batch), out_specs=batch)(
        table, tokens
    )


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Head:
    """The map from hidden states to the vocabulary, and the soft cap of its logits."""

    kernel: Any  # [D, V], in the dtype that it is stored in
    softcap: float | None = dataclasses.field(default=None, metadata={"static": True})

    def logits(self, hidden: Array) -> Array:
        """`[..., V]` float32 of `hidden [..., D]`. For few tokens: training never makes this array."""
        return capped(product(hidden, self.kernel.astype(hidden.dtype)), self.softcap)


def head_of(config: TransformerConfig, variables: Variables) -> Head:
    params = variables["params"]
    kernel = params["embed"]["embedding"].T if config.tied_head else params["head"]["kernel"]
    return Head(kernel, config.final_softcap)


def score_of(variables: Variables, hidden: Array) -> Array:
    """`[...]` float32, what a reward model says of last hidden states `[..., D]`; the head of an adapter goes first."""
    kernel = {**variables["params"], **variables.get("lora", {})}["score"]["kernel"]
    return jnp.matmul(hidden.astype(jnp.float32), kernel[..., 0].astype(jnp.float32))


def head_only(config: TransformerConfig, params: Params) -> Params:
    """The part of the parameters that `head_of` reads; the same arrays."""
    name = "embed" if config.tied_head else "head"
    return {name: params[name]}


def capped(x: Array, softcap: float | None) -> Array:
    """`softcap * tanh(x / softcap)`: x where it is small, and never beyond the cap."""
    return x if softcap is None else softcap * jnp.tanh(x / softcap)


def product(x: Array, y: Array) -> Array:
    """`x @ y` of two arrays of one dtype, summed and given in float32.

    Asking for a float32 result is not enough everywhere: XLA for CPUs, as of jax 0.7 (Colab), cannot run the bfloat16
    product with a transposed second operand, which a tied head has, and every gradient. On a CPU the operands are
    widened instead; products of two bfloat16 numbers are exact in float32, so the result is the same.
    """
    if x.dtype == jnp.float32:
        return jnp.matmul(x, y)
    return jax.lax.platform_dependent(x, y, cpu=_widened, default=_asked)


def _widened(x: Array, y: Array) -> Array:
    return jnp.matmul(x.astype(jnp.float32), y.astype(jnp.float32))


def _asked(x: Array, y: Array) -> Array:
    return jnp.matmul(x, y, preferred_element_type=jnp.float32)
