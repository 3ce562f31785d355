"""The layers of a decoder. `Projection` is the one place where a weight is read."""

from __future__ import annotations

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from tisdpo_jax import partitioning
from tisdpo_jax.models.attention import Mask, attention
from tisdpo_jax.models.config import ComputeConfig, RopeConfig, TransformerConfig
from tisdpo_jax.routing import take
from tisdpo_jax.types import Copies

Array = jax.Array


class LayerCache(NamedTuple):
    """Keys (after rope) and values of the tokens read so far."""

    k: Array  # [R, M, Hkv, head_dim]
    v: Array  # [R, M, Hkv, head_dim]


class Rope(NamedTuple):
    """What turns queries and keys."""

    cos: Array  # [R or 1, T, 1, head_dim / 2] float32
    sin: Array
    swap: Array | None = None  # [head_dim, head_dim], the permutation that swaps the halves


class Shared(NamedTuple):
    """What all layers use alike, made once a call."""

    rope: Rope
    mask: Mask  # its arrays; the window comes from the configuration
    prepared: Any  # what the attention back end derives from the mask
    slots: Array | None = None  # int32, where in the cache new tokens go: [R, T]; or [], the first slot, in all rows
    copies: Copies | None = None  # packed rows, for a back end that wants the prompt before every response


class Projection(nn.Module):
    """A linear map, with a LoRA adapter on top where the collection "lora" holds one for it."""

    features: int
    bias: bool
    compute: ComputeConfig
    axes: tuple[str, str]  # logical axes of the kernel

    @nn.compact
    def __call__(self, x: Array) -> Array:
        dtype = self.compute.dtype
        init = nn.initializers.normal(0.02)
        kernel = self.param("kernel", init, (x.shape[-1], self.features), jnp.dtype(self.compute.param_dtype))
        # One axis of tokens: XLA on CPU takes a slow path for the gradient of a matrix that is summed over two.
        shape, x = x.shape, x.astype(dtype).reshape(-1, x.shape[-1])
        if kernel.dtype == jnp.int8:  # gathered as such
            kernel = partitioning.constrain(kernel, tuple(None if axis == "embed" else axis for axis in self.axes))
        y = x @ kernel.astype(dtype)
        if kernel.dtype == jnp.int8:  # a scale belongs to an output, so it comes after the product
            y *= self.get_variable("params", "kernel_scale").astype(dtype)
        if self.has_variable("lora", "a"):
            inputs, outputs = (None if axis == "embed" else axis for axis in self.axes)
            a: Array = partitioning.constrain(self.get_variable("lora", "a").astype(dtype), (inputs, None))
            b: Array = partitioning.constrain(self.get_variable("lora", "b").astype(dtype), (None, outputs))
            y += (x @ a) @ b * jnp.asarray(self.compute.lora_scale, dtype)
        if self.bias:
            bias = self.param("bias", nn.initializers.zeros, (self.features,), jnp.dtype(self.compute.param_dtype))
            y += bias.astype(dtype)
        return y.reshape(*shape[:-1], self.features)


class RMSNorm(nn.Module):
    """Root-mean-square norm over the last axis, in float32."""

    eps: float
    compute: ComputeConfig

    @nn.compact
    def __call__(self, x: Array) -> Array:
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],), jnp.dtype(self.compute.param_dtype))
        x = x.astype(jnp.float32)
        x *= jax.lax.rsqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True) + self.eps)
        return (x * scale.astype(jnp.float32)).astype(self.compute.dtype)


class Attention(nn.Module):
    config: TransformerConfig
    compute: ComputeConfig

    @nn.compact
    def __call__(self, x: Array, shared: Shared, cache: LayerCache | None) -> tuple[Array, LayerCache | None]:
        c, rows = self.config, x.shape[:2]

        def heads(name: str, count: int, axis: str) -> Array:
            y = Projection(count * c.head_dim, c.qkv_bias, self.compute, ("embed", axis), name=name)(x)
            return partitioning.constrain(y.reshape(*rows, count, c.head_dim), ("batch", None, axis, None))

        q, k, v = (
            heads("q", c.num_heads, "heads"),
            heads("k", c.num_kv_heads, "kv_heads"),
            heads("v", c.num_kv_heads, "kv_heads"),
        )
        if c.qk_norm:
            q = RMSNorm(c.norm_eps, self.compute, name="q_norm")(q)
            k = RMSNorm(c.norm_eps, self.compute, name="k_norm")(k)
        q, k = rotate(q, shared.rope), rotate(k, shared.rope)
        if cache is not None:
            new = (k.astype(cache.k.dtype), v.astype(cache.v.dtype))
            cache = LayerCache(*(_stored(old, x, shared.slots) for old, x in zip(cache, new, strict=True)))
            k, v = (x.astype(q.dtype) for x in cache)
        mask = shared.mask._replace(window=c.sliding_window)  # static; what travels through the scan is not
        with jax.named_scope("attention"):
            if shared.copies is not None:
                q, k, v = (take(x, shared.copies.source, shared.copies.back) for x in (q, k, v))
            y = attention(q, k, v, mask=mask, backend=self.compute.attention, prepared=shared.prepared)
            if shared.copies is not None:  # all copies of a token come out alike: the first is read
                first = shared.copies.back[..., :1]
                y = take(y, first[..., 0], readers_of_first(shared.copies))
        y = y.reshape(*rows, c.num_heads * c.head_dim)
        return Projection(c.hidden_size, c.output_bias, self.compute, ("heads", "embed"), name="o")(y), cache


