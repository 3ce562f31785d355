"""config.json: what each family's fields mean, and what the decoder refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import transformers

from tisdpo_jax.errors import CheckpointError
from tisdpo_jax.interchange import read_config
from tisdpo_jax.models import RopeConfig, TransformerConfig

SIZES = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
}
LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 32}


def read(directory: Path, family: str, **fields: Any) -> TransformerConfig:
    (directory / "config.json").write_text(json.dumps({"model_type": family, **SIZES, **fields}))
    return read_config(directory)


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3_text"])
def test_defaults_are_those_of_transformers(tmp_path: Path, family: str) -> None:
    heads = {} if family == "llama" else {"num_attention_heads": 32, "hidden_size": 256}  # of which the default divides
    config = read(tmp_path, family, **heads)
    theirs = transformers.AutoConfig.from_pretrained(tmp_path)
    head_dim = getattr(theirs, "head_dim", None) or theirs.hidden_size // theirs.num_attention_heads
    assert (config.num_kv_heads, config.head_dim) == (theirs.num_key_value_heads, head_dim)
    assert (config.max_positions, config.norm_eps) == (theirs.max_position_embeddings, theirs.rms_norm_eps)
    rope = theirs.rope_parameters
    assert (config.tied_head, config.rope.theta) == (
        theirs.tie_word_embeddings,
        rope.get("full_attention", rope)["rope_theta"],
    )
    assert config.sliding_window == getattr(theirs, "sliding_window", None)
    for field, name in (
        ("query_pre_attn_scalar", "query_pre_attn_scalar"),
        ("attention_softcap", "attn_logit_softcapping"),
        ("final_softcap", "final_logit_softcapping"),
    ):
        assert getattr(config, field) == getattr(theirs, name, None)
    if family == "gemma3_text":
        assert config.local_rope == RopeConfig(rope["sliding_attention"]["rope_theta"])


@pytest.mark.parametrize(
    ("fields", "rope"),
    [
        ({"rope_theta": 5e5}, RopeConfig(5e5)),
        ({"rope_theta": 5e5, "rope_scaling": None}, RopeConfig(5e5)),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}, RopeConfig(5e5)),
        ({"rope_theta": 5e5, "rope_scaling": {"type": "linear", "factor": 2.0}}, RopeConfig(5e5, "linear", 2.0)),
        ({"rope_scaling": {"rope_type": "linear", "factor": 2}}, RopeConfig(1e4, "linear", 2.0)),
        (
            {"rope_theta": 5e5, "rope_scaling": {"rope_type": "llama3", **LLAMA3}},
            RopeConfig(5e5, "llama3", 8.0, 1.0, 4.0, 32),
        ),
        (
            {"rope_parameters": {"rope_type": "llama3", "rope_theta": 5e5, **LLAMA3}},
            RopeConfig(5e5, "llama3", 8.0, 1.0, 4.0, 32),
        ),
    ],
)
def test_both_spellings_of_rope(tmp_path: Path, fields: dict[str, Any], rope: RopeConfig) -> None:
    assert read(tmp_path, "llama", **fields).rope == rope


@pytest.mark.parametrize(
    ("family", "fields", "window"),
    [
        ("mistral", {"sliding_window": 7}, 7),
        ("mistral", {"sliding_window": None}, None),
        ("llama", {"sliding_window": 7}, None),
        ("qwen2", {"use_sliding_window": False, "sliding_window": 7, "max_window_layers": 0}, None),
        ("qwen2", {"use_sliding_window": True, "sliding_window": 7, "max_window_layers": 0}, 7),
        ("qwen2", {"use_sliding_window": True, "sliding_window": 7, "max_window_layers": 3}, None),
        ("qwen3", {"use_sliding_window": True, "sliding_window": 7, "layer_types": ["sliding_attention"] * 3}, 7),
        ("qwen3", {"use_sliding_window": True, "sliding_window": 7, "layer_types": ["full_attention"] * 3}, None),
        ("gemma2", {"layer_types": ["full_attention"] * 3}, None),
        ("gemma2", {"sliding_window": 7}, 7),
    ],
)
def test_sliding_windows(tmp_path: Path, family: str, fields: dict[str, Any], window: int | None) -> None:
    assert read(tmp_path, family, num_key_value_heads=2, **fields).sliding_window == window


@pytest.mark.parametrize(
    ("family", "fields", "pattern"),
    [
        ("gemma2", {}, ("sliding", "full")),
        ("gemma3_text", {"num_hidden_layers": 26}, ("sliding",) * 5 + ("full",)),
        ("gemma3_text", {"_sliding_window_pattern": 2}, ("sliding", "full")),
        ("gemma3_text", {}, ("sliding",)),  # three layers, of which the sixth would be the first full one
        ("qwen2", {"use_sliding_window": True, "max_window_layers": 1}, ("full", "sliding", "sliding")),
        ("gemma2", {"layer_types": ["full_attention", "sliding_attention"] * 2}, ("full", "sliding")),
    ],
)
def test_layers_with_and_without_a_window(
    tmp_path: Path, family: str, fields: dict[str, Any], pattern: tuple[str, ...]
) -> None:
    fields = {"num_hidden_layers": len(fields.get("layer_types", SIZES["num_hidden_layers"] * "x")), **fields}
    assert read(tmp_path, family, num_key_value_heads=2, **fields).pattern == pattern


@pytest.mark.parametrize(
    "fields",
    [
        {"is_llama_config": True, "transformers.js_config": {"dtype": "q4"}, "rope_interleaved": False},
        {"_name_or_path": "x", "use_cache": True, "pretraining_tp": 1, "initializer_range": 0.02, "dtype": "bfloat16"},
        {"num_experts": 0, "quantization_config": None, "auto_map": {}},
    ],
)
def test_fields_that_change_nothing_are_passed_over(tmp_path: Path, fields: dict[str, Any]) -> None:
    assert read(tmp_path, "llama", **fields) == read(tmp_path, "llama")


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"model_type": "gemma3"}, "model_type is 'gemma3'"),
        ({"model_type": "gemma3_text", "attn_logit_softcapping": 50.0}, "attn_logit_softcapping is 50.0"),
        ({"model_type": "gemma3_text", "use_bidirectional_attention": True}, "use_bidirectional_attention is True"),
        ({"model_type": "gemma3_text", "rope_parameters": {"rope_type": "default"}}, "rope_parameters"),
        ({"model_type": "gemma2", "hidden_activation": "relu"}, "hidden_activation is 'relu'"),
        ({"model_type": "gemma2", "layer_types": ["full_attention"]}, "layer_types is 'a list of 1'"),
        ({"num_experts": 8}, "num_experts is 8.*may change what the model computes"),
        ({"rope_scaling": {"rope_type": "linear", "factor": 2.0, "spread": 3}}, r"rope_scaling\.spread is 3"),
        ({"model_type": None}, "model_type"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        ({"rope_scaling": {"rope_type": "longrope", "factor": 4.0}}, "rope_type is 'longrope'"),
        ({"rope_scaling": {"rope_type": "yarn"}}, r"rope_scaling\.factor is None"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 4.0}}, "low_freq_factor"),
        ({"rope_parameters": {"full_attention": {"rope_theta": 1e4}}}, "rope_parameters"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5"),
        ({"quantization_config": {"quant_method": "gptq"}}, "gptq"),
        ({"hidden_size": None}, "hidden_size"),
        ({"num_attention_heads": 0}, "num_attention_heads"),
        ({"num_key_value_heads": 3}, "num_kv_heads 3"),
        ({"head_dim": 7}, "head_dim"),
        ({"model_type": ["llama"]}, "model_type"),
        ({"quantization_config": "awq"}, "quantization_config is 'awq'"),
        ({"num_hidden_layers": 2**31}, "num_hidden_layers"),
        ({"num_hidden_layers": 10**6}, "num_layers is 1000000"),
        ({"vocab_size": 10**9}, "vocab_size is 1000000000"),
        ({"head_dim": 10**8}, "num_heads 4 times head_dim"),
        ({"head_dim": 8.0}, "head_dim is 8.0"),
        ({"vocab_size": True}, "vocab_size is True"),
        ({"max_position_embeddings": "2048"}, "max_position_embeddings is '2048'"),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps is nan"),
        ({"rope_theta": -1}, "rope_theta is -1"),
        ({"rope_parameters": [1]}, "rope_parameters"),
        ({"rope_scaling": {"rope_type": "linear", "factor": "2"}}, r"rope_scaling\.factor is '2'"),
        ({"rope_scaling": {"rope_type": "llama3", **LLAMA3, "low_freq_factor": 4.0}}, "below high_freq_factor"),
        ({"tie_word_embeddings": "false"}, "tie_word_embeddings is 'false'"),
        ({"attention_bias": [0]}, "attention_bias"),
        ({"model_type": "mistral", "sliding_window": "4096"}, "sliding_window is '4096'"),
        ({"model_type": "qwen2", "use_sliding_window": True, "max_window_layers": None}, "max_window_layers is None"),
        ({"model_type": "qwen2", "use_sliding_window": True, "layer_types": "full"}, "layer_types is 'full'"),
    ],
)
def test_what_the_decoder_cannot_do_is_refused(tmp_path: Path, fields: dict[str, Any], named: str) -> None:
    with pytest.raises(CheckpointError, match=named) as caught:
        read(tmp_path, "llama", **{"num_key_value_heads": 2, **fields})
    message = str(caught.value)
    assert "config.json" in message and "\n" not in message
    assert "use another model" in message or "mend or fetch it" in message
