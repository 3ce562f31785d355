"""Config and tensors of a GGUF file. The `gguf` package parses and dequantises; it knows nothing of architectures."""

from __future__ import annotations

import functools
import math
from pathlib import Path
from typing import Any

import numpy as np

from tisdpo_jax.errors import CheckpointError, UserError
from tisdpo_jax.interchange._assemble import Index, TensorSource
from tisdpo_jax.interchange._fields import refuse, whole_field
from tisdpo_jax.interchange.huggingface import shortest
from tisdpo_jax.models import GEMMA, RopeConfig, TransformerConfig, flags_of_tensors, tensor_name

ROPE_FACTORS = "rope_freqs.weight"
_ARCHITECTURES = ("llama", "qwen2", "qwen3", "gemma2", "gemma3")
# layers of the models of 27 billion, whose scores are divided by another number; as in llama.cpp, nothing else tells
_WIDE_QUERIES = {"gemma2": 46, "gemma3": 62}


def open_reader(path: Path) -> Any:
    """A `gguf.GGUFReader` on a file that has been looked through. Raises: CheckpointError, UserError."""
    try:
        stat = path.stat()
        reader = _parsed(path.absolute(), stat.st_size, stat.st_mtime_ns)
    except ImportError:
        raise UserError(f"{path}: reading GGUF needs the `gguf` package; pip install 'tisdpo_jax[gguf]'") from None
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


@functools.lru_cache(maxsize=1)
def _parsed(path: Path, size: int, changed: int) -> Any:
    """The reader of a file as it is now; parsing a vocabulary takes seconds, and one run asks three times."""
    from gguf import GGUFReader

    return GGUFReader(path)


def metadata(reader: Any) -> dict[str, Any]:
    """All metadata that are not arrays, as Python values; float32 numbers in their shortest spelling."""
    from gguf import GGUFValueType

    values = {}
    for key, field in reader.fields.items():
        if field.types[0] == GGUFValueType.FLOAT32:
            values[key] = float(str(np.float32(field.contents())))
        elif field.types[0] != GGUFValueType.ARRAY:
            values[key] = field.contents()
    return values


def read_metadata(path: Path) -> dict[str, Any]:
    """`metadata` of a file."""
    return metadata(open_reader(path))


def open_gguf(path: Path) -> tuple[TensorSource, bool]:
    """The tensors of a GGUF file, and whether the rows of q and k stand in pairs (architecture "llama")."""
    from gguf.quants import dequantize

    reader = open_reader(path)
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    for kind, tensor in {tensor.tensor_type: tensor for tensor in reader.tensors}.items():
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

    source = TensorSource(path, dict.fromkeys(tensors, path), _shapes(reader), read)
    return source, metadata(reader).get("general.architecture") == "llama"


def _shapes(reader: Any) -> dict[str, tuple[int, ...]]:
    return {tensor.name: tuple(int(size) for size in reversed(tensor.shape)) for tensor in reader.tensors}


