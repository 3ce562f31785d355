"""Last hidden states of a frozen model at all response tokens: on disk, in place of the model in the step.

With the head alone they give the exact KL. 2 or 4 bytes times the model's width for each token (`model.dtype`).
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
from pathlib import Path
from typing import Any

import jax
import numpy as np

from tisdpo_jax import distributed, partitioning
from tisdpo_jax.artifacts import Run, Stage, Stored, check_same_key, replacing, sha256, write_text
from tisdpo_jax.data import States, create, open_states
from tisdpo_jax.errors import CheckpointError, DataError
from tisdpo_jax.roles import Frozen, Role, bind
from tisdpo_jax.stages.frozen import Models, frozen_of, needed
from tisdpo_jax.stages.keys import known_key, whole_key
from tisdpo_jax.stages.pairs import Splits
from tisdpo_jax.stages.passes import hidden_reader, passing
from tisdpo_jax.stages.session import Session
from tisdpo_jax.training import one_pass

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class HiddenStates:
    """Last hidden states at all response tokens of a split. Its value is `States`, a memory map."""

    role: Role
    split: str
    models: Models
    pairs: Stage
    place: str = ""

    @property
    def name(self) -> str:
        return f"{self.place} hidden states {self.split}-reference".strip()

    @property
    def inputs(self) -> tuple[Stage, ...]:
        return (self.pairs, *(stage for *_, stage in needed(self.models, self.role)))

    def key(self, run: Run) -> dict[str, Any]:
        return known_key(run, self.role, self.pairs, self.split)

    def stored(self, context: Session) -> Stored | None:
        path, label = self.paths(context)
        try:
            return Stored(path, json.loads(label.read_text(encoding="utf-8"))["key"]) if label.exists() else None
        except (OSError, KeyError, ValueError):
            return None

    def paths(self, session: Session) -> tuple[Path, Path]:
        """The file, and its label."""
        states = session.run_dir / self.place / "scores" / f"{self.split}-reference-states.npy"
        return states, states.with_suffix(".json")

    def make(self, run: Run) -> States:
        """Raises: CheckpointError when what is on disk was made from something else; it names what differs."""
        session, pairs = run.context, run(self.pairs)
        frozen = frozen_of(run, self.models, self.role)
        path, label = self.paths(session)
        key = whole_key(run, self.role, frozen, self.pairs, self.split)
        width, dtype = session.model.config.hidden_size, session.config.model.dtype
        if not label.exists():
            self._write(session, pairs, frozen, path)
            if jax.process_index() == 0:
                write_text(label, json.dumps({"key": key, "sha256": sha256(path)}, sort_keys=True, indent=1) + "\n")
        distributed.wait_for_all(f"{self.split} states")
        try:
            stored = json.loads(label.read_text(encoding="utf-8"))
            check_same_key(path, stored["key"], key)
            if sha256(path, lambda: session.interrupt.poll("reading cached states")) != stored["sha256"]:
                raise ValueError("its bytes do not match their digest")
            return open_states(path, pairs.split(self.split), width, dtype)
        except CheckpointError:
            raise
        except (OSError, KeyError, TypeError, ValueError) as error:
            text = f"{path}: no whole cache of states ({error}); delete {label} to make it again"
            raise CheckpointError(text) from None

    def _write(self, session: Session, pairs: Splits, frozen: Frozen, path: Path) -> None:
        rows, batches = passing(session, pairs.split(self.split), pairs.elements, self.role.view)
        step, variables = hidden_reader(session.model, self.role.view), bind(self.role, None, frozen)
        width, dtype = session.model.config.hidden_size, session.config.model.dtype
        task = f"states of the reference ({self.split})"
        with contextlib.ExitStack() as stack:
            states = None
            if jax.process_index() == 0:
                path.parent.mkdir(parents=True, exist_ok=True)
                states = create(stack.enter_context(replacing(path)), rows.encoded, width, dtype)
            watched: Any = {"label": task, "interrupt": session.interrupt, "shown": session.config.logging.progress}
            for indices, batch in one_pass(rows, batches, session.mesh, **watched):
                hidden = partitioning.to_host(step(variables, batch))
                elements = partitioning.to_host(batch.views[self.role.view].slots.elements)
                if not np.isfinite(np.asarray(hidden, np.float32)).all():
                    raise DataError(f"{task}: not finite; nothing is kept: look for NaN in the model, or these records")
                if states is not None:
                    states.write(indices, elements, hidden, rows.layout)
            if states is not None:
                states.values.flush()  # type: ignore[attr-defined]  # a memory map
                log.info("%s: %.1f MiB in %s", task, states.values.nbytes / 2**20, path)
