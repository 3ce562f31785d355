"""Rows longer than a model has positions: rotary models compute them, but what comes of it nobody has taught them."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np

from tisdpo_jax.config import Experiment
from tisdpo_jax.data import EncodedSet
from tisdpo_jax.models import TransformerConfig

log = logging.getLogger(__name__)


def warn_of_limit(config: Experiment, transformer: TransformerConfig, path: str | Path) -> None:
    """Warns where `data.max_length` lets rows be longer than the model has positions."""
    limit = config.data.max_length
    if limit > transformer.positions and jax.process_index() == 0:
        log.warning(
            "data.max_length %d is above the %d positions of %s (max_position_embeddings, with its rope scaling): a "
            "model has not learned what stands beyond them; set data.max_length to %d or less, or name a model of "
            "longer context",
            *(limit, transformer.positions, path, transformer.positions),
        )


def warn_of_pairs(encoded: EncodedSet, transformer: TransformerConfig, path: str | Path) -> None:
    """Warns of pairs that have a row, in any view, which is longer than the model has positions."""
    lengths = [max(map(len, one.prompts.values())) + max(map(len, one.responses)) for one in encoded.groups]
    warn_of_rows(lengths, transformer, path, f"pairs of {encoded.source}", "data.max_length")


def warn_of_rows(
    lengths: Sequence[int], transformer: TransformerConfig, path: str | Path, what: str, field: str
) -> None:
    """Warns of rows of tokens, of `lengths`, that are longer than the model has positions; `field` would limit them."""
    beyond = int((np.asarray(lengths, np.int64) > transformer.positions).sum())
    if beyond and jax.process_index() == 0:
        log.warning(
            "%d of %d %s are longer than the %d positions of %s, the longest %d tokens; %s limits them",
            *(beyond, len(lengths), what, transformer.positions, path, max(lengths), field),
        )
