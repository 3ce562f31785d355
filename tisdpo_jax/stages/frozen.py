"""What stages read of frozen models: which models, the compiled pass, and the key of what comes of it."""

from __future__ import annotations

import functools
from typing import Any

import jax
import numpy as np

from tisdpo_jax.artifacts import Run, Stage, differences, digest
from tisdpo_jax.data import EncodedSet
from tisdpo_jax.errors import CheckpointError, DataError
from tisdpo_jax.roles import Frozen, Role, bind
from tisdpo_jax.scoring import Text
from tisdpo_jax.scoring import read as read_states
from tisdpo_jax.stages.models import Base, identify
from tisdpo_jax.stages.session import Session

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


def known_key(run: Run, role: Role, pairs: Stage, split: str) -> dict[str, str]:
    """The part of a key that is known before any model is read."""
    session: Session = run.context
    config, known = session.config, run.known(pairs)
    return {
        "architecture": digest(repr(session.model.config)),
        "dtype": config.model.dtype,
        **session.text.identity(),
        "prompt": role.view,
        "lengths": f"{config.data.max_length}/{config.data.max_response}",
        **({} if known is None else {"data": known.split(split).fingerprint()}),
    }


def whole_key(run: Run, role: Role, frozen: Frozen, pairs: Stage, split: str) -> dict[str, str]:
    """Everything that the numbers depend on, under the names that an error would use."""
    variables, scale = bind(role, None, frozen), run.context.model.compute.lora_scale
    return {
        "model": identify(variables["params"]),
        "adapter": f"{identify(variables['lora'])} x {scale}" if "lora" in variables else "none",
        **known_key(run, role, pairs, split),
    }


def check_key(path: Any, stored: dict[str, str], key: dict[str, str]) -> None:
    """Raises: CheckpointError that names what differs."""
    if changed := differences(stored, key):
        raise CheckpointError(
            f"{path}: was made with another configuration: {'; '.join(changed)}. Nothing was changed: go back to "
            "those values, delete it to make it again, or use a new run_dir"
        )


def check_finite(what: str, values: np.ndarray, encoded: EncodedSet) -> None:
    """Raises: DataError that names the records whose `values [n, ...]` are not finite."""
    bad = np.flatnonzero(~np.isfinite(values).all(axis=tuple(range(1, values.ndim))))
    if len(bad):
        names = ", ".join(f"{encoded.groups[i].id} ({encoded.groups[i].origin})" for i in bad[:4])
        raise DataError(
            f"{what}: not finite for {len(bad)} of {len(values)} pairs: {names}{', ...' if len(bad) > 4 else ''}; "
            "nothing is kept. A model with NaN in its parameters gives this for all pairs; else look at these records, "
            "or set model.dtype float32"
        )


@functools.lru_cache(maxsize=8)
def scorer(model: Any, view: str, chunk: int, kind: str = "logps") -> Any:
    """The jitted step `(variables, batch) -> [B, 2, N]`, log-likelihoods or another method of the scorer."""
    score = getattr(Text(model, chunk), kind)
    return jax.jit(lambda variables, batch: score(variables, batch, jax.random.key(0), view=view))


@functools.lru_cache(maxsize=2)
def hidden_reader(model: Any, view: str) -> Any:
    """The jitted step `(variables, batch) -> [rows, tokens, width]`, last hidden states."""
    return jax.jit(lambda variables, batch: read_states(model, variables, batch.views[view]).hidden)
