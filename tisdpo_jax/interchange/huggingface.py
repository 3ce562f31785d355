"""config.json of Hugging Face <-> TransformerConfig. What is not known to change nothing is refused by name."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tisdpo_jax.errors import CheckpointError
from tisdpo_jax.models import Kind, RopeConfig, TransformerConfig

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
_ROPE_READ = {
    *("rope_type", "type", "rope_theta", "factor", "low_freq_factor", "high_freq_factor", "partial_rotary_factor"),
    *("original_max_position_embeddings", "attention_factor", "beta_fast", "beta_slow", "truncate"),
    *("mscale", "mscale_all_dim"),
}


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
    name = raw.get("model_type")
    if not isinstance(name, str) or name not in _FAMILIES:
        raise _refuse(file, "model_type", name, f"known: {', '.join(_FAMILIES)}")
    family, gemma = _FAMILIES[name], name.startswith("gemma")
    if quantised := raw.get("quantization_config"):
        method = quantised.get("quant_method", "unnamed") if isinstance(quantised, dict) else quantised
        raise _refuse(file, "quantization_config", method, "use the model's unquantised release")
    _check_known(file, "", raw, _READ | _NO_EFFECT)
    field = "hidden_activation" if gemma else "hidden_act"
    activation = raw.get(field) or ("gelu_pytorch_tanh" if gemma else "silu")
    if activation not in _ACTIVATIONS:
        raise _refuse(file, field, activation, f"known: {', '.join(_ACTIVATIONS)}")
    if name == "gemma3_text" and raw.get("attn_logit_softcapping") is not None:
        raise _refuse(file, "attn_logit_softcapping", raw["attn_logit_softcapping"], "Gemma 3 has none")

    def size(field: str, default: int | None = None) -> int:
        """A field that may be left out, or null, where there is a default."""
        return _whole(file, field, default if raw.get(field) is None else raw[field])

    def cap(field: str, default: float | None) -> float | None:
        """A field whose null says that there is none."""
        value = raw.get(field, default)
        return None if value is None or not gemma else _number(file, field, value)

    hidden, heads, layers = size("hidden_size"), size("num_attention_heads"), size("num_hidden_layers")
    kv_heads = family.kv_heads or heads
    bias = _flag(file, raw, "attention_bias") and name not in ("mistral", "qwen2")
    max_positions = size("max_position_embeddings", family.max_positions)
    window, pattern = _read_layers(file, raw, name, layers)
    rope, local_rope = _read_ropes(file, raw, name, max_positions)
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
            norm_eps=_number(file, "rms_norm_eps", raw.get("rms_norm_eps", 1e-6)),
            rope=rope,
            sliding_window=window,
            qkv_bias=bias or name == "qwen2",
            output_bias=bias,
            mlp_bias=_flag(file, raw, "mlp_bias") and name == "llama",
            qk_norm=name in ("qwen3", "gemma3_text"),
            tied_head=_flag(file, raw, "tie_word_embeddings", default=gemma),
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
    rope, local = _rope_fields(config.rope), config.local_rope or config.rope
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
            "sliding_attention": {**_rope_fields(local), "rope_theta": local.theta},
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


def _rope_fields(rope: RopeConfig) -> dict[str, Any]:
    """`rope_scaling` without theta."""
    fields: dict[str, Any] = {"rope_type": rope.kind}
    if rope.kind != "default":
        fields["factor"] = rope.factor
    if rope.kind == "llama3":
        fields |= {"low_freq_factor": rope.low_freq_factor, "high_freq_factor": rope.high_freq_factor}
    if rope.kind == "yarn":
        fields |= {"beta_fast": rope.beta_fast, "beta_slow": rope.beta_slow, "truncate": rope.truncate}
        fields |= {} if rope.attention_factor is None else {"attention_factor": rope.attention_factor}
    if rope.kind in ("llama3", "yarn"):
        fields["original_max_position_embeddings"] = rope.original_max_positions
    return fields


def _read_ropes(
    file: Path, raw: dict[str, Any], family: str, max_positions: int
) -> tuple[RopeConfig, RopeConfig | None]:
    """The rotary embedding, and that of sliding layers where it is another one (Gemma 3)."""
    modern = raw.get("rope_parameters") or {}
    if family != "gemma3_text":
        return _read_rope(file, raw, modern, max_positions), None
    kinds = ("full_attention", "sliding_attention")
    if not isinstance(modern, dict) or not set(modern) <= set(kinds):
        raise _refuse(file, "rope_parameters", modern, f"Gemma 3 has one for {' and one for '.join(kinds)}")
    full, sliding = (modern.get(kind) or {} for kind in kinds)
    local = {"rope_theta": raw.get("rope_local_base_freq")}
    return (
        _read_rope(file, raw, full, max_positions, theta=1e6),
        _read_rope(file, local, sliding, max_positions, name="rope_local_base_freq"),
    )


def _read_rope(
    file: Path, raw: dict[str, Any], modern: Any, max_positions: int, *, theta: float = 1e4, name: str = "rope_theta"
) -> RopeConfig:
    """Both spellings: `rope_scaling` wins where both hold something, as it does in transformers 5.

    Args:
      modern: `rope_parameters`; theta: where it is left out; name: of the old spelling's field for it.
    """
    rope = raw.get("rope_scaling") or modern
    field = "rope_scaling" if raw.get("rope_scaling") else "rope_parameters"
    if not (isinstance(rope, dict) and isinstance(modern, dict)) or any(isinstance(one, dict) for one in rope.values()):
        raise _refuse(file, field, "one a layer type", "this family has one rotary embedding for all layers")
    _check_known(file, f"{field}.", rope, _ROPE_READ)
    for where, of in (("", raw), (f"{field}.", rope)):
        if of.get("partial_rotary_factor") not in (None, 1.0):
            value = of["partial_rotary_factor"]
            raise _refuse(file, f"{where}partial_rotary_factor", value, "the decoder rotates whole heads")
    places = ((f"{field}.rope_theta", rope), (name, raw), ("rope_parameters.rope_theta", modern))
    thetas = [(where, of["rope_theta"]) for where, of in places if of.get("rope_theta") is not None]
    theta = _number(file, *(thetas or [(name, theta)])[0])
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind == "default":
        return RopeConfig(theta=theta)
    if kind not in ("linear", "dynamic", "llama3", "yarn"):
        raise _refuse(file, f"{field}.rope_type", kind, "known: default, linear, dynamic, llama3, yarn")

    def number(name: str, default: float | None = None) -> float:
        return _number(file, f"{field}.{name}", default if rope.get(name) is None else rope[name])

    factor = number("factor")
    if kind == "linear":
        return RopeConfig(theta, "linear", factor)
    if kind == "dynamic":
        return RopeConfig(theta, "dynamic", factor, original_max_positions=max_positions)
    original = raw.get("original_max_position_embeddings") or rope.get("original_max_position_embeddings")
    if kind == "yarn":
        sharp = number("attention_factor") if rope.get("attention_factor") is not None else None
        if sharp is None and rope.get("mscale") and rope.get("mscale_all_dim"):
            grow = 0.1 * math.log(max(factor, 1.0))
            sharp = (grow * number("mscale") + 1.0) / (grow * number("mscale_all_dim") + 1.0)
        return RopeConfig(
            *(theta, "yarn", factor),
            original_max_positions=_whole(file, f"{field}.original_max_position_embeddings", original or max_positions),
            attention_factor=sharp,
            beta_fast=number("beta_fast", 32.0),
            beta_slow=number("beta_slow", 1.0),
            truncate=_flag(file, rope, "truncate", default=True),
        )
    low, high = number("low_freq_factor"), number("high_freq_factor")
    if low >= high:
        raise CheckpointError(
            f"{file}: field {field}.low_freq_factor is {low:g}, but must be below high_freq_factor, {high:g}; mend or "
            f"fetch it"
        )
    original = _whole(file, f"{field}.original_max_position_embeddings", original or max_positions)
    return RopeConfig(theta, "llama3", factor, low, high, original)


def _read_layers(file: Path, raw: dict[str, Any], family: str, layers: int) -> tuple[int | None, tuple[Kind, ...]]:
    """The sliding window, and the pattern of layers that have it. Llama has none, Qwen only if it says so."""
    window = raw.get("sliding_window", 4096)
    gemma = family.startswith("gemma")
    if family == "llama" or (window is None and not gemma):
        return None, ("sliding",)
    if family == "mistral":
        return _whole(file, "sliding_window", window), ("sliding",)
    if not gemma and not _flag(file, raw, "use_sliding_window"):
        return None, ("sliding",)
    if gemma:
        every = raw.get("sliding_window_pattern", raw.get("_sliding_window_pattern", 6))
        every = _whole(file, "sliding_window_pattern", every) if family == "gemma3_text" else 2
        kinds = ["full_attention" if (n + 1) % every == 0 else "sliding_attention" for n in range(layers)]
    else:
        first = _whole(file, "max_window_layers", raw.get("max_window_layers", 28), least=0)
        kinds = ["full_attention" if n < first else "sliding_attention" for n in range(layers)]
    kinds = raw.get("layer_types") or kinds
    if not isinstance(kinds, list) or not all(kind in ("full_attention", "sliding_attention") for kind in kinds):
        raise _refuse(file, "layer_types", kinds, "known: full_attention, sliding_attention")
    if len(kinds) != layers:
        raise _refuse(file, "layer_types", f"a list of {len(kinds)}", f"there are {layers} layers")
    pattern = shortest([kind.removesuffix("_attention") for kind in kinds])
    return (None, ("sliding",)) if pattern == ("full",) else (_whole(file, "sliding_window", window), pattern)


def shortest(kinds: Sequence[Any]) -> tuple[Kind, ...]:
    """The pattern that gives these kinds of layers when it is repeated."""
    count = len(kinds)
    period = next(p for p in range(1, count + 1) if all(kinds[n] == kinds[n % p] for n in range(count)))
    return tuple(kinds[:period])


def _check_known(file: Path, where: str, raw: dict[str, Any], known: Collection[str]) -> None:
    """Fields that are not known have to be off; those that begin with _ are notes of transformers to itself."""
    for field, value in raw.items():
        if field not in known and not field.startswith("_") and value not in (None, False, [], {}, "", 0):
            raise _refuse(file, where + field, value, "it is not known here, and may change what the model computes")


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


def _flag(file: Path, raw: dict[str, Any], field: str, *, default: bool = False) -> bool:
    value = raw.get(field)
    if value not in (None, False, True):
        raise CheckpointError(f"{file}: field {field} is {value!r}, but must be true or false; mend or fetch it")
    return default if value is None else bool(value)


def _refuse(file: Path, field: str, value: Any, why: str) -> CheckpointError:
    return CheckpointError(f"{file}: field {field} is {value!r}, which is not supported ({why}); use another model")
