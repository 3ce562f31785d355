"""The frozen models that a stage reads: which, and their arrays."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from tisdpo_jax.artifacts import Run, Stage, Unkept
from tisdpo_jax.models import head_only
from tisdpo_jax.roles import Frozen
from tisdpo_jax.stages.models import Base
from tisdpo_jax.types import Params

HEAD = "head"  # key of the reference where its last hidden states are on disk

Columns = dict[str, np.ndarray]
"""Values by pair, `[n, ...]`."""

Models = tuple[tuple[str, str, Stage], ...]
"""(collection, key, stage) of frozen models."""


def needed(models: Models, roles: Any) -> Models:
    """The models that a role, or all roles of a step, read."""
    return tuple((collection, key, stage) for collection, key, stage in models if (collection, key) in roles.needs())


def frozen_of(run: Run, models: Models, roles: Any) -> Frozen:
    """Their arrays."""
    frozen: Any = {"params": {}, "lora": {}}
    for collection, key, stage in needed(models, roles):
        value = run(stage)
        frozen[collection][key] = value.frozen() if isinstance(value, Base) else value
    return frozen


@dataclasses.dataclass(frozen=True)
class ReferenceHead(Unkept):
    """The head of a frozen model alone: what is left of the reference where its hidden states are on disk."""

    model: Stage
    name: str = HEAD

    @property
    def inputs(self) -> tuple[Stage, ...]:
        return (self.model,)

    def make(self, run: Run) -> Params:
        return head_only(run.context.model.config, run(self.model).frozen())
