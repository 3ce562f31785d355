"""GGUF files: every tensor in its place, whatever it is quantised as, and the config that the file means."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_decoders import BASE, FAMILIES, assert_trees_equal, random_params

from tisdpo_jax.errors import CheckpointError, MissingKeyError, ShapeMismatchError, UnexpectedKeyError
from tisdpo_jax.interchange import load_params, read_config
from tisdpo_jax.interchange.gguf import ROPE_FACTORS, open_gguf
from tisdpo_jax.interchange.gguf.model import llama3_factors
from tisdpo_jax.models import (
    Model,
    RopeConfig,
    TransformerConfig,
    abstract_params,
    flatten,
    logits,
    rope_frequencies,
)
from tisdpo_jax.partitioning import make_mesh, param_shardings

gguf = pytest.importorskip("gguf")
from tiny_gguf import write_gguf  # noqa: E402 - needs gguf

# widths that blocks of 256 values divide
WIDE = dataclasses.replace(BASE, hidden_size=256, intermediate_size=512, num_layers=2, head_dim=64, vocab_size=64)
LLAMA31 = RopeConfig(500_000.0, "llama3", 8.0, 1.0, 4.0, 8192)
SAME = {  # architecture and config of what a GGUF file can say
    "llama2": ("llama", FAMILIES["llama2"]),
    "llama-bias": ("llama", FAMILIES["llama-bias"]),
    "smollm2": ("llama", FAMILIES["smollm2"]),
    "wide-heads": ("llama", dataclasses.replace(BASE, head_dim=16)),
    "qwen2": ("qwen2", FAMILIES["qwen2"]),
    "qwen3": ("qwen3", FAMILIES["qwen3"]),
    "gemma2": ("gemma2", dataclasses.replace(FAMILIES["gemma2"], query_pre_attn_scalar=8.0)),
    "gemma3": (
        "gemma3",
        dataclasses.replace(
            FAMILIES["gemma3"], query_pre_attn_scalar=8.0, num_layers=8, pattern=("sliding",) * 5 + ("full",)
        ),
    ),
}
FIELDS: dict[str, dict[str, Any]] = {
    "gemma2": {
        "gemma2.attention.sliding_window": 5,
        "gemma2.attn_logit_softcapping": 1.5,
        "gemma2.final_logit_softcapping": 2.0,
    },
    "gemma3": {
        "gemma3.attention.sliding_window": 5,
        "gemma3.rope.scaling.type": "linear",
        "gemma3.rope.scaling.factor": 8.0,
    },
}


@pytest.mark.parametrize("name", SAME)
def test_float32_files_are_read_bit_for_bit(tmp_path: Path, name: str) -> None:
    architecture, config = SAME[name]
    params = random_params(config)
    write_gguf(tmp_path / "model.gguf", params, config, architecture=architecture, fields=FIELDS.get(name))
    assert read_config(tmp_path / "model.gguf") == config
    loaded = load_params(tmp_path / "model.gguf", config, dtype="float32")
    if config.norm_offset:  # what is stored is 1 + scale, which rounds
        for path, leaf in flatten(loaded).items():
            np.testing.assert_allclose(leaf, flatten(params)[path], atol=2e-7, err_msg=path)
    else:
        assert_trees_equal(loaded, params)


KINDS = ["F16", "BF16", "Q8_0", "Q4_1", "Q4_K"]  # numbers, and blocks of 32 and of 256


@pytest.mark.parametrize("kind", KINDS)
def test_every_quantisation_on_one_device_and_many(tmp_path: Path, kind: str) -> None:
    """Against each tensor dequantised whole; rows of q and k put back by the definition of their order."""
    params = random_params(WIDE)
    matrices = write_gguf(tmp_path / "model.gguf", params, WIDE, kind=kind)
    whole = load_params(tmp_path / "model.gguf", WIDE, dtype="float32")
    shardings = param_shardings(abstract_params(WIDE), make_mesh(2, 2, 2))
    assert_trees_equal(load_params(tmp_path / "model.gguf", WIDE, dtype="float32", shardings=shardings), whole)

    def dequantised(name: str) -> np.ndarray:
        return gguf.quants.dequantize(matrices[name], gguf.GGMLQuantizationType[kind])

    up = dequantised("blk.1.ffn_up.weight")
    np.testing.assert_array_equal(np.asarray(whole["layers"]["mlp"]["up"]["kernel"][1]), up.T)
    q = dequantised("blk.1.attn_q.weight")
    halves = np.concatenate([np.concatenate((head[0::2], head[1::2])) for head in np.split(q, WIDE.num_heads)])
    np.testing.assert_array_equal(np.asarray(whole["layers"]["attention"]["q"]["kernel"][1]), halves.T)
    np.testing.assert_array_equal(np.asarray(whole["embed"]["embedding"]), dequantised("token_embd.weight"))
    if not kind.endswith("_K"):  # random blocks there
        step = {"F16": 1e-3, "BF16": 8e-3, "Q8_0": 0.02, "Q4_1": 0.25}[kind]
        for path, got in flatten(whole).items():
            np.testing.assert_allclose(np.asarray(got), np.asarray(flatten(params)[path]), atol=step, err_msg=path)


def test_only_the_wanted_rows_are_dequantised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_gguf(tmp_path / "model.gguf", random_params(WIDE), WIDE, kind="Q8_0")
    rows = []
    real = gguf.quants.dequantize
    monkeypatch.setattr(gguf.quants, "dequantize", lambda data, kind: rows.append(len(data)) or real(data, kind))
    source, _ = open_gguf(tmp_path / "model.gguf")
    rows.clear()
    part = source.read("blk.0.ffn_up.weight", (np.asarray([7, 3]), slice(0, 32)))
    assert part.shape == (2, 32) and rows == [2]


def test_rope_factors_of_llama_31(tmp_path: Path) -> None:
    config = dataclasses.replace(BASE, head_dim=64, rope=LLAMA31)
    factors = {ROPE_FACTORS: llama3_factors(LLAMA31, 64)}
    path = tmp_path / "model.gguf"
    write_gguf(path, random_params(config), config, extra_tensors=factors)
    assert read_config(path) == config
    assert_trees_equal(load_params(path, config, dtype="float32"), random_params(config))

    llama32 = dataclasses.replace(config, rope=dataclasses.replace(LLAMA31, factor=32.0))
    write_gguf(path, random_params(config), config, extra_tensors={ROPE_FACTORS: llama3_factors(llama32.rope, 64)})
    assert read_config(path) == llama32

    write_gguf(path, random_params(config), config, extra_tensors={ROPE_FACTORS: np.linspace(1, 8, 32)})
    with pytest.raises(CheckpointError, match=r"rope_freqs\.weight"):
        read_config(path)


def test_rope_factors_divide_as_the_decoder_does() -> None:
    for rope in (LLAMA31, RopeConfig(10_000.0, "llama3", 32.0, 1.0, 4.0, 64)):
        plain = np.asarray(rope_frequencies(RopeConfig(rope.theta), 64))
        np.testing.assert_allclose(plain / llama3_factors(rope, 64), np.asarray(rope_frequencies(rope, 64)), rtol=1e-5)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        (
            {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 4.0},
            {"rope": RopeConfig(10_000.0, "linear", 4.0)},
        ),
        ({"llama.rope.scaling.type": "none"}, {}),
        ({"llama.attention.sliding_window": 16}, {"sliding_window": 16}),
        ({"llama.attention.sliding_window": 0}, {}),
        ({"llama.expert_count": 0}, {}),
    ],
)
def test_config_fields(tmp_path: Path, fields: dict[str, Any], expected: dict[str, Any]) -> None:
    write_gguf(tmp_path / "model.gguf", random_params(BASE), BASE, fields=fields)
    assert read_config(tmp_path / "model.gguf") == dataclasses.replace(BASE, **expected)


@pytest.mark.parametrize(
    ("fields", "architecture", "named"),
    [
        ({"llama.rope.scaling.type": "yarn"}, "llama", "yarn"),
        ({"llama.expert_count": 8}, "llama", "expert_count"),
        ({"split.count": 2}, "llama", "one of 2 parts"),
        ({}, "gemma", "general.architecture"),
    ],
)
def test_what_the_decoder_cannot_do_is_refused(
    tmp_path: Path, fields: dict[str, Any], architecture: str, named: str
) -> None:
    write_gguf(tmp_path / "model.gguf", random_params(BASE), BASE, fields=fields, architecture=architecture)
    with pytest.raises(CheckpointError, match=named) as caught:
        read_config(tmp_path / "model.gguf")
    assert "model.gguf" in str(caught.value) and "\n" not in str(caught.value)


def load(path: Path, config: TransformerConfig) -> None:
    load_params(path, config, dtype="float32")


def test_tensors_that_do_not_fit(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    write_gguf(path, random_params(BASE), BASE)
    with pytest.raises(MissingKeyError, match=r"blk\.3\.attn_norm\.weight"):
        load(path, dataclasses.replace(BASE, num_layers=4))
    with pytest.raises(ShapeMismatchError, match=r"blk\.0\.ffn_gate\.weight.*\[48, 32\].*\[64, 32\]"):
        load(path, dataclasses.replace(BASE, intermediate_size=64))
    write_gguf(
        path, random_params(BASE), BASE, extra_tensors={"blk.0.ffn_gate_exps.weight": np.zeros((4, 32), np.float32)}
    )
    with pytest.raises(UnexpectedKeyError, match="ffn_gate_exps"):
        load(path, BASE)


@pytest.mark.parametrize("keep", [0, 3, 40, 2000, -1000])
def test_truncated_files(tmp_path: Path, keep: int) -> None:
    path = tmp_path / "model.gguf"
    write_gguf(path, random_params(BASE), BASE)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(CheckpointError, match="not a whole GGUF file") as caught:
        read_config(path)
    assert "fetch it again" in str(caught.value) and "\n" not in str(caught.value)


def test_quantisations_that_cannot_be_undone_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_gguf(tmp_path / "model.gguf", random_params(WIDE), WIDE, kind="Q8_0")
    monkeypatch.delitem(gguf.quants._type_traits, gguf.GGMLQuantizationType.Q8_0)
    with pytest.raises(CheckpointError, match="Q8_0, which the gguf package cannot dequantise"):
        load(tmp_path / "model.gguf", WIDE)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        *(
            ("smollm2", "F16"),
            ("qwen2", "F32"),
            ("qwen3", "F32"),
            ("wide", "Q6_K"),
            ("gemma2", "F32"),
            ("gemma3", "F32"),
        ),
    ],
)
def test_transformers_own_conversion_says_the_same(tmp_path: Path, name: str, kind: str) -> None:
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    architecture, config = SAME.get(name, ("llama", WIDE))
    if name == "qwen3":  # theirs takes every head for 128 wide
        config = dataclasses.replace(config, head_dim=128)
    fields = {f"{architecture}.attention.sliding_window": 5} if config.norm_offset else {}
    if (
        config.norm_offset
    ):  # theirs reads neither soft caps nor scalings, and knows of Gemma what the released ones have
        caps = {"attention_softcap": 50.0, "final_softcap": 30.0} if name == "gemma2" else {"rope": RopeConfig(1e6)}
        config = dataclasses.replace(config, head_dim=256, query_pre_attn_scalar=256.0, **caps)
    write_gguf(
        *(tmp_path / "model.gguf", random_params(config), config), architecture=architecture, kind=kind, fields=fields
    )
    model = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path, gguf_file="model.gguf", dtype=torch.float32
    ).eval()
    found = read_config(tmp_path / "model.gguf")
    assert found == config
    tokens = np.random.default_rng(0).integers(0, config.vocab_size, (2, 12))
    params = load_params(tmp_path / "model.gguf", config, dtype="float32")
    got = jax.jit(logits, static_argnums=0)(Model(config), {"params": params}, jnp.asarray(tokens))
    with torch.no_grad():
        expected = np.asarray(model(torch.from_numpy(tokens)).logits)
    np.testing.assert_allclose(np.asarray(got), expected, atol=1e-4, rtol=0)
