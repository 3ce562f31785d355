"""One layer of a decoder, as functions of its part of the variables: norm, attention, add; norm, MLP, add."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from tisdpo_jax import partitioning
from tisdpo_jax.models.attention import Mask, attention
from tisdpo_jax.models.config import Kind, Model
from tisdpo_jax.models.leaves import gathered, matmul
from tisdpo_jax.models.rope import Rope, rotate
from tisdpo_jax.routing import take
from tisdpo_jax.types import Copies, Variables

Array = jax.Array
WHOLE = ("batch", None, None)  # how activations lie between layers


class LayerCache(NamedTuple):
    """Keys (after rope) and values of the tokens read so far."""

    k: Array  # [R, M, Hkv, head_dim]
    v: Array  # [R, M, Hkv, head_dim]


class Shared(NamedTuple):
    """What all layers of a kind use alike, made once a call."""

    rope: Rope
    mask: Mask  # its arrays; the window comes from the configuration
    prepared: Any  # what the attention back end derives from the mask
    slots: Array | None = None  # int32, where in the cache new tokens go: [R, T]; or [], the first slot, in all rows
    copies: Copies | None = None  # packed rows, for a back end that wants the prompt before every response


def inner(variables: Variables, *names: str) -> Variables:
    """The part of every collection that lies below `names`; a collection that has none is left out."""
    for name in names:
        variables = {collection: tree[name] for collection, tree in variables.items() if name in tree}
    return variables


def block(
    variables: Variables, x: Array, shared: Shared, cache: LayerCache | None, *, model: Model, kind: Kind
) -> tuple[Array, LayerCache | None]:
    """`x [R, T, D]` after one layer, and the cache with its keys and values.

    Args:
      variables: of this layer: "params", and "lora" where adapters are on.
      kind: of the layer; `shared` is that of its kind.
    """

    def norm(name: str, x: Array) -> Array:
        return rms_norm(variables["params"][name]["scale"], x, model)

    y, cache = _attend(inner(variables, "attention"), norm("attention_norm", x), shared, cache, model, kind)
    if model.config.post_norms:
        y = norm("post_attention_norm", y)
    x = partitioning.constrain(x + y, WHOLE)
    y = _mlp(inner(variables, "mlp"), settled(norm("mlp_norm", x)), model)
    if model.config.post_norms:
        y = norm("post_mlp_norm", y)
    return partitioning.constrain(x + y, WHOLE), cache


def rms_norm(scale: Array, x: Array, model: Model) -> Array:
    """Root-mean-square norm over the last axis, in float32."""
    x = x.astype(jnp.float32)
    x *= jax.lax.rsqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True) + model.config.norm_eps)
    scale = scale.astype(jnp.float32)
    return (x * (1.0 + scale if model.config.norm_offset else scale)).astype(model.compute.dtype)


def projection(variables: Variables, x: Array, axes: tuple[str, str], model: Model) -> Array:
    """A linear map, with a LoRA adapter on top where the variables hold one for it."""
    own, adapter, dtype = variables["params"], variables.get("lora"), model.compute.dtype
    # One axis of tokens: XLA on CPU takes a slow path for the gradient of a matrix that is summed over two.
    shape, x = x.shape, x.astype(dtype).reshape(-1, x.shape[-1])
    y = matmul(x, own["kernel"], axes)
    if adapter is not None:
        inputs, outputs = gathered(axes)
        a = partitioning.constrain(adapter["a"].astype(dtype), (inputs, None))
        b = partitioning.constrain(adapter["b"].astype(dtype), (None, outputs))
        y += (x @ a) @ b * jnp.asarray(model.compute.lora_scale, dtype)
    if "bias" in own:
        y += own["bias"].astype(dtype)
    return y.reshape(*shape[:-1], y.shape[-1])


def _attend(
    variables: Variables, x: Array, shared: Shared, cache: LayerCache | None, model: Model, kind: Kind
) -> tuple[Array, LayerCache | None]:
    rows, config = x.shape[:2], model.config

    def heads(name: str, count: int, axis: str) -> Array:
        y = projection(inner(variables, name), x, ("embed", axis), model)
        return partitioning.constrain(y.reshape(*rows, count, config.head_dim), ("batch", None, axis, None))

    q = heads("q", config.num_heads, "heads")
    k, v = (heads(name, config.num_kv_heads, "kv_heads") for name in "kv")
    if config.qk_norm:
        own = variables["params"]
        q, k = (rms_norm(own[name]["scale"], y, model) for name, y in (("q_norm", q), ("k_norm", k)))
    q, k = rotate(q, shared.rope), rotate(k, shared.rope)
    if cache is not None:
        new = (k.astype(cache.k.dtype), v.astype(cache.v.dtype))
        cache = LayerCache(*(_stored(old, x, shared.slots) for old, x in zip(cache, new, strict=True)))
        k, v = (x.astype(q.dtype) for x in cache)
    mask = shared.mask._replace(window=config.window(kind))  # static; what travels through the scan is not
    with jax.named_scope("attention"):
        if shared.copies is not None:
            q, k, v = (take(x, shared.copies.source, shared.copies.back) for x in (q, k, v))
        y = attention(
            *(q, k, v),
            mask=mask,
            backend=model.compute.attention,
            prepared=shared.prepared,
            scale=(config.query_pre_attn_scalar or config.head_dim) ** -0.5,
            softcap=config.attention_softcap,
        )
        if shared.copies is not None:  # all copies of a token come out alike: the first is read
            first = shared.copies.back[..., :1]
            y = take(y, first[..., 0], readers_of_first(shared.copies))
    y = y.reshape(*rows, config.num_heads * config.head_dim)
    return projection(inner(variables, "o"), y, ("heads", "embed"), model), cache


def _stored(cache: Array, new: Array, slots: Array | None) -> Array:
    """The cache `[R, M, ...]` with new entries `[R, T, ...]`; one slot for all rows is written in place."""
    if slots is not None and slots.ndim == 0:
        return jax.lax.dynamic_update_slice_in_dim(cache, new, slots, axis=1)
    return cache.at[jnp.arange(len(new))[:, None], slots].set(new)


def _mlp(variables: Variables, x: Array, model: Model) -> Array:
    gate, up = (settled(projection(inner(variables, name), x, ("embed", "mlp"), model)) for name in ("gate", "up"))
    gate = jax.nn.silu(gate) if model.config.activation == "silu" else jax.nn.gelu(gate, approximate=True)
    wide = written(partitioning.constrain(gate * up, ("batch", None, "mlp")))
    return projection(inner(variables, "down"), wide, ("mlp", "embed"), model)


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
