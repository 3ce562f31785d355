"""Decoders of some ten thousand parameters, one of each family."""

from __future__ import annotations

import zlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tisdpo_jax.models import RopeConfig, TransformerConfig, abstract_params, init_adapters
from tisdpo_jax.partitioning import map_with_path
from tisdpo_jax.types import Params


def tiny_config(**overrides: Any) -> TransformerConfig:
    """Width 32, 2 layers, 4 heads over 2 of keys and values, 64 tokens; `overrides` replace fields."""
    fields: dict[str, Any] = {
        "vocab_size": 64,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_layers": 2,
        "num_heads": 4,
        "num_kv_heads": 2,
        "head_dim": 8,
        "max_positions": 256,
    }
    return TransformerConfig(**{**fields, **overrides})


_GEMMA: dict[str, Any] = {
    "sliding_window": 5,
    "norm_eps": 1e-6,
    "tied_head": True,
    "activation": "gelu_tanh",
    "norm_offset": True,
    "post_norms": True,
    "embed_scale": True,
    "query_pre_attn_scalar": 16.0,
}
FAMILIES: dict[str, TransformerConfig] = {
    "llama2": tiny_config(num_kv_heads=4),
    "llama3": tiny_config(rope=RopeConfig(500_000.0, "llama3", factor=8.0, original_max_positions=16)),
    "mistral": tiny_config(sliding_window=5),
    "qwen2": tiny_config(qkv_bias=True, norm_eps=1e-6),
    "qwen3": tiny_config(qk_norm=True, head_dim=16, norm_eps=1e-6),
    "gemma2": tiny_config(
        **_GEMMA, pattern=("sliding", "full"), num_layers=3, attention_softcap=2.0, final_softcap=3.0
    ),
    "gemma3": tiny_config(
        **_GEMMA,
        pattern=("sliding", "sliding", "full"),
        num_layers=5,
        qk_norm=True,
        rope=RopeConfig(1e6, "linear", 8.0),
        local_rope=RopeConfig(),
    ),
    "smollm2": tiny_config(tied_head=True, num_heads=3, num_kv_heads=1, head_dim=12),
}
"""Name -> a tiny model with what sets the family apart."""


def random_params(seed: int, config: TransformerConfig, dtype: Any = "float32") -> Params:
    """Parameters in which nothing is neutral: norms are not 1, biases not 0, and tokens are told apart.

    `models.init_params` is what training from nothing would start with; a model of it says almost the same
    everywhere, and so hides faults. Drawn with numpy: nothing is compiled.
    """

    def draw(path: str, leaf: jax.ShapeDtypeStruct) -> jax.Array:
        noise = _noise(seed, path, leaf.shape)
        kind = path.rpartition("/")[2]
        if kind == "kernel":
            noise *= 1.5 * leaf.shape[-2] ** -0.5
        elif kind == "scale":
            noise = 0.2 * noise + (not config.norm_offset)
        elif kind == "bias":
            noise *= 0.2
        return jnp.asarray(noise, dtype)

    return map_with_path(draw, abstract_params(config))


def random_adapters(
    seed: int, params: Params, *, rank: int = 4, targets: str = "attention/(q|k|v|o)|mlp/(gate|up|down)"
) -> Params:
    """LoRA adapters that change the model: those of `models.init_adapters`, but with no `b` that is zero."""
    shapes = jax.eval_shape(lambda: init_adapters(jax.random.key(0), params, rank=rank, targets=targets))
    return map_with_path(lambda path, leaf: jnp.asarray(0.2 * _noise(seed, path, leaf.shape), leaf.dtype), shapes)


def _noise(seed: int, path: str, shape: tuple[int, ...]) -> np.ndarray:
    # by path, not by place in the tree: a parameter stays what it is when another joins it
    return np.random.default_rng((seed, zlib.crc32(path.encode()))).standard_normal(shape)
