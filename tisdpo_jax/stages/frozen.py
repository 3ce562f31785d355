"""The frozen models that a stage reads: which, and their arrays."""

from __future__ import annotations

from typing import Any

import numpy as np

from tisdpo_jax.artifacts import Run, Stage
from tisdpo_jax.roles import Frozen
from tisdpo_jax.stages.models import Base

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
