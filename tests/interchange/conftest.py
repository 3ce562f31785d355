"""Fixtures of the interchange tests. What they are made of is in `tiny_decoders`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from tiny_decoders import BASE, FAMILIES, random_params

from tisdpo_jax.interchange import save_huggingface
from tisdpo_jax.models import TransformerConfig
from tisdpo_jax.types import Params


@pytest.fixture(params=FAMILIES, scope="session")
def family(request: pytest.FixtureRequest) -> TransformerConfig:
    return FAMILIES[request.param]


@pytest.fixture
def checkpoint(tmp_path: Path) -> Callable[..., tuple[Path, Params]]:
    """Writes a checkpoint of random parameters; returns its directory and the parameters."""

    def make(config: TransformerConfig = BASE, **options: object) -> tuple[Path, Params]:
        params = random_params(config)
        save_huggingface(tmp_path / "model", params, config, **options)  # type: ignore[arg-type]  # options of several types
        return tmp_path / "model", params

    return make
