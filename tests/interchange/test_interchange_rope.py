"""Rotary scalings: what config.json says turns as far as transformers' own initialisation functions turn it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tisdpo_jax.interchange import read_config
from tisdpo_jax.models import RopeConfig, attention_factor, rope_frequencies

SIZES = {
    "model_type": "llama",
    "vocab_size": 96,
    "hidden_size": 128,
    "intermediate_size": 48,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "max_position_embeddings": 4096,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 1024}
SCALINGS: dict[str, dict[str, Any]] = {
    "linear": {"rope_type": "linear", "factor": 4.0},
    "dynamic": {"rope_type": "dynamic", "factor": 4.0},
    "llama3": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 1024,
    },
    "yarn": YARN,
    "yarn, attention factor": YARN | {"attention_factor": 1.5},
    "yarn, mscale": YARN | {"mscale": 1.0, "mscale_all_dim": 0.5},
    "yarn, other turns": YARN | {"beta_fast": 16.0, "beta_slow": 2.0},
    "yarn, not truncated": YARN | {"truncate": False},
    "yarn, smaller than it was": YARN | {"factor": 0.5},
}


@pytest.mark.parametrize("theta", [1e4, 5e5])
@pytest.mark.parametrize("name", SCALINGS)
def test_frequencies_are_those_of_transformers(tmp_path: Path, name: str, theta: float) -> None:
    pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    (tmp_path / "config.json").write_text(json.dumps({**SIZES, "rope_theta": theta, "rope_scaling": SCALINGS[name]}))
    ours, theirs = read_config(tmp_path), transformers.AutoConfig.from_pretrained(tmp_path)
    for length in (100, 4096, 9000):
        frequencies, factor = ROPE_INIT_FUNCTIONS[ours.rope.kind](theirs, "cpu", seq_len=length)
        np.testing.assert_allclose(rope_frequencies(ours.rope, 64, length), frequencies.numpy(), rtol=2e-5)
        assert attention_factor(ours.rope) == pytest.approx(factor, rel=1e-6)


def test_yarn_by_its_definition() -> None:
    """Fast dimensions stay, slow ones are divided by the factor, and a ramp leads from one to the other."""
    rope = RopeConfig(1e4, "yarn", 4.0, original_max_positions=1024)
    ratio = np.asarray(rope_frequencies(rope, 64) / rope_frequencies(RopeConfig(), 64))
    turns = 1024 * 1e4 ** (-np.arange(32) / 32) / (2 * np.pi)
    np.testing.assert_allclose(ratio[turns > 48], 1.0, rtol=1e-6)
    np.testing.assert_allclose(ratio[turns < 0.75], 0.25, rtol=1e-6)
    ramp = ratio[(turns < 32) & (turns > 1)]
    assert (np.diff(ramp) < 0).all() and len(ramp) > 5
    np.testing.assert_allclose(np.diff(ramp), np.diff(ramp)[0], rtol=1e-4)
    assert attention_factor(rope) == pytest.approx(0.1 * np.log(4) + 1)


def test_linear_and_llama3_by_their_definitions() -> None:
    plain = np.asarray(rope_frequencies(RopeConfig(theta=1e4), 64))
    np.testing.assert_allclose(rope_frequencies(RopeConfig(1e4, "linear", factor=4.0), 64), plain / 4, rtol=1e-6)
    scaled = np.asarray(rope_frequencies(RopeConfig(1e4, "llama3", 8.0, original_max_positions=1024), 64))
    smooth = np.clip((1024 * plain / (2 * np.pi) - 1) / (4 - 1), 0, 1)
    assert {0.0, 1.0} < set(smooth)
    np.testing.assert_allclose(scaled, (1 - smooth) * plain / 8 + smooth * plain, rtol=1e-5)


def test_dynamic_is_plain_up_to_its_positions_and_slower_beyond() -> None:
    rope, plain = RopeConfig(kind="dynamic", factor=2.0, original_max_positions=64), RopeConfig()
    lengths = np.asarray([3, 64, 128])
    frequencies = np.asarray(rope_frequencies(rope, 16, lengths))
    np.testing.assert_allclose(frequencies[:2], np.asarray([rope_frequencies(plain, 16)] * 2), rtol=1e-6)
    grown = 1e4 * 3 ** (16 / 14)  # factor * 128 / 64 - (factor - 1)
    np.testing.assert_allclose(frequencies[2], rope_frequencies(RopeConfig(grown), 16), rtol=1e-5)
