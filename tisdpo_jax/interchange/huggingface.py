"""config.json of Hugging Face <-> TransformerConfig, for the families llama, mistral, qwen2 and qwen3."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tisdpo_jax.errors import CheckpointError
from tisdpo_jax.models.config import RopeConfig, TransformerConfig

CONFIG = "config.json"
ARCHITECTURES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}
# what a family takes a field for that config.json leaves out, where the families differ
_MAX_POSITIONS = {"llama": 2048, "mistral": 131_072, "qwen2": 32_768, "qwen3": 32_768}
_KV_HEADS = {"mistral": 8, "qwen2": 32, "qwen3": 32}  # llama: as many as heads


def read_json(file: Path) -> dict[str, Any]:
    """The object in a JSON file. Raises: CheckpointError."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{file.parent}: no {file.name}; it belongs beside the weights: fetch it too") from None
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{file}: cannot be read ({error}); fetch it again") from None
    if not isinstance(content, dict):
        raise CheckpointError(f"{file}: holds no JSON object; fetch it again")
    return content


def read_huggingface_config(directory: Path) -> TransformerConfig:
    """The model that `directory`/config.json describes.

    Raises: CheckpointError for a field that is missing or asks for what the decoder does not do.
    """
    file = directory / CONFIG
    raw = read_json(file)
    family = raw.get("model_type")
    if not isinstance(family, str) or family not in ARCHITECTURES:
        raise _refuse(file, "model_type", family, f"known: {', '.join(ARCHITECTURES)}")
    if raw.get("hidden_act", "silu") not in ("silu", "swish"):
        raise _refuse(file, "hidden_act", raw["hidden_act"], "the decoder has silu only")
    if quantised := raw.get("quantization_config"):
        method = quantised.get("quant_method", "unnamed") if isinstance(quantised, dict) else quantised
        raise _refuse(file, "quantization_config", method, "use the model's unquantised release")

    def size(field: str, default: int | None = None) -> int:
        """A field that may be left out, or null, where there is a default."""
        return _whole(file, field, default if raw.get(field) is None else raw[field])

    hidden, heads, layers = size("hidden_size"), size("num_attention_heads"), size("num_hidden_layers")
    head_dim = size("head_dim", 128 if family == "qwen3" else max(hidden // heads, 1))
    kv_heads = size("num_key_value_heads", heads if "num_key_value_heads" in raw else _KV_HEADS.get(family, heads))
    attention_bias = _flag(file, raw, "attention_bias") and family in ("llama", "qwen3")
    max_positions = size("max_position_embeddings", _MAX_POSITIONS[family])
    try:
        return TransformerConfig(
            vocab_size=size("vocab_size"),
            hidden_size=hidden,
            intermediate_size=size("intermediate_size"),
            num_layers=layers,
            num_heads=heads,
            num_kv_heads=kv_heads,
            head_dim=head_dim,
            max_positions=max_positions,
            norm_eps=_number(file, "rms_norm_eps", raw.get("rms_norm_eps", 1e-6)),
            rope=_read_rope(file, raw, max_positions),
            sliding_window=_read_window(file, raw, family, layers),
            qkv_bias=attention_bias or family == "qwen2",
            output_bias=attention_bias,
            mlp_bias=_flag(file, raw, "mlp_bias") and family == "llama",
            qk_norm=family == "qwen3",
            tied_head=_flag(file, raw, "tie_word_embeddings"),
        )
    except (ValueError, TypeError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{file}: {error}; mend or fetch it again") from None


def huggingface_config(config: TransformerConfig, *, dtype: str, special: dict[str, Any]) -> dict[str, Any]:
    """config.json for `config`: the family that computes the same, loadable by transformers 4 and 5.

    Rope is written in both spellings: `rope_theta` with `rope_scaling` (4) and `rope_parameters` (5).
    `special` has bos_token_id, eos_token_id (or a list) and pad_token_id.

    Raises: CheckpointError when no family of transformers has this combination.
    """
    family = _family(config)
    rope = config.rope
    scaling: dict[str, Any] = {"rope_type": rope.kind}
    if rope.kind != "default":
        scaling["factor"] = rope.factor
    if rope.kind == "llama3":
        scaling |= {
            "low_freq_factor": rope.low_freq_factor,
            "high_freq_factor": rope.high_freq_factor,
            "original_max_position_embeddings": rope.original_max_positions,
        }
    raw: dict[str, Any] = {
        "architectures": [ARCHITECTURES[family]],
        "model_type": family,
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": config.max_positions,
        "rms_norm_eps": config.norm_eps,
        "rope_theta": rope.theta,
        "rope_scaling": None if rope.kind == "default" else scaling,
        "rope_parameters": {**scaling, "rope_theta": rope.theta},
        "tie_word_embeddings": config.tied_head,
        "torch_dtype": dtype,
    }
    raw |= special
    if family in ("llama", "qwen3"):
        raw["attention_bias"] = config.output_bias
    if family == "llama":
        raw["mlp_bias"] = config.mlp_bias
    if family == "mistral":
        raw["sliding_window"] = config.sliding_window
    if family in ("qwen2", "qwen3"):
        windowed = config.sliding_window is not None
        raw |= {"use_sliding_window": windowed, "sliding_window": config.sliding_window}
        raw["max_window_layers"] = 0 if windowed else config.num_layers
    return raw


def _family(config: TransformerConfig) -> str:
    """The family whose code computes what `config` describes."""
    windowed = config.sliding_window is not None
    if config.qk_norm and config.qkv_bias == config.output_bias and not config.mlp_bias:
        return "qwen3"
    if not config.qk_norm and config.qkv_bias and not config.output_bias and not config.mlp_bias:
        return "qwen2"
    if not config.qk_norm and config.qkv_bias == config.output_bias and not windowed:
        return "llama"
    if not config.qk_norm and windowed and not (config.qkv_bias or config.output_bias or config.mlp_bias):
        return "mistral"
    raise CheckpointError(
        f"no family of transformers has qk_norm={config.qk_norm}, qkv_bias={config.qkv_bias}, "
        f"output_bias={config.output_bias}, mlp_bias={config.mlp_bias} and sliding_window={config.sliding_window} "
        f"together; such a model cannot be exported"
    )


def _read_rope(file: Path, raw: dict[str, Any], max_positions: int) -> RopeConfig:
    """Both spellings: `rope_scaling` wins where both hold something, as it does in transformers 5."""
    if raw.get("partial_rotary_factor") not in (None, 1.0):
        raise _refuse(file, "partial_rotary_factor", raw["partial_rotary_factor"], "the decoder rotates whole heads")
    modern = raw.get("rope_parameters") or {}
    rope = raw.get("rope_scaling") or modern
    field = "rope_scaling" if raw.get("rope_scaling") else "rope_parameters"
    if not (isinstance(rope, dict) and isinstance(modern, dict)) or any(isinstance(one, dict) for one in rope.values()):
        raise _refuse(file, field, "one a layer type", "the decoder has one rotary embedding for all layers")
    if rope.get("partial_rotary_factor") not in (None, 1.0):
        raise _refuse(
            file, f"{field}.partial_rotary_factor", rope["partial_rotary_factor"], "the decoder rotates whole heads"
        )
    places = ((f"{field}.rope_theta", rope), ("rope_theta", raw), ("rope_parameters.rope_theta", modern))
    thetas = [(name, of["rope_theta"]) for name, of in places if of.get("rope_theta") is not None]
    theta = _number(file, *(thetas or [("rope_theta", 10_000.0)])[0])
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind == "default":
        return RopeConfig(theta=theta)
    if kind not in ("linear", "llama3"):
        raise _refuse(file, f"{field}.rope_type", kind, "known: default, linear, llama3")
    factor = _number(file, f"{field}.factor", rope.get("factor"))
    if kind == "linear":
        return RopeConfig(theta=theta, kind="linear", factor=factor)
    low, high = (_number(file, f"{field}.{name}", rope.get(name)) for name in ("low_freq_factor", "high_freq_factor"))
    if low >= high:
        raise CheckpointError(
            f"{file}: field {field}.low_freq_factor is {low:g}, but must be below high_freq_factor, {high:g}; mend or "
            f"fetch it"
        )
    original = raw.get("original_max_position_embeddings") or rope.get("original_max_position_embeddings")
    original = _whole(file, f"{field}.original_max_position_embeddings", original or max_positions)
    return RopeConfig(theta, "llama3", factor, low, high, original)


def _read_window(file: Path, raw: dict[str, Any], family: str, layers: int) -> int | None:
    """Sliding window of all layers. Llama has none, Qwen only where `use_sliding_window` says so."""
    if family == "llama":
        return None
    if (window := raw.get("sliding_window", 4096)) is None or (
        family != "mistral" and not _flag(file, raw, "use_sliding_window")
    ):
        return None
    window = _whole(file, "sliding_window", window)
    if family == "mistral":
        return window
    first = _whole(file, "max_window_layers", raw.get("max_window_layers", 28), least=0)
    kinds = raw.get("layer_types") or ["full_attention" if n < first else "sliding_attention" for n in range(layers)]
    if not isinstance(kinds, list) or not all(kind in ("full_attention", "sliding_attention") for kind in kinds):
        raise _refuse(file, "layer_types", kinds, "known: full_attention, sliding_attention")
    if len(set(kinds)) > 1:
        raise _refuse(
            file, "layer_types", "full and sliding attention mixed", "the decoder has one window for all layers"
        )
    return window if kinds[0] == "sliding_attention" else None


def _whole(file: Path, field: str, value: Any, *, least: int = 1) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value < 2**31:
        raise CheckpointError(
            f"{file}: field {field} is {value!r}, but must be a whole number from {least} on; mend or fetch it"
        )
    return value


def _number(file: Path, field: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < float("inf"):
        raise CheckpointError(f"{file}: field {field} is {value!r}, but must be a number above 0; mend or fetch it")
    return float(value)


def _flag(file: Path, raw: dict[str, Any], field: str) -> bool:
    value = raw.get(field)
    if value not in (None, False, True):
        raise CheckpointError(f"{file}: field {field} is {value!r}, but must be true or false; mend or fetch it")
    return bool(value)


def _refuse(file: Path, field: str, value: Any, why: str) -> CheckpointError:
    return CheckpointError(f"{file}: field {field} is {value!r}, which is not supported ({why}); use another model")
