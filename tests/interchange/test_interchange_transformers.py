"""Against `transformers` in PyTorch: logits of imported and of exported models, and greedy text, are the same."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_decoders import FAMILIES, random_params

from tisdpo_jax.errors import CheckpointError
from tisdpo_jax.interchange import load_params, read_config, save_huggingface
from tisdpo_jax.models import Model, TransformerConfig, abstract_params, logits
from tisdpo_jax.partitioning import make_mesh, param_shardings
from tisdpo_jax.types import Params

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

TOKENS = np.random.default_rng(7).integers(0, 96, (2, 56))
SIZES: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "initializer_range": 0.3,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 16}
DYNAMIC = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}
GEMMA = {"head_dim": 8, "query_pre_attn_scalar": 16, "sliding_window": 5, "rms_norm_eps": 1e-6}
# as `transformers` describes them, so that nothing of ours is between the reference and its config
THEIRS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama2": ("LlamaConfig", {"num_key_value_heads": 4}),
    "llama3": ("LlamaConfig", {"rope_parameters": LLAMA3}),
    "llama-linear": ("LlamaConfig", {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}}),
    "llama-bias": ("LlamaConfig", {"attention_bias": True, "mlp_bias": True}),
    "mistral": (
        "MistralConfig",
        {"sliding_window": 5, "head_dim": 16, "rope_parameters": {"rope_type": "default", "rope_theta": 1e6}},
    ),
    "mistral-full": ("MistralConfig", {"sliding_window": None}),
    "qwen2": ("Qwen2Config", {"rms_norm_eps": 1e-6, "use_sliding_window": False, "sliding_window": 4}),
    "qwen2-window": ("Qwen2Config", {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 0}),
    "qwen3": ("Qwen3Config", {"head_dim": 16, "tie_word_embeddings": True}),
    "qwen3-bias": ("Qwen3Config", {"head_dim": 16, "attention_bias": True}),
    "llama-yarn": ("LlamaConfig", {"rope_parameters": YARN}),
    "llama-dynamic": ("LlamaConfig", {"rope_parameters": DYNAMIC, "max_position_embeddings": 16}),
    "qwen3-mixed": (
        "Qwen3Config",
        {"head_dim": 16, "use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1},
    ),
    "gemma2": ("Gemma2Config", {**GEMMA, "final_logit_softcapping": 2.0, "attn_logit_softcapping": 1.5}),
    "gemma3": (
        "Gemma3TextConfig",
        {
            **GEMMA,
            "num_hidden_layers": 5,
            "sliding_window_pattern": 3,
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
                "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
            },
        },
    ),
    "smollm2": (
        "LlamaConfig",
        {"hidden_size": 24, "num_attention_heads": 3, "num_key_value_heads": 3, "tie_word_embeddings": True},
    ),
}


@pytest.fixture(params=THEIRS, scope="module")
def reference(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    """A random model of `transformers`, every parameter of it, and the directory that it was saved to."""
    return make_reference(request.param, tmp_path_factory.mktemp(request.param))


def make_reference(name: str, directory: Path, **save: Any) -> tuple[Any, Path]:
    kind, fields = THEIRS[name]
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(getattr(transformers, kind)(**{**SIZES, **fields}))
    with torch.no_grad():  # their initialisation leaves norms at 1 and biases at 0
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    model.to(save.pop("dtype", torch.float32)).save_pretrained(directory, **save)
    return load_theirs(directory), directory  # not `model`: `.to` has rounded its rotary frequencies too


def theirs(model: Any, tokens: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return np.asarray(model(torch.from_numpy(tokens)).logits)


def ours(config: TransformerConfig, params: Params, tokens: np.ndarray) -> np.ndarray:
    return np.asarray(jax.jit(logits, static_argnums=0)(Model(config), {"params": params}, jnp.asarray(tokens)))


def load_theirs(directory: Path) -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()


def test_imported_and_exported_logits(reference: tuple[Any, Path], tmp_path: Path) -> None:
    model, directory = reference
    config, expected = read_config(directory), theirs(model, TOKENS)
    assert expected.std() > 0.3  # a model that says something
    params = load_params(directory, config, dtype="float32")
    np.testing.assert_allclose(ours(config, params, TOKENS), expected, atol=1e-4, rtol=0)
    save_huggingface(tmp_path / "out", params, config, max_shard_bytes=30_000)
    np.testing.assert_allclose(theirs(load_theirs(tmp_path / "out"), TOKENS), expected, atol=1e-4, rtol=0)
    assert read_config(tmp_path / "out") == config


def test_our_own_models_in_transformers(family: TransformerConfig, tmp_path: Path) -> None:
    params = random_params(family)
    save_huggingface(tmp_path / "out", params, family)
    model, report = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "out", dtype=torch.float32, output_loading_info=True
    )
    assert not any(report.get(kind) for kind in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs"))
    np.testing.assert_allclose(theirs(model.eval(), TOKENS), ours(family, params, TOKENS), atol=1e-4, rtol=0)


def greedy(config: TransformerConfig, params: Params, prompt: np.ndarray, count: int) -> np.ndarray:
    """Argmax after argmax, without a cache: rows are padded behind, which causal attention does not see."""
    step = jax.jit(logits, static_argnums=0)
    rows = np.pad(prompt, ((0, 0), (0, count)))
    for position in range(prompt.shape[1], rows.shape[1]):
        rows[:, position] = np.asarray(step(Model(config), {"params": params}, rows)[:, position - 1].argmax(-1))
    return rows


@pytest.mark.parametrize("name", ["llama3", "gemma3"])
def test_greedy_text(name: str, tmp_path: Path) -> None:
    model, directory = make_reference(name, tmp_path)
    prompt = TOKENS[:, :6]
    config = read_config(directory)
    expected = model.generate(
        torch.from_numpy(prompt),
        max_new_tokens=50,
        min_new_tokens=50,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
    )
    got = greedy(config, load_params(directory, config, dtype="float32"), prompt, 50)
    np.testing.assert_array_equal(got, np.asarray(expected))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("max_shard_size", ["1GB", "20KB"])
def test_their_files_in_every_dtype_and_on_any_mesh(tmp_path: Path, dtype: str, max_shard_size: str) -> None:
    model, directory = make_reference("llama3", tmp_path, dtype=getattr(torch, dtype), max_shard_size=max_shard_size)
    assert (directory / "model.safetensors").exists() == (max_shard_size == "1GB")
    config = read_config(directory)
    shardings = param_shardings(abstract_params(config), make_mesh(2, 2, 2))
    params = load_params(directory, config, dtype=dtype, shardings=shardings)
    expected = model.state_dict()["model.layers.1.mlp.down_proj.weight"].numpy().T
    np.testing.assert_array_equal(np.asarray(params["layers"]["mlp"]["down"]["kernel"][1], np.float32), expected)
    params = jax.tree.map(lambda x: np.asarray(x, np.float32), params)
    np.testing.assert_allclose(ours(config, params, TOKENS), theirs(model, TOKENS), atol=1e-4, rtol=0)


def test_rope_in_both_spellings_means_the_same_to_them(tmp_path: Path) -> None:
    """A config.json of transformers 4 has only `rope_scaling`, one of 5 only `rope_parameters`; ours has both."""
    for name in ("llama3", "llama-linear", "mistral"):
        config = FAMILIES[name]
        save_huggingface(tmp_path / name, random_params(config), config)
        file = tmp_path / name / "config.json"
        raw = json.loads(file.read_text())
        seen = []
        for left_out in ((), ("rope_parameters",), ("rope_scaling", "rope_theta")):
            file.write_text(json.dumps({key: value for key, value in raw.items() if key not in left_out}))
            assert read_config(tmp_path / name) == config
            seen.append(transformers.AutoConfig.from_pretrained(tmp_path / name).rope_parameters)
        assert seen[0] == seen[1] == seen[2]


def test_bfloat16_export_is_theirs(tmp_path: Path) -> None:
    config = FAMILIES["llama3"]
    params = random_params(config)
    save_huggingface(tmp_path / "out", params, config, dtype="bfloat16")
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="auto")
    assert model.dtype == torch.bfloat16
    expected = np.asarray(params["layers"]["mlp"]["up"]["kernel"][2].astype(jnp.bfloat16), np.float32).T
    np.testing.assert_array_equal(model.model.layers[2].mlp.up_proj.weight.detach().float().numpy(), expected)


def test_what_no_family_has_is_refused(tmp_path: Path) -> None:
    config = dataclasses.replace(FAMILIES["llama-bias"], sliding_window=4)
    with pytest.raises(CheckpointError, match="no family of transformers has"):
        save_huggingface(tmp_path / "out", random_params(config), config)
    config = dataclasses.replace(FAMILIES["llama-dynamic"], max_positions=64)
    with pytest.raises(CheckpointError, match="dynamic from 16 positions on, but max_positions is 64"):
        save_huggingface(tmp_path / "out", random_params(config), config)
