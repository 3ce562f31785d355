"""Log-likelihoods of all responses under a frozen model: made once, kept on disk under all that they depend on."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path
from typing import Any

import jax
import numpy as np

from tisdpo_jax.artifacts import Run, Stage, Stored, key_of, load_array, save_array
from tisdpo_jax.checkpoint import quarantine
from tisdpo_jax.errors import CheckpointError, DamagedError
from tisdpo_jax.estimators import Read
from tisdpo_jax.roles import Frozen, Role, bind
from tisdpo_jax.stages.frozen import Models, frozen_of, needed
from tisdpo_jax.stages.keys import known_key, whole_key
from tisdpo_jax.stages.pairs import Splits
from tisdpo_jax.stages.passes import check_finite, passing, scorer
from tisdpo_jax.stages.session import Session
from tisdpo_jax.training import collect, one_pass

log = logging.getLogger(__name__)

REFERENCE_LOGPS = Read("reference")


@dataclasses.dataclass(frozen=True)
class CachedScores:
    """What is read of a frozen model for all pairs of a split, `[n, 2, N]` float32 on disk; see `Read`."""

    read: Read
    role: Role
    split: str
    models: Models
    pairs: Stage
    place: str = ""  # below the run directory

    @property
    def name(self) -> str:
        return f"{self.place} scores {self.split}-{self._what}".strip()

    @property
    def _what(self) -> str:
        return self.read.role if self.read.kind == "logps" else f"{self.read.role}-{self.read.kind}"

    @property
    def inputs(self) -> tuple[Stage, ...]:
        return (self.pairs, *(stage for *_, stage in needed(self.models, self.role)))

    def key(self, run: Run) -> dict[str, Any]:
        return known_key(run, self.role, self.pairs, self.split)

    def stored(self, context: Session) -> Stored | None:
        path = self.path(context)
        try:
            return Stored(path, key_of(path)) if path.exists() else None
        except DamagedError:
            return None  # set aside, and made again

    def path(self, session: Session) -> Path:
        return score_path(session.run_dir / self.place, self.split, self._what)

    def make(self, run: Run) -> np.ndarray:
        """What is on disk, else made now. A file that is damaged is set aside, and made again.

        Raises: CheckpointError when the file on disk was made from something else; it names what differs. DataError
          when a score is not finite; nothing is kept then.
        """
        session, pairs = run.context, run(self.pairs)
        frozen = frozen_of(run, self.models, self.role)
        path, key = self.path(session), whole_key(run, self.role, frozen, self.pairs, self.split)
        if path.exists():
            try:
                scores = load_array(path, key)
                log.info("scores read from %s", path)
                return scores
            except DamagedError as error:
                if jax.process_count() > 1:  # a person decides
                    raise CheckpointError(f"{error}; delete it to make it again") from error
                log.warning("scores set aside, and made again: %s", error)
                quarantine(path)
        scores = self.compute(session, pairs, frozen)
        if jax.process_index() == 0:
            save_array(path, scores, key)
        return scores

    def compute(self, session: Session, pairs: Splits, frozen: Frozen) -> np.ndarray:
        """The scores, made now."""
        config, label = session.config, f"scores {self._what} ({self.split})"
        rows, batches = passing(session, pairs.split(self.split), pairs.elements, self.role.view)
        variables = bind(self.role, None, frozen)
        step = scorer(session.model, self.role.view, config.model.head_chunk, self.read.kind)
        watched: Any = {"label": label, "interrupt": session.interrupt, "shown": config.logging.progress}
        everything = one_pass(rows, batches, session.mesh, **watched)
        scores: np.ndarray = collect(lambda batch: step(variables, batch), everything, len(rows.encoded))
        check_finite(label, scores, rows.encoded)
        return scores


def score_path(directory: Path, split: str, what: str) -> Path:
    return directory / "scores" / f"{split}-{what}.safetensors"
