"""The pairs of a run as a stage: records as tokens, and the rows and batches that hold them."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from tisdpo_jax import partitioning
from tisdpo_jax.artifacts import Run, Stage, Unkept
from tisdpo_jax.config import Experiment
from tisdpo_jax.data import (
    Batches,
    EncodedSet,
    Layout,
    PairSet,
    apply_policy,
    balanced_batches,
    fit,
    read_pairs,
    split_by_prompt,
)
from tisdpo_jax.errors import ConfigError, DataError
from tisdpo_jax.models import TransformerConfig
from tisdpo_jax.stages.session import Session
from tisdpo_jax.stages.text import Text

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, eq=False)
class Pairs:
    """Pairs to train on, and held-out ones, as tokens; in arrays of one width N, in every split and stage."""

    train: EncodedSet
    eval: EncodedSet | None = None
    width: int = 0  # N; 0: what the longest response needs

    @property
    def elements(self) -> int:
        return self.width or max(encoded.elements() for encoded in (self.train, self.eval) if encoded is not None)

    def split(self, name: str) -> EncodedSet:
        encoded = self.train if name == "train" else self.eval
        if encoded is None:
            raise ConfigError("there are no held-out pairs; set data.eval or data.eval_fraction")
        return encoded

    def splits(self) -> tuple[str, ...]:
        return ("train",) if self.eval is None else ("train", "eval")

    @staticmethod
    def measured(encoded: EncodedSet) -> Pairs:
        """These held out, in arrays as wide as they need: so that sums do not depend on others."""
        return Pairs(EncodedSet((), (), "none"), encoded, encoded.elements())


@dataclasses.dataclass(frozen=True)
class Records(Unkept):
    """What `data.train` and `data.eval` name. Its value is `Pairs`."""

    name: str = "records"
    inputs: tuple[Stage, ...] = ()

    def make(self, run: Run) -> Pairs:
        session: Session = run.context
        config, transformer = session.config, session.model.config
        warn_of_limit(config, transformer, session.model_path)
        pairs = Pairs(*open_data(config, session.text))
        for split in pairs.splits():
            warn_of_pairs(pairs.split(split), transformer, session.model_path)
        counts = (len(pairs.train), len(pairs.eval or ()), pairs.elements)
        log.info("pairs: %d for training, %d held out; responses of up to %d tokens", *counts)
        return pairs


def open_data(config: Experiment, text: Text) -> tuple[EncodedSet, EncodedSet | None]:
    """Training and held-out pairs as tokens; every record that cannot be used is named, or stops the run."""
    data, subset = config.data, config.evaluation.subset

    def encode(records: PairSet) -> EncodedSet:
        encoded = text.pairs(records)
        if (encoded.invalid or encoded.unread) and jax.process_index() == 0:
            log.warning("%s", encoded.summary())
            for invalid_record in encoded.invalid:
                log.warning("  %s", invalid_record)
        usable = apply_policy(encoded, data.on_error, data.max_invalid)
        if not usable.groups:
            raise DataError(f"{usable.source}: none of its records can be used; `tisdpo inspect` names the reasons")
        return usable

    records = read_pairs(data.train, format=data.format, limit=data.limit, group_field=subset)
    held_out = None
    if data.eval:
        held_out = read_pairs(data.eval, format=data.format, limit=data.eval_limit, group_field=subset)
    elif data.eval_fraction:
        records, held_out = split_by_prompt(records, data.eval_fraction, data.seed)
        if data.eval_limit:
            held_out = dataclasses.replace(held_out, pairs=held_out.pairs[: data.eval_limit])
    return encode(records), None if held_out is None else encode(held_out)


def layout(
    session: Session, encoded: EncodedSet, batches: Iterable[np.ndarray], elements: int, **options: Any
) -> Layout:
    """One shape for `batches` of these pairs; `options` are those of `data.fit`: parts, sides, views."""
    splash, packed = session.model.compute.attention == "splash", session.config.data.packing == "shared"
    transformer = session.model.config
    return fit(
        encoded,
        batches,
        elements=elements,
        shards=partitioning.batch_shards(session.mesh),
        packed=packed,
        copies=splash and packed,
        multiple=128 if splash else 8,
        width=transformer.hidden_size,
        head=transformer.vocab_size / (12 * transformer.num_layers * transformer.hidden_size),
        **options,
    )


def passing(
    session: Session, encoded: EncodedSet, elements: int, *views: str, sides: tuple[int, ...] = (0, 1)
) -> tuple[Batches, list[np.ndarray]]:
    """All of these pairs once, in batches for evaluation and scoring: the pairs, and the batches' indices."""
    size = partitioning.places(session.config.evaluation.batch_size, session.mesh)
    batches = balanced_batches(encoded.lengths(views[0]), size)
    return Batches(encoded, layout(session, encoded, batches, elements, sides=sides, views=views)), batches


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
    """Warns of rows of tokens, of `lengths`, that are longer than the model has positions; `field` would limit them.

    Rotary models compute such rows, but what comes of it nobody has taught them.
    """
    beyond = int((np.asarray(lengths, np.int64) > transformer.positions).sum())
    if beyond and jax.process_index() == 0:
        log.warning(
            "%d of %d %s are longer than the %d positions of %s, the longest %d tokens; %s limits them",
            *(beyond, len(lengths), what, transformer.positions, path, max(lengths), field),
        )