def read_gguf_config(path: Path) -> TransformerConfig:
    """The model that the metadata of a GGUF file describes.

    Biases, QK-norm and a tied head are told by the tensors that are there, the vocabulary by the rows of
    the embedding.

    Raises: CheckpointError for a field that is missing or asks for what the decoder does not do.
    """
    reader = open_reader(path)
    values, shapes, embedding = metadata(reader), _shapes(reader), tensor_name("embed/embedding", "gguf")
    architecture = values.get("general.architecture")
    if architecture not in _ARCHITECTURES:
        raise refuse(path, "general.architecture", architecture, f"known: {', '.join(_ARCHITECTURES)}")
    own = {key.removeprefix(f"{architecture}."): value for key, value in values.items()}

    def size(field: str) -> int:
        return whole_field(path, f"{architecture}.{field}", own.get(field))

    heads, width, layers = size("attention.head_count"), size("embedding_length"), size("block_count")
    head_dim = own.get("attention.key_length", width // heads)
    for field, only, why in (
        ("attention.value_length", head_dim, f"heads are {head_dim} wide throughout"),
        ("rope.dimension_count", head_dim, f"heads are {head_dim} wide throughout"),
        ("expert_count", 0, "no mixture of experts"),
    ):
        if own.get(field, only) != only:
            raise refuse(path, f"{architecture}.{field}", own[field], why)
    if embedding not in shapes:
        raise CheckpointError(f"{path}: no tensor {embedding}; the file holds no whole model")
    factors = next((np.asarray(tensor.data) for tensor in reader.tensors if tensor.name == ROPE_FACTORS), None)
    fields: dict[str, Any] = dict(flags_of_tensors(shapes, "gguf"))
    if architecture.startswith("gemma"):
        fields |= _gemma(architecture, layers, width // heads, head_dim, own)
    try:
        return TransformerConfig(
            vocab_size=shapes[embedding][0],
            hidden_size=width,
            intermediate_size=size("feed_forward_length"),
            num_layers=layers,
            num_heads=heads,
            num_kv_heads=own.get("attention.head_count_kv", heads),
            head_dim=head_dim,
            max_positions=size("context_length"),
            norm_eps=own.get("attention.layer_norm_rms_epsilon", 1e-5),
            rope=_rope(path, architecture, own, head_dim, factors),
            sliding_window=own.get("attention.sliding_window", 0) or None,
            **fields,
        )
    except CheckpointError:
        raise
    except (ValueError, TypeError) as error:
        raise CheckpointError(f"{path}: {error}; fetch the file again") from None


def _gemma(architecture: str, layers: int, share: int, head_dim: int, own: dict[str, Any]) -> dict[str, Any]:
    """What llama.cpp knows of Gemma without being told, and what it is told."""
    second = architecture == "gemma2"
    every = own.get("attention.sliding_window_pattern", 2 if second else 6)
    return GEMMA | {
        "pattern": shortest(["sliding" if (layer + 1) % every else "full" for layer in range(layers)]),
        "local_rope": None if second else RopeConfig(own.get("rope.freq_base_swa", 10_000.0)),
        "query_pre_attn_scalar": float(share if layers == _WIDE_QUERIES[architecture] else head_dim),
        "attention_softcap": own.get("attn_logit_softcapping", 50.0) if second else None,
        "final_softcap": own.get("final_logit_softcapping", 30.0 if second else None),
    }


def llama3_factors(rope: RopeConfig, head_dim: int) -> np.ndarray:
    """What llama.cpp's converter writes for Llama 3.1's scaling: `[head_dim / 2]` divisors of the frequencies."""
    frequencies = rope.theta ** -(np.arange(0, head_dim, 2, dtype=np.float64) / head_dim)
    turns = rope.original_max_positions * frequencies / (2 * math.pi)
    keep = np.clip((turns - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor), 0.0, 1.0)
    return 1.0 / ((1.0 - keep) / rope.factor + keep)


def _rope(path: Path, architecture: str, own: dict[str, Any], head_dim: int, factors: np.ndarray | None) -> RopeConfig:
    theta = own.get("rope.freq_base", 10_000.0)
    if factors is not None:
        # the file holds only the outcome of Llama 3.1's scaling; its three releases share all but `factor`
        original = own.get("rope.scaling.original_context_length", 8192)
        rope = RopeConfig(theta, "llama3", float(factors.max()), 1.0, 4.0, original)
        if factors.shape != (head_dim // 2,) or not np.allclose(llama3_factors(rope, head_dim), factors, rtol=1e-4):
            raise refuse(
                path, ROPE_FACTORS, "not Llama 3.1's scaling over 8192 positions", "use the safetensors release"
            )
        return rope
    scaling = own.get("rope.scaling.type", "none")
    factor = own.get("rope.scaling.factor", own.get("rope.scale_linear", 1.0))
    if scaling not in ("none", "linear"):
        raise refuse(path, f"{architecture}.rope.scaling.type", scaling, "known: none, linear")
    return RopeConfig(theta) if factor in (0.0, 1.0) else RopeConfig(theta, "linear", factor)
