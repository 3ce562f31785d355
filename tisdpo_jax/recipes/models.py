"""The models of a run: the base as it came, what stages trained, and how they are brought back."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import jax

from tisdpo_jax import checkpoint, interchange, partitioning
from tisdpo_jax.errors import CheckpointError
from tisdpo_jax.models import abstract_params, init_adapters, merge
from tisdpo_jax.recipes.session import Session, cast, digest
from tisdpo_jax.types import Params


def load_base(session: Session) -> Params:
    """The pretrained parameters, frozen, in `model.frozen_dtype`, on the mesh."""
    config = session.model.config
    shardings = partitioning.param_shardings(abstract_params(config), session.mesh)
    return interchange.load_params(
        session.model_path, config, dtype=session.config.model.frozen_dtype, shardings=shardings
    )


def abstract_base(session: Session) -> Params:
    """Shapes of what `load_base` gives."""
    return abstract_params(session.model.config, session.config.model.frozen_dtype)


def new_trained(session: Session, base: Params, stage: str) -> Params:
    """What a stage starts to train: a new adapter, or a copy of the parameters in `model.param_dtype`.

    Always new buffers, because the training step takes them over. Adapters of different stages differ
    in their random half, which changes nothing at first: the other half is zero.
    """
    dtype = session.config.model.param_dtype
    shardings = partitioning.param_shardings(abstract_trained(session), session.mesh)
    if session.lora:
        key = jax.random.fold_in(jax.random.key(session.config.seed), int(digest(stage), 16) % 2**31)
        return jax.jit(functools.partial(_adapters, session), out_shardings=shardings)(key, base)
    return jax.jit(lambda tree: jax.tree.map(lambda x: x.astype(dtype) + 0, tree), out_shardings=shardings)(base)


def _adapters(session: Session, key: jax.Array, base: Params) -> Params:
    section = session.config.lora
    return init_adapters(key, base, rank=section.rank, targets=section.targets, dtype=session.config.model.param_dtype)


def abstract_trained(session: Session) -> Params:
    """Shapes of what a stage trains."""
    base = abstract_params(session.model.config, session.config.model.param_dtype)
    if not session.lora:
        return base
    return jax.eval_shape(functools.partial(_adapters, session), jax.random.key(0), base)


def result_path(session: Session, stage: str) -> Path:
    return session.run_dir / "models" / stage


def save_result(session: Session, stage: str, trained: Params, identity: dict[str, Any]) -> None:
    checkpoint.save_tree(result_path(session, stage), trained, identity)


def load_result(session: Session, stage: str, identity: dict[str, Any] | None) -> Params | None:
    """What a stage trained; None when it has not finished.

    Raises: CheckpointError when it was trained with something else than `identity` says; None takes it as it is.
    """
    path = result_path(session, stage)
    if not path.is_dir():
        return None
    shape = abstract_trained(session)
    shardings = partitioning.param_shardings(shape, session.mesh)
    like = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shape, shardings)
    tree, found = checkpoint.load_tree(path, like)
    if identity is not None and found != identity:
        changed = sorted(key for key in found.keys() | identity.keys() if found.get(key) != identity.get(key))
        raise CheckpointError(
            f"{path}: was trained with other {', '.join(changed)} than this configuration; "
            f"use a new run_dir, or delete {path}"
        )
    return tree


def fold_in(session: Session, base: Params, trained: Params) -> Params:
    """The whole model that `trained` stands for, as a frozen base: adapters merged, dtype that of frozen models."""
    if session.lora:
        return jax.jit(functools.partial(merge, scale=session.model.compute.lora_scale))(base, trained)
    return cast(trained, session.config.model.frozen_dtype)


def identify(tree: Params) -> str:
    """A short name for the values of a tree of arrays, the same on every mesh."""
    return digest(checkpoint.fingerprint(tree))
