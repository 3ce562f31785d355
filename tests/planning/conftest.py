"""A tiny model and pairs on disk, made once."""

from __future__ import annotations

from pathlib import Path

import pytest

from tisdpo_jax.testing import write_pairs, write_tiny_model

PAIRS = 40


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    """Fields of a configuration that trains the tiny model on the pairs, on eight devices."""
    folder: Path = tmp_path_factory.mktemp("tiny")
    return {
        "model.path": write_tiny_model(folder / "model", max_positions=128),
        "data.train": write_pairs(folder / "pairs.jsonl", PAIRS),
        "model.dtype": "float32",
        "data.max_length": 48,
        "data.max_response": 24,
        "mesh.fsdp": 8,
        "contrast.training.batch_size": 8,
        "train.batch_size": 8,
        "evaluation.batch_size": 8,
        "logging.progress": False,
    }
