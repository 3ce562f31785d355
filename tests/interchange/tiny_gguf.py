"""Small GGUF files, written as llama.cpp's converter writes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGMLQuantizationType, GGUFWriter
from gguf.quants import quantize

from tisdpo_jax.interchange._assemble import layout
from tisdpo_jax.models import TransformerConfig, flatten
from tisdpo_jax.types import Params

# 144 bytes hold 256 values; the first two numbers of a block are its float16 scales. Q6_K has its scale last.
BLOCKS = {"Q4_K": (144, (0, 2)), "Q6_K": (210, (208,)), "Q5_K": (176, (0, 2))}


def pairs_from_halves(weight: np.ndarray, heads: int) -> np.ndarray:
    """Rows of q and k in the order of llama.cpp's "llama" architecture."""
    rows = weight.shape[0]
    return weight.reshape(heads, 2, rows // heads // 2, -1).swapaxes(1, 2).reshape(weight.shape)


def tensors_of(params: Params, config: TransformerConfig, architecture: str) -> dict[str, np.ndarray]:
    """Our parameters under llama.cpp's names."""
    flat = flatten(params)
    tensors = {}
    for path, leaf in layout(config, "gguf").items():
        array = np.asarray(flat[path], np.float32)
        for value, name in zip(array if leaf.stacked else array[None], leaf.names, strict=True):
            tensors[name] = np.ascontiguousarray(value.T if leaf.transposed else value) + np.float32(leaf.offset)
            if architecture == "llama" and ("attn_q." in name or "attn_k." in name):
                heads = config.num_heads if "attn_q." in name else config.num_kv_heads
                tensors[name] = pairs_from_halves(tensors[name], heads)
    return tensors


def stored(value: np.ndarray, kind: str) -> np.ndarray:
    """`value` as blocks of `kind`; the kinds that Python cannot quantise to get random blocks of its shape."""
    if kind not in BLOCKS:
        return quantize(value, GGMLQuantizationType[kind])
    size, scales = BLOCKS[kind]
    draw = np.random.default_rng(value.size)
    blocks = draw.integers(0, 256, (value.size // 256, size), np.uint8)
    for at in scales:
        blocks[:, at : at + 2] = draw.uniform(1e-4, 2e-4, (len(blocks), 1)).astype(np.float16).view(np.uint8)
    return blocks.reshape(*value.shape[:-1], value.shape[-1] // 256 * size)


def write_gguf(
    path: Path,
    params: Params,
    config: TransformerConfig,
    *,
    architecture: str = "llama",
    kind: str = "F32",
    extra_tensors: dict[str, np.ndarray] | None = None,
    fields: dict[str, Any] | None = None,
    tokenizer: dict[str, Any] | None = None,
) -> dict[str, np.ndarray]:
    """Writes the file; returns its matrices as they are stored. Vectors stay float32, as in llama.cpp."""
    writer = GGUFWriter(path, architecture)
    writer.add_block_count(config.num_layers)
    writer.add_context_length(config.max_positions)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_heads)
    writer.add_head_count_kv(config.num_kv_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope.theta)
    writer.add_layer_norm_rms_eps(config.norm_eps)
    writer.add_vocab_size(config.vocab_size)
    if config.local_rope is not None:
        writer.add_float32(f"{architecture}.rope.freq_base_swa", config.local_rope.theta)
    for field, value in (fields or {}).items():
        {str: writer.add_string, int: writer.add_uint32, float: writer.add_float32}[type(value)](field, value)
    add_tokenizer(writer, tokenizer or {})
    matrices = {}
    for name, value in (tensors_of(params, config, architecture) | (extra_tensors or {})).items():
        if value.ndim == 1:
            writer.add_tensor(name, value.astype(np.float32))
        else:
            matrices[name] = stored(value, kind)
            writer.add_tensor(name, matrices[name], raw_dtype=GGMLQuantizationType[kind])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return matrices


def add_tokenizer(writer: GGUFWriter, fields: dict[str, Any]) -> None:
    """Fields under their names after `tokenizer.ggml.`; `chat_template` apart."""
    for name, value in fields.items():
        key = f"tokenizer.{name}" if name == "chat_template" else f"tokenizer.ggml.{name}"
        if isinstance(value, list):
            writer.add_array(key, value)
        elif isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, int):
            writer.add_uint32(key, value)
        else:
            writer.add_string(key, value)
