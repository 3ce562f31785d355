"""One decoder, described by its configuration: tokens in, last hidden states out.

Plain functions of `{"params": ...}` and, with adapters on, `"lora"` beside it: with the second a model is policy or
contrast, without it the reference, in one definition, and gradients of the adapter alone need no machinery. Training,
reading prompts and decoding go through the same `block`.
"""

from __future__ import annotations

import functools
import operator
from typing import Any

import jax
import jax.numpy as jnp

from tisdpo_jax import partitioning
from tisdpo_jax.models.attention import Mask, prepare
from tisdpo_jax.models.block import WHOLE, LayerCache, Shared, block, inner, rms_norm
from tisdpo_jax.models.config import Kind, Model, TransformerConfig
from tisdpo_jax.models.leaves import head_of, take_rows
from tisdpo_jax.models.recompute import through_layers
from tisdpo_jax.models.rope import rope_tables
from tisdpo_jax.types import Rows, Variables

Array = jax.Array
ByKind = dict[Kind, Shared]
REMAT_POLICIES = {"full": None, "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable}
CACHE_AXES = ("batch", None, "kv_heads", None)


def hidden_states(model: Model, variables: Variables, rows: Rows | Array) -> Array:
    """Normalised last hidden states `[R, T, D]` of rows of tokens, causal.

    Args:
      rows: `types.Rows`, or tokens `[R, T]` int32, left-aligned: padding stands behind the real tokens.
    """
    if not isinstance(rows, Rows):
        rows = Rows(rows, jnp.arange(rows.shape[1])[None])
    if rows.copies is None:
        length, mask = rows.tokens.shape[1], Mask(None, None, rows.tree)
        if rows.tree is not None:
            mask = mask._replace(places=rows.positions)
    else:  # trees are for back ends without copies
        length, mask = rows.copies.source.shape[1], Mask(None, rows.copies.segments)
    shared = _shared(model, mask, rows.positions, queries=length, keys=length, copies=rows.copies)
    x, _ = _layers(model, inner(variables, "layers"), _embed(model, variables, rows.tokens), shared, None)
    return _final_norm(model, variables, x)


def hidden_states_with_cache(
    model: Model, variables: Variables, tokens: Array, positions: Array, cache: LayerCache, seen: Array
) -> tuple[Array, LayerCache]:
    """As `hidden_states`, against a cache: `tokens [R, T]` at `positions [R, T]` are added to it.

    `seen [R, M]` is the position of the token in each slot, -1 where there is none, this call's
    tokens included. Slot and position of a token are the same number.
    """
    model = model.decoding
    shared = _shared_with_cache(model, positions, positions, seen)
    x, kept = _layers(model, inner(variables, "layers"), _embed(model, variables, tokens), shared, cache)
    return _final_norm(model, variables, x), kept


def empty_cache(config: TransformerConfig, rows: int, length: int, dtype: Any) -> LayerCache:
    """A cache for `rows` rows of up to `length` tokens: `[L, R, M, Hkv, head_dim]`."""
    shape = (config.num_layers, rows, length, config.num_kv_heads, config.head_dim)
    return LayerCache(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype))


def logits(model: Model, variables: Variables, tokens: Array) -> Array:
    """`[R, T, V]` float32. For small inputs and tests; training never makes this array."""
    return head_of(model.config, variables).logits(hidden_states(model, variables, tokens))


# One token at a time: layers apart, so that each step reads the weights where they lie. A scan over stacked layers
# carries the whole cache through every step, and on CPUs copies each layer's weights out of the stack as well.


def split_layers(variables: Variables) -> tuple[Variables, ...]:
    """The variables of each layer, adapters too, out of the stacked ones."""
    stacked = inner(variables, "layers")
    count = len(jax.tree.leaves(stacked)[0])
    return tuple(jax.tree.map(operator.itemgetter(layer), stacked) for layer in range(count))


