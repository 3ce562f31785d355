"""Whole models of a run: the base as it came, and what trainings made of it."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable

import jax

from tisdpo_jax import checkpoint, interchange, partitioning
from tisdpo_jax.artifacts import Run, Stage, Unkept, digest
from tisdpo_jax.models import abstract_params, merge, quantize
from tisdpo_jax.stages.session import Session
from tisdpo_jax.types import Params


class Base:
    """The model that everything starts from: as frozen roles read it, and in full where that is another thing.

    With `model.frozen_dtype` int8 the full parameters are on the devices only while they are asked for. An adapter over
    anything but the model of `model.path` (`pretrained`) needs that thing beside it.
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
class Pretrained(Unkept):
    """The model of `model.path`, as it came. Its value is a `Base`."""

    name: str = "pretrained"
    inputs: tuple[Stage, ...] = ()

    def make(self, run: Run) -> Base:
        session = run.context
        return Base(functools.partial(load_pretrained, session), freeze_of(session), pretrained=True)


@dataclasses.dataclass(frozen=True)
class Folded(Unkept):
    """The whole model that a training's result stands for, adapters merged. Its value is a `Base`."""

    training: Stage
    start: Stage  # what the training started from

    @property
    def name(self) -> str:
        return f"{self.training.name}, whole"

    @property
    def inputs(self) -> tuple[Stage, ...]:
        return (self.training,)

    def make(self, run: Run) -> Base:
        session: Session = run.context
        if run.makes:
            run(self.training)
            run.forget(self.training)
            run.forget(self.start)

        def whole() -> Params:
            within = Run(session, makes=False)  # whatever is read to make it is given up with it
            return fold_in(session, within(self.start), within(self.training))

        return Base(whole, freeze_of(session))


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


def fold_in(session: Session, base: Base, trained: Params) -> Params:
    """The whole model that `trained` stands for: adapters merged, in `whole_dtype`."""
    if session.lora:
        return jax.jit(functools.partial(merge, scale=session.model.compute.lora_scale))(base.full(), trained)
    return jax.tree.map(lambda x: x.astype(whole_dtype(session)), trained)


def identify(tree: Params) -> str:
    """A short name for the values of a tree of arrays, the same on every mesh."""
    return digest(checkpoint.fingerprint(tree))
