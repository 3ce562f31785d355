"""What lies in memory between two steps: bytes of each tree of arrays, over all devices and on one."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax

from tisdpo_jax.roles import TRAINED, Frozen, Roles
from tisdpo_jax.types import TrainState


@dataclasses.dataclass(frozen=True)
class Resident:
    """One tree of arrays."""

    name: str  # "trained", "base", "plus", ..., "batch"
    term: str  # "parameters", "adapters", "optimizer", "tokens", "states", "columns"
    used_by: tuple[str, ...]  # roles that read it
    total: int  # bytes of the arrays, each counted once
    chip: int  # bytes on one device


def resident(state: TrainState | None, frozen: Frozen, batch: Any, roles: Roles) -> tuple[Resident, ...]:
    """Everything that the step is given, by role and term.

    Args:
        state, frozen, batch: the arguments of the step; arrays, or `ShapeDtypeStruct`s with a sharding. No state
            where nothing is trained.
        roles: who reads which of the trees.
    """
    found = []
    if state is not None:
        term = "adapters" if roles.policy.lora == TRAINED else "parameters"
        found.append(_of(state.trained, TRAINED, term, ("policy",)))
        found.append(_of((state.step, state.opt_state, state.skipped), TRAINED, "optimizer", ("policy",)))
    for key, tree in frozen["params"].items():
        found.append(_of(tree, key, "parameters", _readers(roles, "params", key)))
    for key, tree in frozen["lora"].items():
        found.append(_of(tree, key, "adapters", _readers(roles, "lora", key)))
    found.append(_of(batch._replace(columns={}, states=None), "batch", "tokens", ()))
    found.append(_of(batch.states, "batch", "states", ()))
    found.append(_of(batch.columns, "batch", "columns", ()))
    return tuple(item for item in found if item.total)


def _of(tree: Any, name: str, term: str, used_by: tuple[str, ...]) -> Resident:
    leaves = jax.tree.leaves(tree)
    total = sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)
    chip = sum(math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in leaves)
    return Resident(name, term, used_by, total, chip)


def _readers(roles: Roles, collection: str, key: str) -> tuple[str, ...]:
    named = {name: getattr(roles, name) for name in ("policy", "reference", "plus", "minus")}
    return tuple(name for name, role in named.items() if role is not None and (collection, key) in role.needs())
