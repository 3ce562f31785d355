"""One decoder, described by its configuration: tokens in, last hidden states out.

Flax Linen, because its variable collections are the roles: with the collection "lora" beside
"params" a model is policy or contrast, without it the reference, in one definition, and gradients
of the adapter alone need no machinery. Nothing outside this folder sees Flax: `abstract_params`,
`init_params` and `hidden_states` speak plain nested dicts.
"""

from __future__ import annotations

import dataclasses
from typing import Any, cast

import flax.linen as nn
import jax
import jax.numpy as jnp

from tisdpo_jax import partitioning
from tisdpo_jax.models.attention import Mask, prepare
from tisdpo_jax.models.config import ComputeConfig, TransformerConfig
from tisdpo_jax.models.embedding import look_up
from tisdpo_jax.models.head import product
from tisdpo_jax.models.layers import Block, LayerCache, RMSNorm, Shared, rope_tables
from tisdpo_jax.models.recompute import through_layers
from tisdpo_jax.types import Params, Rows, Variables

Array = jax.Array
REMAT_POLICIES = {"full": None, "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable}


class Embedding(nn.Module):
    config: TransformerConfig
    compute: ComputeConfig

    @nn.compact
    def __call__(self, tokens: Array) -> Array:
        shape = (self.config.vocab_size, self.config.hidden_size)
        table = self.param("embedding", nn.initializers.normal(0.02), shape, jnp.dtype(self.compute.param_dtype))
        return look_up(table, tokens, self.compute.dtype)


class Head(nn.Module):
    """Holds the untied head; it is read by `head_kernel`, never applied to all positions."""

    config: TransformerConfig
    compute: ComputeConfig

    @nn.compact
    def __call__(self) -> None:
        shape = (self.config.hidden_size, self.config.vocab_size)
        self.param("kernel", nn.initializers.normal(0.02), shape, jnp.dtype(self.compute.param_dtype))


class Transformer(nn.Module):
    config: TransformerConfig
    compute: ComputeConfig

    @nn.compact
    def __call__(self, tokens: Array, shared: Shared, cache: LayerCache | None) -> tuple[Array, LayerCache | None]:
        x = Embedding(self.config, self.compute, name="embed")(tokens)
        x = partitioning.constrain(x, ("batch", None, None))
        if self._recomputes(cache):
            x = through_layers(self._layer, _stacks(self.variables), x, shared, count=self.config.num_layers)
        else:
            x, cache = self._scan(x, cache, shared)
        if not self.config.tied_head:
            Head(self.config, self.compute, name="head")()
        return RMSNorm(self.config.norm_eps, self.compute, name="final_norm")(x), cache

    def _recomputes(self, cache: LayerCache | None) -> bool:
        """Whether the loop is the one written by hand; it holds no cache, and no other remat policy."""
        compute = self.compute
        plain = cache is None and not self.is_initializing()
        return plain and compute.remat == "full" and compute.layer_loop == "scan"

    def _layer(self, variables: Variables, x: Array, shared: Shared) -> Array:
        return cast(Array, Block(self.config, self.compute, parent=None).apply(variables, x, None, shared)[0])

    def _scan(self, x: Array, cache: LayerCache | None, shared: Shared) -> tuple[Array, LayerCache | None]:
        block = Block
        if self.compute.remat != "none":
            block = nn.remat(block, policy=REMAT_POLICIES[self.compute.remat], prevent_cse=False)
        layers = nn.scan(
            block,
            variable_axes={"params": 0, "lora": 0},
            split_rngs={"params": True},
            in_axes=(0, nn.broadcast),
            length=self.config.num_layers,
            unroll=self.config.num_layers if self.compute.layer_loop == "unroll" else 1,
        )
        x, cache = layers(self.config, self.compute, name="layers")(x, cache, shared)
        return x, cache


def _stacks(variables: Any) -> Variables:
    """The part of every collection that belongs to layers."""
    return {name: tree["layers"] for name, tree in variables.items() if "layers" in tree}


@dataclasses.dataclass(frozen=True)
class Model:
    """A decoder and how it is computed; hashable, so it can be a static argument."""

    config: TransformerConfig
    compute: ComputeConfig = ComputeConfig()


def init_params(key: Array, config: TransformerConfig, dtype: Any = "float32") -> Params:
    """Random parameters (normal, 0.02) as a plain nested dict; see `partitioning.PARAM_AXES` for paths."""
    module = Transformer(config, ComputeConfig(param_dtype=str(jnp.dtype(dtype))))
    tokens = jnp.zeros((1, 2), jnp.int32)
    shared = _shared(Model(config), Rows(tokens, jnp.arange(2)[None]))
    return cast(Params, module.init(key, tokens, shared, None)["params"])


def abstract_params(config: TransformerConfig, dtype: Any = "float32") -> Params:
    """Shapes and dtypes of the parameters, without making them."""
    return cast(Params, jax.eval_shape(lambda key: init_params(key, config, dtype), jax.random.key(0)))


def hidden_states(model: Model, variables: Variables, rows: Rows | Array) -> Array:
    """Normalised last hidden states `[R, T, D]` of rows of tokens, causal.

    Args:
      rows: `types.Rows`, or tokens `[R, T]` int32, left-aligned: padding stands behind the real tokens.
    """
    if not isinstance(rows, Rows):
        rows = Rows(rows, jnp.arange(rows.shape[1])[None])
    hidden, _ = _module(model).apply(variables, rows.tokens, _shared(model, rows), None)
    return hidden


def hidden_states_with_cache(
    model: Model, variables: Variables, tokens: Array, positions: Array, cache: LayerCache, seen: Array
) -> tuple[Array, LayerCache]:
    """As `hidden_states`, against a cache: `tokens [R, T]` at `positions [R, T]` are added to it.

    `seen [R, M]` is the position of the token in each slot, -1 where there is none, this call's
    tokens included. Slot and position of a token are the same number.
    """
    mask = Mask(model.config.sliding_window, query_positions=positions, key_positions=seen)
    rope = rope_tables(model.config.rope, model.config.head_dim, positions)
    prepared = prepare(mask, "xla", queries=tokens.shape[1], keys=seen.shape[1], heads=model.config.num_heads)
    # decoding needs explicit positions, which only the xla back end honours
    model = dataclasses.replace(model, compute=dataclasses.replace(model.compute, attention="xla", remat="none"))
    shared = Shared(rope, mask._replace(window=None), prepared, positions)
    return cast(tuple[Array, LayerCache], _module(model).apply(variables, tokens, shared, cache))


def empty_cache(config: TransformerConfig, rows: int, length: int, dtype: Any) -> LayerCache:
    """A cache for `rows` rows of up to `length` tokens: `[L, R, M, Hkv, head_dim]`."""
    shape = (config.num_layers, rows, length, config.num_kv_heads, config.head_dim)
    return LayerCache(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype))


