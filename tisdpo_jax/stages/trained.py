"""What a training starts from, and its result on disk: how it is kept, found again, and brought back."""

from __future__ import annotations

import contextlib
import functools
import logging
from pathlib import Path
from typing import Any

import jax

from tisdpo_jax import checkpoint, partitioning
from tisdpo_jax.artifacts import Stored, digest
from tisdpo_jax.checkpoint import Checkpoints
from tisdpo_jax.errors import CheckpointError, DamagedError
from tisdpo_jax.models import abstract_params, init_adapters, quantize
from tisdpo_jax.stages.models import whole_dtype
from tisdpo_jax.stages.session import Session
from tisdpo_jax.types import Params

log = logging.getLogger(__name__)


def new_trained(session: Session, base: Params, kind: str) -> Params:
    """What a training begins with: a new adapter, or a copy of the parameters in `model.param_dtype`.

    Always new buffers, because the training step takes them over. Adapters of different kinds of training differ
    in their random half, which changes nothing at first: the other half is zero.
    """
    dtype = session.config.model.param_dtype
    shardings = partitioning.param_shardings(abstract_trained(session), session.mesh)
    if session.lora:
        key = jax.random.fold_in(jax.random.key(session.config.seed), int(digest(kind), 16) % 2**31)
        return jax.jit(functools.partial(_adapters, session), out_shardings=shardings)(key, base)
    return jax.jit(lambda tree: jax.tree.map(lambda x: x.astype(dtype) + 0, tree), out_shardings=shardings)(base)


def _adapters(session: Session, key: jax.Array, base: Params) -> Params:
    section = session.config.lora
    return init_adapters(key, base, rank=section.rank, targets=section.targets, dtype=session.config.model.param_dtype)


def abstract_trained(session: Session) -> Params:
    """Shapes of what is trained."""
    base = abstract_params(session.model.config, session.config.model.param_dtype)
    return jax.eval_shape(functools.partial(_adapters, session), jax.random.key(0), base) if session.lora else base


def abstract_base(session: Session) -> Params:
    """Shapes of a frozen whole model."""
    shape = abstract_params(session.model.config, whole_dtype(session))
    return jax.eval_shape(quantize, shape) if session.config.model.frozen_dtype == "int8" else shape


def result_path(directory: Path, kind: str) -> Path:
    return directory / "models" / kind


def checkpoints_path(directory: Path, kind: str) -> Path:
    return directory / "checkpoints" / kind


def load_result(
    session: Session, directory: Path, kind: str, identity: dict[str, Any], *, derived: tuple[str, ...] = ()
) -> Params | None:
    """What was trained; None when it has not finished.

    Args:
      directory: of the run, or of a part of it.
      derived: fields of the identity that are not compared, since nothing is made that they would be known from.

    A result that is damaged is set aside when the checkpoints of its training can bring it back.

    Raises: CheckpointError when it was trained with something else than `identity` says, or is damaged for good.
    """
    path = result_path(directory, kind)
    if not path.is_dir():
        return None
    shape = abstract_trained(session)
    shardings = partitioning.param_shardings(shape, session.mesh)
    like = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shape, shardings)
    try:
        if derived:
            stored = checkpoint.load_identity(path)
            identity = {**identity, **{name: stored[name] for name in derived if name in stored}}
        return checkpoint.load_tree(path, like, identity)[0]
    except DamagedError as error:
        if derived or not Checkpoints(checkpoints_path(directory, kind), keep=1).steps():
            raise CheckpointError(
                f"{error}. Bring it back from a copy; or delete {path} and run again, which trains the stage again"
            ) from error
        log.warning("result set aside, the last checkpoint of its stage takes its place: %s", error)
        checkpoint.quarantine(path)
        return None


def stored_result(directory: Path, kind: str) -> Stored | None:
    """Where a training has left its result, or its newest checkpoint, and what that was made with.

    None where nothing is there, or nothing that can be read: the training itself says what is wrong with it.
    """
    result, steps = result_path(directory, kind), checkpoints_path(directory, kind)
    newest = [steps / str(step) for step in reversed(Checkpoints(steps, keep=1).steps())]
    for path in [result, *newest]:
        if path.is_dir():
            with contextlib.suppress(CheckpointError):
                progress = "" if path == result else f"goes on from step {path.name}"
                return Stored(path, checkpoint.load_identity(path), path == result, progress)
    return None