def prefill(
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
    model = model.decoding
    shared = _shared_with_cache(model, position[:, None], slot, seen)
    x, runs, grown = _embed(model, variables, token[:, None]), _runs(model), []
    for number, (layer, kept) in enumerate(zip(layers, cache, strict=True)):
        kind, run = runs[number % len(runs)]
        x, kept = run(layer, x, shared[kind], kept)
        grown.append(LayerCache(*(partitioning.constrain(part, CACHE_AXES) for part in kept)))
    return _final_norm(model, variables, x)[:, 0], tuple(grown)


def _embed(model: Model, variables: Variables, tokens: Array) -> Array:
    x = take_rows(variables["params"]["embed"]["embedding"], tokens, model.compute.dtype)
    if model.config.embed_scale:
        x *= jnp.asarray(model.config.hidden_size**0.5, x.dtype)
    return partitioning.constrain(x, WHOLE)


def _final_norm(model: Model, variables: Variables, x: Array) -> Array:
    return rms_norm(variables["params"]["final_norm"]["scale"], x, model)


def _shared(model: Model, mask: Mask, positions: Array, *, queries: int, keys: int, **others: Any) -> ByKind:
    """What the layers of each kind share. The window of a mask is a static number, so it is not in here."""
    config, compute = model.config, model.compute
    kinds = dict.fromkeys(config.pattern)
    ropes = {
        rope: rope_tables(rope, config.head_dim, positions, platform=compute.platform)
        for rope in dict.fromkeys(map(config.rope_of, kinds))
    }

    def prepared(kind: Kind) -> Any:
        own, platform = mask._replace(window=config.window(kind)), compute.platform or jax.default_backend()
        return prepare(own, compute.attention, queries, keys, config.num_heads, platform, config.attention_softcap)

    return {kind: Shared(ropes[config.rope_of(kind)], mask, prepared(kind), **others) for kind in kinds}


def _shared_with_cache(model: Model, positions: Array, slots: Array, seen: Array) -> ByKind:
    mask = Mask(query_positions=positions, key_positions=seen)
    return _shared(model, mask, positions, queries=positions.shape[1], keys=seen.shape[1], slots=slots)


def _runs(model: Model) -> list[tuple[Kind, Any]]:
    """(kind, `(variables, x, shared, cache) -> (x, cache)`) of each layer of the pattern."""

    def of(kind: Kind) -> Any:
        run: Any = functools.partial(block, model=model, kind=kind)
        if model.compute.remat != "none":
            run = jax.checkpoint(run, policy=REMAT_POLICIES[model.compute.remat], prevent_cse=False)
        return run

    return [(kind, of(kind)) for kind in model.config.pattern]


def _layers(model: Model, stacks: Variables, x: Array, shared: ByKind, cache: LayerCache | None) -> tuple[Array, Any]:
    """`x [R, T, D]` after all layers, and the cache of all. A scan goes by the pattern, whose layers stand apart."""
    compute, count = model.compute, model.config.num_layers
    if cache is None and compute.remat == "full" and compute.layer_loop == "scan":

        def layer(kind: Kind) -> Any:
            return lambda own, x, shared: block(own, x, shared[kind], None, model=model, kind=kind)[0]

        return through_layers([layer(kind) for kind in model.config.pattern], stacks, x, shared, count=count), None
    runs = _runs(model)
    period, unroll = len(runs), compute.layer_loop == "unroll"

    def step(x: Array, both: Any) -> tuple[Array, Any]:
        kept = []
        for at, (kind, run) in enumerate(runs):
            own, old = both if period == 1 else jax.tree.map(operator.itemgetter(at), both)
            x, new = run(own, x, shared[kind], old)
            kept.append(new)
        return x, kept[0] if period == 1 else jax.tree.map(lambda *layers: jnp.stack(layers), *kept)

    if period == 1:
        return jax.lax.scan(step, x, (stacks, cache), length=count, unroll=unroll)
    whole = count // period * period
    folded = jax.tree.map(lambda s: s[:whole].reshape(-1, period, *s.shape[1:]), (stacks, cache))
    x, kept = jax.lax.scan(step, x, folded, length=whole // period, unroll=unroll)
    kept = jax.tree.map(lambda s: s.reshape(-1, *s.shape[2:]), kept)
    for at in range(whole, count):  # a last period that is not whole
        kind, run = runs[at % period]
        own, old = jax.tree.map(operator.itemgetter(at), (stacks, cache))
        x, new = run(own, x, shared[kind], old)
        kept = jax.tree.map(lambda s, n: jnp.concatenate((s, n[None])), kept, new)
    return x, kept
