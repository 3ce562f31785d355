"""config.json of Hugging Face <-> TransformerConfig. What is not known to change nothing is refused by name."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tisdpo_jax.errors import CheckpointError
from tisdpo_jax.interchange._fields import check_known, flag_field, number_field, read_json, refuse, whole
from tisdpo_jax.interchange._rope import read_ropes, rope_fields
from tisdpo_jax.models import Kind, TransformerConfig

CONFIG = "config.json"


class _Family(NamedTuple):
    """What transformers calls it, and what it takes a field for that config.json leaves out, where families differ."""

    architecture: str
    max_positions: int
    kv_heads: int | None = None  # None: as many as heads
    head_dim: int | None = None  # None: the width by the heads


_FAMILIES = {
    "llama": _Family("LlamaForCausalLM", 2048),
    "mistral": _Family("MistralForCausalLM", 131_072, 8),
    "qwen2": _Family("Qwen2ForCausalLM", 32_768, 32),
    "qwen3": _Family("Qwen3ForCausalLM", 32_768, 32, 128),
    "gemma2": _Family("Gemma2ForCausalLM", 8192, 4, 256),
    "gemma3_text": _Family("Gemma3ForCausalLM", 131_072, 4, 256),
}
_ACTIVATIONS = {"silu": "silu", "swish": "silu", "gelu_pytorch_tanh": "gelu_tanh"}
_READ = {
    *("model_type", "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"),
    *("num_key_value_heads", "head_dim", "max_position_embeddings", "rms_norm_eps", "tie_word_embeddings"),
    *("hidden_act", "hidden_activation", "attention_bias", "mlp_bias", "quantization_config"),
    *("rope_theta", "rope_scaling", "rope_parameters", "rope_local_base_freq", "partial_rotary_factor"),
    *("original_max_position_embeddings", "sliding_window", "use_sliding_window", "max_window_layers", "layer_types"),
    *("sliding_window_pattern", "_sliding_window_pattern", "query_pre_attn_scalar"),
    *("attn_logit_softcapping", "final_logit_softcapping"),
}
# who made it, how it is trained, stored and drawn from: nothing that changes what it computes of given tokens
_NO_EFFECT = {
    *("architectures", "dtype", "torch_dtype", "name_or_path", "transformers_version", "initializer_range"),
    *("use_cache", "cache_implementation", "pretraining_tp", "attn_implementation", "attention_dropout"),
    *("bos_token_id", "eos_token_id", "pad_token_id", "unk_token_id", "sep_token_id", "decoder_start_token_id"),
    *("id2label", "label2id", "num_labels", "problem_type", "task_specific_params", "finetuning_task", "return_dict"),
    *("is_llama_config", "transformers.js_config", "unsloth_fixed", "unsloth_version", "use_bfloat16", "torchscript"),
    *("do_sample", "temperature", "top_k", "top_p", "typical_p", "max_length", "min_length", "num_beams"),
    *("num_beam_groups", "num_return_sequences", "repetition_penalty", "length_penalty", "diversity_penalty"),
}


def read_huggingface_config(directory: Path) -> TransformerConfig:
    """The model that `directory`/config.json describes.

    Raises: CheckpointError for a field that is missing or asks for what the decoder does not do.
    """
    file = directory / CONFIG
    raw = read_json(file)
    name = raw.get("model_type")
    if not isinstance(name, str) or name not in _FAMILIES:
        raise refuse(file, "model_type", name, f"known: {', '.join(_FAMILIES)}")
    family, gemma = _FAMILIES[name], name.startswith("gemma")
    if quantised := raw.get("quantization_config"):
        method = quantised.get("quant_method", "unnamed") if isinstance(quantised, dict) else quantised
        raise refuse(file, "quantization_config", method, "use the model's unquantised release")
    check_known(file, "", raw, _READ | _NO_EFFECT)
    field = "hidden_activation" if gemma else "hidden_act"
    activation = raw.get(field) or ("gelu_pytorch_tanh" if gemma else "silu")
    if activation not in _ACTIVATIONS:
        raise refuse(file, field, activation, f"known: {', '.join(_ACTIVATIONS)}")
    if name == "gemma3_text" and raw.get("attn_logit_softcapping") is not None:
        raise refuse(file, "attn_logit_softcapping", raw["attn_logit_softcapping"], "Gemma 3 has none")

    def size(field: str, default: int | None = None) -> int:
        """A field that may be left out, or null, where there is a default."""
        return whole(file, field, default if raw.get(field) is None else raw[field])

    def cap(field: str, default: float | None) -> float | None:
        """A field whose null says that there is none."""
        value = raw.get(field, default)
        return None if value is None or not gemma else number_field(file, field, value)

    hidden, heads, layers = size("hidden_size"), size("num_attention_heads"), size("num_hidden_layers")
    kv_heads = family.kv_heads or heads
    bias = flag_field(file, raw, "attention_bias") and name not in ("mistral", "qwen2")
    max_positions = size("max_position_embeddings", family.max_positions)
    window, pattern = _read_layers(file, raw, name, layers)
    rope, local_rope = read_ropes(file, raw, name, max_positions)
    try:
        return TransformerConfig(
            vocab_size=size("vocab_size"),
            hidden_size=hidden,
            intermediate_size=size("intermediate_size"),
            num_layers=layers,
            num_heads=heads,
            num_kv_heads=size("num_key_value_heads", heads if "num_key_value_heads" in raw else kv_heads),
            head_dim=size("head_dim", family.head_dim or max(hidden // heads, 1)),
            max_positions=max_positions,
            norm_eps=number_field(file, "rms_norm_eps", raw.get("rms_norm_eps", 1e-6)),
            rope=rope,
            sliding_window=window,
            qkv_bias=bias or name == "qwen2",
            output_bias=bias,
            mlp_bias=flag_field(file, raw, "mlp_bias") and name == "llama",
            qk_norm=name in ("qwen3", "gemma3_text"),
            tied_head=flag_field(file, raw, "tie_word_embeddings", default=gemma),
            pattern=pattern,
            local_rope=local_rope if window is not None else None,
            activation=_ACTIVATIONS[activation],  # type: ignore[arg-type]  # one of its names
            norm_offset=gemma,
            post_norms=gemma,
            embed_scale=gemma,
            query_pre_attn_scalar=cap("query_pre_attn_scalar", 256),
            attention_softcap=cap("attn_logit_softcapping", 50.0 if name == "gemma2" else None),
            final_softcap=cap("final_logit_softcapping", 30.0 if name == "gemma2" else None),
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
    if config.rope.kind == "dynamic" and config.rope.original_max_positions != config.max_positions:
        raise CheckpointError(
            f"rope: dynamic from {config.rope.original_max_positions} positions on, but max_positions is "
            f"{config.max_positions}; transformers has one number for both, so such a model cannot be exported"
        )
    rope, local = rope_fields(config.rope), config.local_rope or config.rope
    activation = "silu" if config.activation == "silu" else "gelu_pytorch_tanh"
    parameters = {**rope, "rope_theta": config.rope.theta}
    raw: dict[str, Any] = {
        "architectures": [_FAMILIES[family].architecture],
        "model_type": family,
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "hidden_act": activation,
        "max_position_embeddings": config.max_positions,
        "rms_norm_eps": config.norm_eps,
        "rope_theta": config.rope.theta,
        "rope_scaling": None if config.rope.kind == "default" else rope,
        "rope_parameters": parameters,
        "tie_word_embeddings": config.tied_head,
        "torch_dtype": dtype,
    }
    raw |= special
    kinds = [config.pattern[n % len(config.pattern)] for n in range(config.num_layers)]
    if config.sliding_window is None:
        kinds = ["full"] * config.num_layers
    layer_types = [f"{kind}_attention" for kind in kinds]
    if family not in ("mistral", "qwen2"):
        raw["attention_bias"] = config.output_bias
    if family == "llama":
        raw["mlp_bias"] = config.mlp_bias
    if family == "mistral":
        raw["sliding_window"] = config.sliding_window
    if family in ("qwen2", "qwen3"):
        windowed = config.sliding_window is not None
        raw |= {"use_sliding_window": windowed, "sliding_window": config.sliding_window}
        raw["max_window_layers"] = [*kinds, "sliding"].index("sliding")
        if len(set(kinds)) > 1:
            raw["layer_types"] = layer_types
    if family.startswith("gemma"):
        scalar = config.query_pre_attn_scalar or config.head_dim
        raw |= {
            "hidden_activation": activation,
            "query_pre_attn_scalar": int(scalar) if scalar == int(scalar) else scalar,
            "attn_logit_softcapping": config.attention_softcap,
            "final_logit_softcapping": config.final_softcap,
            "sliding_window": config.sliding_window or config.max_positions,
            "layer_types": layer_types,
        }
    if family == "gemma3_text":
        raw["rope_local_base_freq"] = local.theta
        raw["rope_parameters"] = {
            "full_attention": parameters,
            "sliding_attention": {**rope_fields(local), "rope_theta": local.theta},
        }
    return raw


def _family(config: TransformerConfig) -> str:
    """The family whose code computes what `config` describes."""
    c, windowed, alike = config, config.sliding_window is not None, len(set(config.pattern)) == 1
    gemma = {c.norm_offset, c.post_norms, c.embed_scale, c.query_pre_attn_scalar is not None}
    even = c.qkv_bias == c.output_bias and not c.mlp_bias
    if gemma == {True} and even:
        if c.qk_norm and c.attention_softcap is None and (c.local_rope or c.rope).kind == "default":
            return "gemma3_text"
        if not c.qk_norm and c.local_rope is None:
            return "gemma2"
    if gemma == {False} and c.local_rope is None and c.attention_softcap is None and c.final_softcap is None:
        if c.qk_norm and even:
            return "qwen3"
        if not c.qk_norm and c.qkv_bias and not c.output_bias and not c.mlp_bias:
            return "qwen2"
        if not c.qk_norm and c.qkv_bias == c.output_bias and not windowed:
            return "llama"
        if not c.qk_norm and windowed and alike and even and not c.qkv_bias:
            return "mistral"
    unusual = {
        field.name: value
        for field in dataclasses.fields(c)
        if field.default is not dataclasses.MISSING and (value := getattr(c, field.name)) != field.default
    }
    raise CheckpointError(
        f"no family of transformers has {', '.join(f'{name}={value}' for name, value in unusual.items())} together; "
        f"such a model cannot be exported"
    )


def _read_layers(file: Path, raw: dict[str, Any], family: str, layers: int) -> tuple[int | None, tuple[Kind, ...]]:
    """The sliding window, and the pattern of layers that have it. Llama has none, Qwen only if it says so."""
    window = raw.get("sliding_window", 4096)
    gemma = family.startswith("gemma")
    if family == "llama" or (window is None and not gemma):
        return None, ("sliding",)
    if family == "mistral":
        return whole(file, "sliding_window", window), ("sliding",)
    if not gemma and not flag_field(file, raw, "use_sliding_window"):
        return None, ("sliding",)
    if gemma:
        every = raw.get("sliding_window_pattern", raw.get("_sliding_window_pattern", 6))
        every = whole(file, "sliding_window_pattern", every) if family == "gemma3_text" else 2
        kinds = ["full_attention" if (n + 1) % every == 0 else "sliding_attention" for n in range(layers)]
    else:
        first = whole(file, "max_window_layers", raw.get("max_window_layers", 28), least=0)
        kinds = ["full_attention" if n < first else "sliding_attention" for n in range(layers)]
    kinds = raw.get("layer_types") or kinds
    if not isinstance(kinds, list) or not all(kind in ("full_attention", "sliding_attention") for kind in kinds):
        raise refuse(file, "layer_types", kinds, "known: full_attention, sliding_attention")
    if len(kinds) != layers:
        raise refuse(file, "layer_types", f"a list of {len(kinds)}", f"there are {layers} layers")
    pattern = shortest([kind.removesuffix("_attention") for kind in kinds])
    return (None, ("sliding",)) if pattern == ("full",) else (whole(file, "sliding_window", window), pattern)


def shortest(kinds: Sequence[Any]) -> tuple[Kind, ...]:
    """The pattern that gives these kinds of layers when it is repeated."""
    count = len(kinds)
    period = next(p for p in range(1, count + 1) if all(kinds[n] == kinds[n % p] for n in range(count)))
    return tuple(kinds[:period])
