"""The models of a run: the base as it came, what stages trained, and how they are brought back."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from tisdpo_jax import checkpoint, interchange, partitioning
from tisdpo_jax.artifacts import Run, Stage, Stored, digest
from tisdpo_jax.checkpoint import Checkpoints
from tisdpo_jax.errors import CheckpointError, DamagedError
from tisdpo_jax.models import abstract_params, init_adapters, merge, quantize
from tisdpo_jax.stages.session import Session, cast
from tisdpo_jax.types import Params

log = logging.getLogger(__name__)


class Base:
    """The model that everything starts from: as frozen roles read it, and in full where that is another thing.

    With `model.frozen_dtype` int8 the full parameters are on the devices only while they are asked for. `pretrained`
    says that they are those of `model.path`: an adapter over anything else needs that thing beside it.
    """

    def __init__(
        self, load: Callable[[], Params], freeze: Callable[[Params], Params] | None = None, *, pretrained: bool = False
    ) -> None:
        self._load, self._freeze, self.pretrained = load, freeze, pretrained
        full = load()
        self.identity = identify(full)
        self._frozen: Params | None = freeze(full) if freeze else full

    def frozen(self) -> Params:
        """The same arrays at every call, until they are dropped."""
        if self._frozen is None:
            full = self._load()
            self._frozen = self._freeze(full) if self._freeze else full
        return self._frozen

    def full(self) -> Params:
        return self._load() if self._freeze else self.frozen()

    def drop(self) -> None:
        """Gives the memory back until the parameters are asked for again."""
        self._frozen = None


@dataclasses.dataclass(frozen=True)
class Pretrained:
    """The model of `model.path`, as it came. Its value is a `Base`."""

    name: str = "pretrained"
    inputs: tuple[Stage, ...] = ()

    def make(self, run: Run) -> Base:
        session = run.context
        return Base(functools.partial(load_pretrained, session), freeze_of(session), pretrained=True)

    def key(self, context: Session) -> None:
        return None

    def stored(self, context: Session) -> None:
        return None


@dataclasses.dataclass(frozen=True)
class Folded:
    """The whole model that a training's result stands for, adapters merged. Its value is a `Base`.

    `start` is what the training started from.
    """

    training: Stage
    start: Stage

    @property
    def name(self) -> str:
        return f"{self.training.name}, whole"

    @property
    def inputs(self) -> tuple[Stage, ...]:
        return (self.training,)

    def make(self, run: Run) -> Base:
        session = run.context

        def whole() -> Params:
            within = Run(session, makes=run.makes)  # whatever was read to make it is given up with it
            return fold_in(session, within(self.start), within(self.training))

        return Base(whole, freeze_of(session))

    def key(self, context: Session) -> None:
        return None

    def stored(self, context: Session) -> None:
        return None


def freeze_of(session: Session) -> Callable[[Params], Params] | None:
    """How whole models become frozen ones, where that takes more than a dtype."""
    if session.config.model.frozen_dtype != "int8":
        return None
    shape = jax.eval_shape(quantize, abstract_params(session.model.config, "bfloat16"))
    shardings = partitioning.param_shardings(shape, session.mesh)
    return jax.jit(quantize, out_shardings=shardings)


def load_pretrained(session: Session) -> Params:
    """The pretrained parameters on the mesh, in `model.frozen_dtype` (int8: in bfloat16)."""
    config = session.model.config
    shardings = partitioning.param_shardings(abstract_params(config), session.mesh)
    return interchange.load_params(session.model_path, config, dtype=whole_dtype(session), shardings=shardings)


def whole_dtype(session: Session) -> str:
    """Dtype of models that are neither trained nor quantised."""
    dtype = session.config.model.frozen_dtype
    return "bfloat16" if dtype == "int8" else dtype


def abstract_base(session: Session) -> Params:
    """Shapes of a frozen whole model."""
    shape = abstract_params(session.model.config, whole_dtype(session))
    return jax.eval_shape(quantize, shape) if session.config.model.frozen_dtype == "int8" else shape


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


def checkpoints_path(session: Session, stage: str) -> Path:
    return session.run_dir / "checkpoints" / stage


def save_result(session: Session, stage: str, trained: Params, identity: dict[str, Any]) -> None:
    checkpoint.save_tree(result_path(session, stage), trained, identity)


def load_result(
    session: Session, stage: str, identity: dict[str, Any], *, derived: tuple[str, ...] = ()
) -> Params | None:
    """What a stage trained; None when it has not finished.

    Args:
      derived: fields of the identity that are not compared, since nothing is made that they would be known from.

    A result that is damaged is set aside when the checkpoints of its stage can bring it back.

    Raises: CheckpointError when it was trained with something else than `identity` says, or is damaged for good.
    """
    path = result_path(session, stage)
    if not path.is_dir():
        return None
    shape = abstract_trained(session)
    shardings = partitioning.param_shardings(shape, session.mesh)
    like = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shape, shardings)
    try:
        if derived:
            found = checkpoint.load_identity(path)
            identity = {**identity, **{name: found[name] for name in derived if name in found}}
        return checkpoint.load_tree(path, like, identity)[0]
    except DamagedError as error:
        if derived or not Checkpoints(checkpoints_path(session, stage), keep=1).steps():
            raise CheckpointError(
                f"{error}. Bring it back from a copy; or delete {path} and run again, which trains the stage again"
            ) from error
        log.warning("result set aside, the last checkpoint of its stage takes its place: %s", error)
        checkpoint.quarantine(path)
        return None


def stored(session: Session, stage: str) -> Stored | None:
    """Where a stage has left its result, or its newest checkpoint, and what that was made with.

    None where nothing is there, or nothing that can be read: the stage itself says what is wrong with it.
    """
    steps = checkpoints_path(session, stage)
    newest = [steps / str(step) for step in reversed(Checkpoints(steps, keep=1).steps())]
    for path in [result_path(session, stage), *newest]:
        if path.is_dir():
            with contextlib.suppress(CheckpointError):
                whole = path == result_path(session, stage)
                progress = "" if whole else f"goes on from step {path.name}"
                return Stored(path, checkpoint.load_identity(path), whole, progress)
    return None


def fold_in(session: Session, base: Base, trained: Params) -> Params:
    """The whole model that `trained` stands for: adapters merged, in `whole_dtype`."""
    if session.lora:
        return jax.jit(functools.partial(merge, scale=session.model.compute.lora_scale))(base.full(), trained)
    return cast(trained, whole_dtype(session))


def identify(tree: Params) -> str:
    """A short name for the values of a tree of arrays, the same on every mesh."""
    return digest(checkpoint.fingerprint(tree))
