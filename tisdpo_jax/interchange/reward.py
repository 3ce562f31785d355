"""Reward models in Hugging Face form: a decoder whose head is one row, `score.weight`, in place of a vocabulary."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from tisdpo_jax.errors import CheckpointError, MissingKeyError, ShapeMismatchError
from tisdpo_jax.interchange._assemble import assemble, layout, whole_matrix
from tisdpo_jax.interchange._fields import read_json
from tisdpo_jax.interchange._safetensors import open_directory
from tisdpo_jax.interchange.fetch import local_model
from tisdpo_jax.interchange.huggingface import CONFIG, read_huggingface_config
from tisdpo_jax.interchange.load import HEAD, rotary_tables
from tisdpo_jax.models import TransformerConfig, abstract_params
from tisdpo_jax.types import Params

SCORE = "score.weight"


def is_reward_model(path: str | os.PathLike[str]) -> bool:
    """Whether a directory says that it holds a model for sequence classification."""
    file = local_model(path) / CONFIG
    return file.is_file() and any("SequenceClassification" in name for name in _architectures(file))


def load_reward_model(
    path: str | os.PathLike[str], *, dtype: Any, shardings: Any = None
) -> tuple[TransformerConfig, Params, jax.Array]:
    """(decoder, its parameters without a head, the score head `[D]` in float32).

    Args:
      dtype: of the parameters.
      shardings: from the abstract parameters to their shardings; None puts all on the default device.

    Raises: CheckpointError for other kinds of model, or more than one label; its subclasses where tensors do not fit.
    """
    path = local_model(path)
    if not is_reward_model(path):
        names = ", ".join(_architectures(path / CONFIG)) or "none"
        raise CheckpointError(
            f"{path / CONFIG}: architectures is {names}; a reward model is a ...ForSequenceClassification"
        )
    # `tied_head` says that there is no head of its own; nothing here reads one
    config = dataclasses.replace(read_huggingface_config(path), tied_head=True)
    source = open_directory(path)
    if SCORE not in source.shapes:
        raise MissingKeyError(f"{path}: tensor {SCORE!r} is missing; it is the head of a reward model: fetch it again")
    if source.shapes[SCORE] != (1, config.hidden_size):
        raise ShapeMismatchError(
            f"{source.files[SCORE]}: tensor {SCORE!r} has shape {list(source.shapes[SCORE])}; a reward model has one "
            f"label, [1, {config.hidden_size}]"
        )
    placed = shardings(abstract_params(config)) if shardings is not None else None
    params = assemble(layout(config), source, placed, dtype, ignored={SCORE, HEAD} | rotary_tables(source))
    return config, params, jnp.asarray(whole_matrix(source, SCORE)[0])


def _architectures(file: Path) -> list[str]:
    names = read_json(file).get("architectures")
    return [str(name) for name in names] if isinstance(names, list) else []
