"""Tiny decoders of every family, for the tests of this folder."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from tisdpo_jax.models import RopeConfig, TransformerConfig, abstract_params, init_adapters
from tisdpo_jax.partitioning import map_with_path
from tisdpo_jax.types import Params

BASE = TransformerConfig(
    vocab_size=96,
    hidden_size=32,
    intermediate_size=48,
    num_layers=3,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    max_positions=64,
)
LLAMA3_ROPE = RopeConfig(500_000.0, "llama3", 8.0, 1.0, 4.0, 32)
YARN_ROPE = RopeConfig(1e4, "yarn", 4.0, original_max_positions=16, attention_factor=1.25, beta_fast=24.0)
GEMMA2 = dataclasses.replace(
    BASE,
    norm_eps=1e-6,
    sliding_window=5,
    pattern=("sliding", "full"),
    tied_head=True,
    activation="gelu_tanh",
    norm_offset=True,
    post_norms=True,
    embed_scale=True,
    query_pre_attn_scalar=16.0,
    attention_softcap=1.5,
    final_softcap=2.0,
)
ALL = "attention/(q|k|v|o)|mlp/(gate|up|down)"  # every projection
FAMILIES = {
    "llama2": dataclasses.replace(BASE, num_kv_heads=4),
    "llama3": dataclasses.replace(BASE, rope=LLAMA3_ROPE),
    "llama-linear": dataclasses.replace(BASE, rope=RopeConfig(10_000.0, "linear", 2.0)),
    "llama-bias": dataclasses.replace(BASE, qkv_bias=True, output_bias=True, mlp_bias=True),
    "mistral": dataclasses.replace(BASE, sliding_window=5, rope=RopeConfig(1e6)),
    "qwen2": dataclasses.replace(BASE, qkv_bias=True, norm_eps=1e-6),
    "qwen2-window": dataclasses.replace(BASE, qkv_bias=True, sliding_window=5),
    "qwen3": dataclasses.replace(BASE, qk_norm=True, head_dim=16, tied_head=True),
    "qwen3-mixed": dataclasses.replace(BASE, qk_norm=True, sliding_window=5, pattern=("full", "sliding", "sliding")),
    "llama-yarn": dataclasses.replace(BASE, rope=YARN_ROPE),
    "llama-dynamic": dataclasses.replace(
        BASE, max_positions=16, rope=RopeConfig(kind="dynamic", factor=2.0, original_max_positions=16)
    ),
    "gemma2": GEMMA2,
    "gemma3": dataclasses.replace(
        GEMMA2,
        num_layers=5,
        pattern=("sliding", "sliding", "full"),
        rope=RopeConfig(1e6, "linear", 8.0),
        local_rope=RopeConfig(),
        qk_norm=True,
        attention_softcap=None,
        final_softcap=None,
    ),
    "smollm2": dataclasses.replace(BASE, num_heads=3, num_kv_heads=3, hidden_size=24, tied_head=True),
}


@functools.cache
def random_params(config: TransformerConfig, seed: int = 0) -> Params:
    """Parameters of which every leaf is random, norms and biases too, so that no two can be mixed up unseen."""
    draw = np.random.default_rng(seed)

    def leaf(path: str, shape: jax.ShapeDtypeStruct) -> jax.Array:
        centre = 1.0 if path.endswith("scale") else 0.0
        return jnp.asarray(draw.normal(centre, 0.2, shape.shape), jnp.float32)

    return map_with_path(leaf, abstract_params(config))


def random_adapter(targets: str = ALL, rank: int = 3) -> Params:
    draw = np.random.default_rng(5)
    shapes = jax.eval_shape(
        lambda key: init_adapters(key, abstract_params(BASE), rank=rank, targets=targets), jax.random.key(0)
    )
    return jax.tree.map(lambda x: jnp.asarray(draw.normal(0, 0.2, x.shape), x.dtype), shapes)


def assert_trees_equal(left: Params, right: Params) -> None:
    """Bit for bit, with dtypes."""
    assert jax.tree.structure(left) == jax.tree.structure(right)
    for (path, x), y in zip(jax.tree.leaves_with_path(left), jax.tree.leaves(right), strict=True):
        assert x.dtype == y.dtype, path
        np.testing.assert_array_equal(np.asarray(x), np.asarray(y), err_msg=str(path))
