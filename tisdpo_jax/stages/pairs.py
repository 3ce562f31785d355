"""The pairs of a run as a stage: records as tokens."""

from __future__ import annotations

import dataclasses
import logging

import jax

from tisdpo_jax.artifacts import Run, Stage, Unkept
from tisdpo_jax.config import Experiment
from tisdpo_jax.data import (
    EncodedSet,
    PairSet,
    apply_policy,
    read_pairs,
    split_by_prompt,
)
from tisdpo_jax.errors import ConfigError, DataError
from tisdpo_jax.stages.encoder import Encoder
from tisdpo_jax.stages.positions import warn_of_limit, warn_of_pairs
from tisdpo_jax.stages.session import Session

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, eq=False)
class Splits:
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
    def measured(encoded: EncodedSet) -> Splits:
        """These held out, in arrays as wide as they need: so that sums do not depend on others."""
        return Splits(EncodedSet((), (), "none"), encoded, encoded.elements())


@dataclasses.dataclass(frozen=True)
class Records(Unkept):
    """What `data.train` and `data.eval` name. Its value is `Splits`."""

    name: str = "records"
    inputs: tuple[Stage, ...] = ()

    def make(self, run: Run) -> Splits:
        session: Session = run.context
        config, transformer = session.config, session.model.config
        warn_of_limit(config, transformer, session.model_path)
        pairs = Splits(*open_data(config, session.encoder))
        for split in pairs.splits():
            warn_of_pairs(pairs.split(split), transformer, session.model_path)
        counts = (len(pairs.train), len(pairs.eval or ()), pairs.elements)
        log.info("pairs: %d for training, %d held out; responses of up to %d tokens", *counts)
        return pairs


def open_data(config: Experiment, text: Encoder) -> tuple[EncodedSet, EncodedSet | None]:
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

    records = read_pairs(data.train, format=data.format, limit=data.limit or 0, group_field=subset or "")
    held_out = None
    if data.eval:
        held_out = read_pairs(data.eval, format=data.format, limit=data.eval_limit or 0, group_field=subset or "")
    elif data.eval_fraction:
        records, held_out = split_by_prompt(records, data.eval_fraction, data.seed)
        if data.eval_limit:
            held_out = dataclasses.replace(held_out, pairs=held_out.pairs[: data.eval_limit])
    return encode(records), None if held_out is None else encode(held_out)
