"""GGUF files, as llama.cpp writes them: config from the metadata, tensors dequantised by the `gguf` package."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

from tisdpo_jax.errors import CheckpointError, UserError
from tisdpo_jax.interchange._assemble import Index, TensorSource
from tisdpo_jax.interchange.huggingface import shortest
from tisdpo_jax.models import RopeConfig, TransformerConfig

ROPE_FACTORS = "rope_freqs.weight"
_ARCHITECTURES = ("llama", "qwen2", "qwen3", "gemma2", "gemma3")
# layers of the models of 27 billion, whose scores are divided by another number; as in llama.cpp, nothing else tells
_WIDE_QUERIES = {"gemma2": 46, "gemma3": 62}


def open_reader(path: Path) -> Any:
    """A `gguf.GGUFReader` on a file that has been looked through. Raises: CheckpointError, UserError."""
    try:
        from gguf import GGUFReader
    except ImportError:
        raise UserError(f"{path}: reading GGUF needs the `gguf` package; pip install 'tisdpo_jax[gguf]'") from None
    try:
        reader = GGUFReader(path)
    except (ValueError, KeyError, IndexError, OverflowError, TypeError, OSError) as error:
        raise CheckpointError(f"{path}: not a whole GGUF file ({error}); fetch it again") from None
    if reader.byte_order != "I":
        raise CheckpointError(f"{path}: written in the other byte order; convert it with gguf's gguf-convert-endian")
    parts = reader.get_field("split.count")
    if parts is not None and parts.contents() > 1:
        raise CheckpointError(
            f"{path}: one of {parts.contents()} parts; join them with llama.cpp's llama-gguf-split --merge"
        )
    return reader


def metadata(reader: Any) -> dict[str, Any]:
    """All metadata that are not arrays, as Python values; float32 numbers in their shortest spelling."""
    from gguf import GGUFValueType

    values = {}
    for key, field in reader.fields.items():
        if field.types[0] == GGUFValueType.ARRAY:
            continue
        value = field.contents()
        values[key] = float(str(np.float32(value))) if field.types[0] == GGUFValueType.FLOAT32 else value
    return values


def open_gguf(path: Path) -> tuple[TensorSource, bool]:
    """The tensors of a GGUF file, and whether the rows of q and k stand in pairs (architecture "llama")."""
    from gguf.quants import dequantize

    reader = open_reader(path)
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    kinds = {tensor.tensor_type: tensor for tensor in reader.tensors}
    for kind, tensor in kinds.items():
        try:
            dequantize(np.asarray(tensor.data[:1]), kind)
        except NotImplementedError:
            raise CheckpointError(
                f"{path}: tensor {tensor.name!r} is stored as {kind.name}, which the gguf package cannot dequantise; "
                f"quantise the model anew as Q8_0 or Q4_K, or use its safetensors release"
            ) from None

    def read(name: str, index: Index) -> np.ndarray:
        # rows are quantised one by one, so only the wanted ones are touched; blocks within a row are not cut
        tensor = tensors[name]
        rows = dequantize(np.asarray(tensor.data[index[0]]), tensor.tensor_type)
        return rows[(slice(None), *index[1:])]

    files = dict.fromkeys(tensors, path)
    shapes = {name: tuple(int(n) for n in reversed(tensor.shape)) for name, tensor in tensors.items()}
    return TensorSource(path, files, shapes, read), metadata(reader).get("general.architecture") == "llama"


def read_gguf_config(path: Path) -> TransformerConfig:
    """The model that the metadata of a GGUF file describes.

    Biases, QK-norm and a tied head are told by the tensors that are there, the vocabulary by the rows of
    the embedding.

    Raises: CheckpointError for a field that is missing or asks for what the decoder does not do.
    """
    reader = open_reader(path)
    values = metadata(reader)
    shapes = {tensor.name: [int(n) for n in reversed(tensor.shape)] for tensor in reader.tensors}
    architecture = values.get("general.architecture")
    if architecture not in _ARCHITECTURES:
        raise _refuse(path, "general.architecture", architecture, f"known: {', '.join(_ARCHITECTURES)}")

    def size(field: str) -> int:
        value = values.get(f"{architecture}.{field}")
        if not isinstance(value, int):
            raise CheckpointError(
                f"{path}: metadata field {architecture}.{field} is {value!r}, but must be a whole number"
            )
        return value

    def optional(field: str, default: Any) -> Any:
        return values.get(f"{architecture}.{field}", default)

    heads, width = size("attention.head_count"), size("embedding_length")
    head_dim = optional("attention.key_length", width // max(heads, 1))
    for field in ("attention.value_length", "rope.dimension_count"):
        if optional(field, head_dim) != head_dim:
            raise _refuse(
                path, f"{architecture}.{field}", optional(field, None), f"heads are {head_dim} wide throughout"
            )
    if optional("expert_count", 0):
        raise _refuse(path, f"{architecture}.expert_count", optional("expert_count", 0), "no mixture of experts")
    if "token_embd.weight" not in shapes:
        raise CheckpointError(f"{path}: no tensor token_embd.weight; the file holds no whole model")
    gemma = architecture.startswith("gemma")
    window, layers = optional("attention.sliding_window", 0) or None, size("block_count")
    factors = next((tensor for tensor in reader.tensors if tensor.name == ROPE_FACTORS), None)
    try:
        return TransformerConfig(
            vocab_size=shapes["token_embd.weight"][0],
            hidden_size=width,
            intermediate_size=size("feed_forward_length"),
            num_layers=layers,
            num_heads=heads,
            num_kv_heads=optional("attention.head_count_kv", heads),
            head_dim=head_dim,
            max_positions=size("context_length"),
            norm_eps=optional("attention.layer_norm_rms_epsilon", 1e-5),
            rope=_rope(path, architecture, values, head_dim, None if factors is None else np.asarray(factors.data)),
            sliding_window=window,
            qkv_bias="blk.0.attn_q.bias" in shapes,
            output_bias="blk.0.attn_output.bias" in shapes,
            mlp_bias="blk.0.ffn_gate.bias" in shapes,
            qk_norm="blk.0.attn_q_norm.weight" in shapes,
            tied_head="output.weight" not in shapes,
            **(_gemma(architecture, layers, width // heads, head_dim, optional) if gemma else {}),
        )
    except (ValueError, TypeError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{path}: {error}; fetch the file again") from None


def _gemma(architecture: str, layers: int, share: int, head_dim: int, optional: Any) -> dict[str, Any]:
    """What llama.cpp knows of Gemma without being told, and what it is told."""
    second = architecture == "gemma2"
    every = optional("attention.sliding_window_pattern", 2 if second else 6)
    return {
        "pattern": shortest(["sliding" if (layer + 1) % every else "full" for layer in range(layers)]),
        "local_rope": None if second else RopeConfig(optional("rope.freq_base_swa", 10_000.0)),
        "activation": "gelu_tanh",
        **dict.fromkeys(("norm_offset", "post_norms", "embed_scale"), True),
        "query_pre_attn_scalar": float(share if layers == _WIDE_QUERIES[architecture] else head_dim),
        "attention_softcap": optional("attn_logit_softcapping", 50.0) if second else None,
        "final_softcap": optional("final_logit_softcapping", 30.0 if second else None),
    }


def llama3_factors(rope: RopeConfig, head_dim: int) -> np.ndarray:
    """What llama.cpp's converter writes for Llama 3.1's scaling: `[head_dim / 2]` divisors of the frequencies."""
    frequencies = rope.theta ** -(np.arange(0, head_dim, 2, dtype=np.float64) / head_dim)
    turns = rope.original_max_positions * frequencies / (2 * math.pi)
    keep = np.clip((turns - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor), 0.0, 1.0)
    return 1.0 / ((1.0 - keep) / rope.factor + keep)


def _rope(
    path: Path, architecture: str, values: dict[str, Any], head_dim: int, factors: np.ndarray | None
) -> RopeConfig:
    theta = values.get(f"{architecture}.rope.freq_base", 10_000.0)
    if factors is not None:
        # the file holds only the outcome of Llama 3.1's scaling; its three releases share all but `factor`
        original = values.get(f"{architecture}.rope.scaling.original_context_length", 8192)
        rope = RopeConfig(theta, "llama3", float(factors.max()), 1.0, 4.0, original)
        if factors.shape != (head_dim // 2,) or not np.allclose(llama3_factors(rope, head_dim), factors, rtol=1e-4):
            raise _refuse(
                path, ROPE_FACTORS, "not Llama 3.1's scaling over 8192 positions", "use the safetensors release"
            )
        return rope
    scaling = values.get(f"{architecture}.rope.scaling.type", "none")
    factor = values.get(f"{architecture}.rope.scaling.factor", values.get(f"{architecture}.rope.scale_linear", 1.0))
    if scaling not in ("none", "linear"):
        raise _refuse(path, f"{architecture}.rope.scaling.type", scaling, "known: none, linear")
    if factor in (0.0, 1.0):
        return RopeConfig(theta)
    return RopeConfig(theta, "linear", factor)


def _refuse(path: Path, field: str, value: Any, why: str) -> CheckpointError:
    return CheckpointError(f"{path}: {field} is {value!r}, which is not supported ({why}); use another model")
