"""Decoders: one table of parameters, one definition, plain nested dicts outside."""

from tisdpo_jax.models.attention import Mask, attention
from tisdpo_jax.models.block import LayerCache
from tisdpo_jax.models.config import GEMMA, SIZES, ComputeConfig, Kind, Model, RopeConfig, TransformerConfig
from tisdpo_jax.models.decoder import (
    decode,
    empty_cache,
    hidden_states,
    hidden_states_with_cache,
    logits,
    prefill,
    split_layers,
)
from tisdpo_jax.models.leaves import Head, Int8, capped, head_of, head_only, product, quantize, score_of
from tisdpo_jax.models.linen import FlaxDecoder
from tisdpo_jax.models.params import (
    PARAM_AXES,
    SCORE,
    TABLE,
    Naming,
    abstract_params,
    flags_of_tensors,
    flatten,
    init_adapters,
    init_params,
    layer_size,
    merge,
    parameters,
    tensor_name,
    unflatten,
)
from tisdpo_jax.models.rope import attention_factor, rope_frequencies

__all__ = [
    "GEMMA",
    "PARAM_AXES",
    "SCORE",
    "SIZES",
    "TABLE",
    "ComputeConfig",
    "FlaxDecoder",
    "Head",
    "Int8",
    "Kind",
    "LayerCache",
    "Mask",
    "Model",
    "Naming",
    "RopeConfig",
    "TransformerConfig",
    "abstract_params",
    "attention",
    "attention_factor",
    "capped",
    "decode",
    "empty_cache",
    "flags_of_tensors",
    "flatten",
    "head_of",
    "head_only",
    "hidden_states",
    "hidden_states_with_cache",
    "init_adapters",
    "init_params",
    "layer_size",
    "logits",
    "merge",
    "parameters",
    "prefill",
    "product",
    "quantize",
    "rope_frequencies",
    "score_of",
    "split_layers",
    "tensor_name",
    "unflatten",
]
