"""Decoders: one Flax definition, plain nested dicts outside."""

from tisdpo_jax.models.adapters import init_adapters, merge
from tisdpo_jax.models.attention import Mask, attention
from tisdpo_jax.models.config import ComputeConfig, RopeConfig, TransformerConfig
from tisdpo_jax.models.decode import decode, read_prompts, split_layers
from tisdpo_jax.models.layers import LayerCache
from tisdpo_jax.models.quantize import quantize
from tisdpo_jax.models.transformer import (
    Model,
    abstract_params,
    empty_cache,
    head_kernel,
    head_only,
    hidden_states,
    hidden_states_with_cache,
    init_params,
    logits,
)

__all__ = [
    "ComputeConfig",
    "LayerCache",
    "Mask",
    "Model",
    "RopeConfig",
    "TransformerConfig",
    "abstract_params",
    "attention",
    "decode",
    "empty_cache",
    "head_kernel",
    "head_only",
    "hidden_states",
    "hidden_states_with_cache",
    "init_adapters",
    "init_params",
    "logits",
    "merge",
    "quantize",
    "read_prompts",
    "split_layers",
]
