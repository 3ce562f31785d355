"""The decoder one token at a time: layers apart, so that each step reads the weights where they lie.

A scan over stacked layers carries the whole cache through every step, and on CPUs copies each layer's weights out of
the stack as well. Here layers are Python values, and the cache of each is written in place.
"""

from __future__ import annotations

import dataclasses
import operator
from typing import Any

import jax
import jax.numpy as jnp

from tisdpo_jax import partitioning
from tisdpo_jax.models.attention import Mask, prepare
from tisdpo_jax.models.embedding import look_up
from tisdpo_jax.models.layers import Block, LayerCache, RMSNorm, Shared, rope_tables
from tisdpo_jax.models.transformer import Model, empty_cache, hidden_states_with_cache
from tisdpo_jax.types import Variables

Array = jax.Array
CACHE_AXES = ("batch", None, "kv_heads", None)


def split_layers(variables: Variables) -> tuple[Variables, ...]:
    """The variables of each layer, adapters too, out of the stacked ones."""
    stacked = {name: tree["layers"] for name, tree in variables.items() if "layers" in tree}
    count = len(jax.tree.leaves(stacked)[0])
    return tuple(jax.tree.map(operator.itemgetter(layer), stacked) for layer in range(count))


def read_prompts(
    model: Model, variables: Variables, tokens: Array, lengths: Array, *, room: int
) -> tuple[Array, tuple[LayerCache, ...], Array]:
    """Reads prompts, left-aligned.

    Args:
      tokens: `[R, T]` int32; what stands behind the first `lengths [R]` of a row does not matter.
      room: slots for tokens to come.

    Returns: the hidden state of each row's last token `[R, D]`; the cache of each layer, `T + room` slots; the position
      of the token in each slot `[R, T + room]`, -1 where there is none.
    """
    rows, width = tokens.shape
    slot = jnp.arange(width)
    seen = jnp.where(slot < lengths[:, None], slot, -1)
    empty = empty_cache(model.config, rows, width, model.compute.dtype)
    hidden, stacked = hidden_states_with_cache(
        model, variables, tokens, jnp.broadcast_to(slot, tokens.shape), empty, seen
    )
    last = jnp.take_along_axis(hidden, (lengths - 1)[:, None, None], axis=1)[:, 0]

    def grown(x: Array) -> Array:
        return partitioning.constrain(jnp.pad(x, ((0, 0), (0, room), (0, 0), (0, 0))), CACHE_AXES)

    cache = tuple(LayerCache(grown(k), grown(v)) for k, v in zip(stacked.k, stacked.v, strict=True))
    return last, cache, jnp.pad(seen, ((0, 0), (0, room)), constant_values=-1)


def decode(
    model: Model,
    variables: Variables,
    layers: tuple[Variables, ...],
    token: Array,
    position: Array,
    slot: Array,
    cache: tuple[LayerCache, ...],
    seen: Array,
) -> tuple[Array, tuple[LayerCache, ...]]:
    """One more token of each row.

    Args:
      layers: `split_layers(variables)`.
      token, position: `[R]` int32.
      slot: `[]` int32, where in the cache the token goes, in all rows alike.
      seen: `[R, M]`, the position of the token in each slot, this one included; -1 where there is none.

    Returns: normalised last hidden states `[R, D]`, and the cache with the token in it.
    """
    config = model.config
    compute = dataclasses.replace(model.compute, attention="xla", remat="none")
    mask = Mask(config.sliding_window, query_positions=position[:, None], key_positions=seen)
    rope = rope_tables(config.rope, config.head_dim, position[:, None], platform=compute.platform)
    prepared = prepare(mask, "xla", queries=1, keys=seen.shape[1], heads=config.num_heads)
    shared = Shared(rope, mask._replace(window=None), prepared, slots=slot)
    x: Any = look_up(variables["params"]["embed"]["embedding"], token[:, None], compute.dtype)
    x = partitioning.constrain(x, ("batch", None, None))
    grown = []
    kept: Any
    for layer, kept in zip(layers, cache, strict=True):
        x, kept = Block(config, compute).apply(layer, x, kept, shared)
        grown.append(LayerCache(*(partitioning.constrain(part, CACHE_AXES) for part in kept)))
    norm = RMSNorm(config.norm_eps, compute)
    x = norm.apply({"params": variables["params"]["final_norm"]}, x)
    return x[:, 0], tuple(grown)