def head_kernel(config: TransformerConfig, variables: Variables) -> Array:
    """The map from hidden states to the vocabulary, `[D, V]`, in the dtype that it is stored in."""
    params = variables["params"]
    return params["embed"]["embedding"].T if config.tied_head else params["head"]["kernel"]


def head_only(config: TransformerConfig, params: Params) -> Params:
    """The part of the parameters that `head_kernel` reads; the same arrays."""
    name = "embed" if config.tied_head else "head"
    return {name: params[name]}


def logits(model: Model, variables: Variables, tokens: Array) -> Array:
    """`[R, T, V]` float32. For small inputs and tests; training never makes this array."""
    hidden = hidden_states(model, variables, tokens)
    return product(hidden, head_kernel(model.config, variables).astype(hidden.dtype))


def _module(model: Model) -> Transformer:
    return Transformer(model.config, model.compute)


def _shared(model: Model, rows: Rows) -> Shared:
    compute = model.compute
    rope = rope_tables(model.config.rope, model.config.head_dim, rows.positions, platform=compute.platform)
    if rows.copies is None:
        length, mask = rows.tokens.shape[1], Mask(model.config.sliding_window, None, rows.tree)
        if rows.tree is not None:
            mask = mask._replace(places=rows.positions)
    else:  # trees are for back ends without copies
        length, mask = rows.copies.source.shape[1], Mask(model.config.sliding_window, rows.copies.segments)
    heads, platform = model.config.num_heads, compute.platform
    prepared = prepare(mask, compute.attention, queries=length, keys=length, heads=heads, platform=platform)
    return Shared(rope, mask._replace(window=None), prepared, copies=rows.copies)