def _stored(cache: Array, new: Array, slots: Array | None) -> Array:
    """The cache `[R, M, ...]` with new entries `[R, T, ...]`; one slot for all rows is written in place."""
    if slots is not None and slots.ndim == 0:
        return jax.lax.dynamic_update_slice_in_dim(cache, new, slots, axis=1)
    return cache.at[jnp.arange(len(new))[:, None], slots].set(new)


class MLP(nn.Module):
    config: TransformerConfig
    compute: ComputeConfig

    @nn.compact
    def __call__(self, x: Array) -> Array:
        c = self.config
        gate = Projection(c.intermediate_size, c.mlp_bias, self.compute, ("embed", "mlp"), name="gate")(x)
        up = Projection(c.intermediate_size, c.mlp_bias, self.compute, ("embed", "mlp"), name="up")(x)
        gate, up = settled(gate), settled(up)
        inner = written(partitioning.constrain(nn.silu(gate) * up, ("batch", None, "mlp")))
        return Projection(c.hidden_size, c.mlp_bias, self.compute, ("mlp", "embed"), name="down")(inner)


class Block(nn.Module):
    """One layer: norm, attention, add; norm, MLP, add. A carry for the scan over layers."""

    config: TransformerConfig
    compute: ComputeConfig

    @nn.compact
    def __call__(self, x: Array, cache: LayerCache | None, shared: Shared) -> tuple[Array, LayerCache | None]:
        eps = self.config.norm_eps
        y = RMSNorm(eps, self.compute, name="attention_norm")(x)
        y, cache = Attention(self.config, self.compute, name="attention")(y, shared, cache)
        x = partitioning.constrain(x + y, ("batch", None, None))
        y = settled(RMSNorm(eps, self.compute, name="mlp_norm")(x))
        x = x + MLP(self.config, self.compute, name="mlp")(y)
        return partitioning.constrain(x, ("batch", None, None)), cache


# Left alone, XLA for TPUs computes an operand anew in every tile of the matrix product that reads it: measured ahead of
# time on a 7B step, a fifth of the MLP's backward pass.


@jax.custom_vjp
def settled(x: Array) -> Array:
    """The identity; its gradient is written to memory before it is read."""
    return x


settled.defvjp(lambda x: (x, None), lambda _, g: (jax.lax.optimization_barrier(g),))


@jax.custom_vjp
def written(x: Array) -> Array:
    """The identity; its value is written to memory before it is read."""
    return jax.lax.optimization_barrier(x)


written.defvjp(lambda x: (jax.lax.optimization_barrier(x), None), lambda _, g: (g,))


def readers_of_first(copies: Copies) -> Array:
    """For every copy the token that reads it, `[R, U, 1]`: -1 where another copy is read."""
    places = jnp.arange(copies.source.shape[1])
    firsts = jax.vmap(lambda first, index: jnp.take(first, index, mode="clip"))(copies.back[..., 0], copies.source)
    return jnp.where((firsts == places) & (copies.source >= 0), copies.source, -1)[..., None]


def rope_frequencies(rope: RopeConfig, head_dim: int) -> Array:
    """Angle per position of each pair of dimensions: `[head_dim / 2]` float32.

    Source: RoFormer (arXiv 2104.09864), eq. 15; "llama3" as in the Llama 3.1 release: wavelengths
    longer than the original context / low_freq_factor are divided by `factor`, short ones are kept,
    and those between are blended.
    """
    inverse = rope.theta ** -(jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim)
    if rope.kind == "default":
        return inverse
    if rope.kind == "linear":
        return inverse / rope.factor
    turns = rope.original_max_positions * inverse / (2 * jnp.pi)
    keep = (turns - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor)
    keep = jnp.clip(keep, 0.0, 1.0)
    return keep * inverse + (1 - keep) * inverse / rope.factor


def rope_tables(rope: RopeConfig, head_dim: int, positions: Array, *, platform: str = "") -> Rope:
    """cos and sin for `positions [R, T]`; on TPUs the halves are swapped by a matrix, which XLA cannot do as well."""
    angles = positions.astype(jnp.float32)[:, :, None, None] * rope_frequencies(rope, head_dim)
    swap = None
    if (platform or jax.default_backend()) == "tpu":
        swap = jnp.roll(jnp.eye(head_dim), head_dim // 2, axis=1)
    return Rope(jnp.cos(angles), jnp.sin(angles), swap)


def rotate(x: Array, rope: Rope) -> Array:
    """Rotary embedding, halves convention: dimension i turns with i + head_dim / 2. In float32."""
    cos, sin, swap = rope
    if swap is None:
        first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
        turned = jnp.concatenate((first * cos - second * sin, second * cos + first * sin), axis=-1)
        return turned.astype(x.dtype)
    # the same numbers: a product with a permutation is exact, and what comes behind is part of it
    partner = jnp.matmul(x, swap.astype(x.dtype), precision=jax.lax.Precision.HIGHEST).astype(jnp.float32)
    cos, sin = jnp.concatenate((cos, cos), axis=-1), jnp.concatenate((-sin, sin), axis=-1)
    return (x.astype(jnp.float32) * cos + partner * sin).astype(x.dtype)
