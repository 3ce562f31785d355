"""config.json of Hugging Face <-> TransformerConfig. What is not known to change nothing is refused by name."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from tisdpo_jax.errors import CheckpointError
from tisdpo_jax.interchange._fields import check_known, flag_field, number_field, read_json, refuse, whole_field
from tisdpo_jax.interchange._rope import read_ropes, rope_fields
from tisdpo_jax.models import GEMMA, Kind, TransformerConfig

CONFIG = "config.json"


class _Family(NamedTuple):
    """What transformers calls a family, and how its models differ from others."""

    architecture: str
    windows: Literal["none", "all", "some"]  # of its layers
    defaults: dict[str, Any]  # where config.json leaves a field out and families differ
    has: dict[str, Any]  # fields of TransformerConfig that all its models have so; the rest is as there
    may_have: tuple[str, ...]  # fields of TransformerConfig that config.json decides


_BIAS, _CAPS = ("qkv_bias", "output_bias"), ("query_pre_attn_scalar", "attention_softcap", "final_softcap")
_POSITIONS, _KV = "max_position_embeddings", "num_key_value_heads"
_GEMMA = {_KV: 4, "head_dim": 256, "query_pre_attn_scalar": 256}
_GEMMA2 = _GEMMA | {_POSITIONS: 8192, "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0}
_GEMMA3_MAY = (*_BIAS, "query_pre_attn_scalar", "final_softcap", "local_rope")
_FAMILIES = {
    "llama": _Family("LlamaForCausalLM", "none", {_POSITIONS: 2048}, {}, (*_BIAS, "mlp_bias")),
    "mistral": _Family("MistralForCausalLM", "all", {_POSITIONS: 131_072, _KV: 8}, {}, ()),
    "qwen2": _Family("Qwen2ForCausalLM", "some", {_POSITIONS: 32_768, _KV: 32}, {"qkv_bias": True}, ()),
    "qwen3": _Family(
        "Qwen3ForCausalLM", "some", {_POSITIONS: 32_768, _KV: 32, "head_dim": 128}, {"qk_norm": True}, _BIAS
    ),
    "gemma2": _Family("Gemma2ForCausalLM", "some", _GEMMA2, GEMMA, (*_BIAS, *_CAPS)),
    "gemma3_text": _Family(
        "Gemma3ForCausalLM", "some", _GEMMA | {_POSITIONS: 131_072}, GEMMA | {"qk_norm": True}, _GEMMA3_MAY
    ),
}
_SIZES = {
    "vocab_size": "vocab_size",
    "hidden_size": "hidden_size",
    "intermediate_size": "intermediate_size",
    "num_hidden_layers": "num_layers",
    "num_attention_heads": "num_heads",
    _KV: "num_kv_heads",
    "head_dim": "head_dim",
}
_ACTIVATIONS = {"silu": "silu", "swish": "silu", "gelu_pytorch_tanh": "gelu_tanh"}
_SOFTCAPS = {"attention_softcap": "attn_logit_softcapping", "final_softcap": "final_logit_softcapping"}
_READ = {
    *(*_SIZES, "model_type", "max_position_embeddings", "rms_norm_eps", "tie_word_embeddings"),
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
        default = family.defaults.get(field, default)
        return whole_field(file, field, default if raw.get(field) is None else raw[field])

    hidden, heads, layers = size("hidden_size"), size("num_attention_heads"), size("num_hidden_layers")
    others = {_KV: heads, "head_dim": max(hidden // heads, 1)}
    sizes: dict[str, Any] = {ours: size(theirs, others.get(theirs)) for theirs, ours in _SIZES.items()}
    if raw.get(_KV, 0) is None:  # null is as many as heads, left out as many as the family has
        sizes["num_kv_heads"] = heads
    positions = size(_POSITIONS)
    window, pattern = _read_layers(file, raw, name, layers)
    rope, local_rope = read_ropes(file, raw, name, positions)
    bias = flag_field(file, raw, "attention_bias")
    may_have: dict[str, Any] = {
        "qkv_bias": bias,
        "output_bias": bias,
        "mlp_bias": flag_field(file, raw, "mlp_bias"),
        "local_rope": local_rope if window is not None else None,
    }
    for ours in _CAPS:
        theirs = _SOFTCAPS.get(ours, ours)
        value = raw.get(theirs, family.defaults.get(theirs))  # its null says that there is none
        may_have[ours] = None if value is None or not gemma else number_field(file, theirs, value)
    try:
        return TransformerConfig(
            **sizes,
            max_positions=positions,
            norm_eps=number_field(file, "rms_norm_eps", raw.get("rms_norm_eps", 1e-6)),
            rope=rope,
            sliding_window=window,
            tied_head=flag_field(file, raw, "tie_word_embeddings", default=gemma),
            pattern=pattern,
            **family.has
            | {"activation": _ACTIVATIONS[activation]}
            | {field: may_have[field] for field in family.may_have},
        )
    except CheckpointError:
        raise
    except (ValueError, TypeError) as error:
        raise CheckpointError(f"{file}: {error}; mend or fetch it again") from None


def huggingface_config(config: TransformerConfig, *, dtype: str, special: dict[str, Any]) -> dict[str, Any]:
    """config.json for `config`: the family that computes the same, loadable by transformers 4 and 5.

    Rope is written in both spellings: `rope_theta` with `rope_scaling` (4) and `rope_parameters` (5).
    `special` has bos_token_id, eos_token_id (or a list) and pad_token_id.

    Raises: CheckpointError when no family of transformers has this combination.
    """
    name = _family_of(config)
    family = _FAMILIES[name]
    if config.rope.kind == "dynamic" and config.rope.original_max_positions != config.max_positions:
        raise CheckpointError(
            f"rope: dynamic from {config.rope.original_max_positions} positions on, but max_positions is "
            f"{config.max_positions}; transformers has one number for both, so such a model cannot be exported"
        )
    rope, local = rope_fields(config.rope), config.local_rope or config.rope
    activation = "silu" if config.activation == "silu" else "gelu_pytorch_tanh"
    parameters = {**rope, "rope_theta": config.rope.theta}
    windowed = config.sliding_window is not None
    kinds = [config.pattern[n % len(config.pattern)] if windowed else "full" for n in range(config.num_layers)]
    layer_types = [f"{kind}_attention" for kind in kinds]
    raw: dict[str, Any] = {
        "architectures": [family.architecture],
        "model_type": name,
        **{theirs: getattr(config, ours) for theirs, ours in _SIZES.items()},
        "hidden_act": activation,
        "max_position_embeddings": config.max_positions,
        "rms_norm_eps": config.norm_eps,
        "rope_theta": config.rope.theta,
        "rope_scaling": None if config.rope.kind == "default" else rope,
        "rope_parameters": parameters,
        "tie_word_embeddings": config.tied_head and not config.score_head,
        "torch_dtype": dtype,
        **special,
    }
    if config.score_head:
        kind = "TextForSequenceClassification" if name == "gemma3_text" else "ForSequenceClassification"
        raw |= {"architectures": [family.architecture.replace("ForCausalLM", kind)], "num_labels": 1}
        raw |= {"id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}, "problem_type": "regression"}
    if "output_bias" in family.may_have:
        raw["attention_bias"] = config.output_bias
    if "mlp_bias" in family.may_have:
        raw["mlp_bias"] = config.mlp_bias
    if name == "mistral":
        raw["sliding_window"] = config.sliding_window
    if name in ("qwen2", "qwen3"):
        raw |= {"use_sliding_window": windowed, "sliding_window": config.sliding_window}
        raw["max_window_layers"] = [*kinds, "sliding"].index("sliding")
        if len(set(kinds)) > 1:
            raw["layer_types"] = layer_types
    if name.startswith("gemma"):
        scalar = config.query_pre_attn_scalar or config.head_dim
        raw |= {
            "hidden_activation": activation,
            "query_pre_attn_scalar": int(scalar) if scalar == int(scalar) else scalar,
            **{theirs: getattr(config, ours) for ours, theirs in _SOFTCAPS.items()},
            "sliding_window": config.sliding_window or config.max_positions,
            "layer_types": layer_types,
        }
    if name == "gemma3_text":
        raw["rope_local_base_freq"] = local.theta
        raw["rope_parameters"] = {
            "full_attention": parameters,
            "sliding_attention": {**rope_fields(local), "rope_theta": local.theta},
        }
    return raw


def _family_of(config: TransformerConfig) -> str:
    """The family whose code computes what `config` describes."""
    names = {*GEMMA, *_BIAS, *_CAPS, "mlp_bias", "qk_norm", "local_rope"} - {"activation"}  # where families differ
    plain = {field.name: field.default for field in dataclasses.fields(config)}
    windowed, alike = config.sliding_window is not None, len(set(config.pattern)) == 1
    for name, family in _FAMILIES.items():
        fits = {"none": not windowed, "all": windowed and alike, "some": True}[family.windows]
        for field in names - {*family.may_have}:
            fits &= getattr(config, field) == family.has.get(field, plain[field])
        if "qkv_bias" in family.may_have:
            fits &= config.qkv_bias == config.output_bias
        if name == "gemma3_text":
            fits &= (config.local_rope or config.rope).kind == "default"
        if fits:
            return name
    unusual = {field: value for field in plain if (value := getattr(config, field)) != plain[field]}
    said = ", ".join(f"{field}={unusual[field]}" for field in unusual if plain[field] is not dataclasses.MISSING)
    raise CheckpointError(f"no family of transformers has {said} together; such a model cannot be exported")


def _read_layers(file: Path, raw: dict[str, Any], name: str, layers: int) -> tuple[int | None, tuple[Kind, ...]]:
    """The sliding window, and the pattern of layers that have it. Llama has none, Qwen only if it says so."""
    window, gemma = raw.get("sliding_window", 4096), name.startswith("gemma")
    none: tuple[None, tuple[Kind, ...]] = (None, ("sliding",))
    if _FAMILIES[name].windows == "none" or (window is None and not gemma):
        return none
    if _FAMILIES[name].windows == "all":
        return whole_field(file, "sliding_window", window), ("sliding",)
    if not gemma and not flag_field(file, raw, "use_sliding_window"):
        return none
    if gemma:
        every = raw.get("sliding_window_pattern", raw.get("_sliding_window_pattern", 6))
        every = whole_field(file, "sliding_window_pattern", every) if name == "gemma3_text" else 2
        full = [(layer + 1) % every == 0 for layer in range(layers)]
    else:
        first = whole_field(file, "max_window_layers", raw.get("max_window_layers", 28), least=0)
        full = [layer < first for layer in range(layers)]
    kinds = raw.get("layer_types") or ["full_attention" if one else "sliding_attention" for one in full]
    if not isinstance(kinds, list) or not all(kind in ("full_attention", "sliding_attention") for kind in kinds):
        raise refuse(file, "layer_types", kinds, "known: full_attention, sliding_attention")
    if len(kinds) != layers:
        raise refuse(file, "layer_types", f"a list of {len(kinds)}", f"there are {layers} layers")
    pattern = shortest([kind.removesuffix("_attention") for kind in kinds])
    return none if pattern == ("full",) else (whole_field(file, "sliding_window", window), pattern)


def shortest(kinds: Sequence[Any]) -> tuple[Kind, ...]:
    """The pattern that gives these kinds of layers when it is repeated."""
    count = len(kinds)
    period = next(p for p in range(1, count + 1) if all(kinds[n] == kinds[n % p] for n in range(count)))
    return tuple(kinds[:period])
