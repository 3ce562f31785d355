"""Programs that are compiled once: kept in the process by what they depend on, and on disk by JAX."""

from __future__ import annotations

import functools
import os
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh

from tisdpo_jax import partitioning
from tisdpo_jax.config import OptimizerSection
from tisdpo_jax.training import optim
from tisdpo_jax.training.objective import StepSpec
from tisdpo_jax.training.step import init_state, train_step
from tisdpo_jax.types import Params, TrainState


class Programs(NamedTuple):
    """What a training runs."""

    like: TrainState  # shapes and shardings of its state
    begin: Any  # parameters -> the state to begin with; gives up their buffers
    step: Any  # (state, frozen, batch) -> (state, metrics); gives up the state's


def programs(plan: StepSpec, section: OptimizerSection, total: int, trained: Params, mesh: Mesh) -> Programs:
    """The programs of a training of `trained`; of two that are alike, the same.

    So the two contrastive models compile one step, and so do the rounds of DLMA.
    """
    leaves, tree = jax.tree.flatten(trained)
    return _programs(plan, section, total, tree, tuple((x.shape, x.dtype) for x in leaves), mesh)


@functools.lru_cache(maxsize=4)
def _programs(plan: StepSpec, section: OptimizerSection, total: int, tree: Any, leaves: Any, mesh: Mesh) -> Programs:
    optimizer = optim.optimizer(section, total)
    begin = functools.partial(init_state, optimizer=optimizer)
    shape = jax.eval_shape(begin, jax.tree.unflatten(tree, [jax.ShapeDtypeStruct(*leaf) for leaf in leaves]))
    shardings = state_shardings(shape, mesh)
    like = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shape, shardings)
    jitted = jax.jit(begin, out_shardings=shardings, donate_argnums=0)
    return Programs(like, jitted, compile_step(plan, optimizer, shardings, mesh))


def compile_step(plan: StepSpec, optimizer: Any, shardings: Any, mesh: Mesh) -> Any:
    """The jitted step. Its output shardings are pinned: left to the compiler, the second call would compile again."""
    step = functools.partial(train_step, plan=plan, optimizer=optimizer)
    layout, options = (shardings, partitioning.replicated(mesh)), dict(plan.compiler_options) or None
    return jax.jit(step, donate_argnums=0, out_shardings=layout, compiler_options=options)


def state_shardings(shape: TrainState, mesh: Mesh) -> Any:
    """A TrainState of shardings."""
    trained = partitioning.param_shardings(shape.trained, mesh)
    whole = partitioning.replicated(mesh)
    arrays: Any = (whole, trained, optim.optimizer_shardings(shape.opt_state, shape.trained, trained, whole), whole)
    return TrainState(*arrays)


def keep_on_disk(directory: str | None) -> None:
    """Keeps compiled programs in `directory`, so that another start of a run compiles nothing; None keeps none.

    A directory that JAX was given (JAX_COMPILATION_CACHE_DIR) stays, and with it what JAX was told to keep.
    """
    if directory and not _configured():
        jax.config.update("jax_compilation_cache_dir", os.path.expanduser(directory))  # or gs://, which JAX knows
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


def _configured() -> str | None:
    return getattr(jax.config, "jax_compilation_cache_dir")  # noqa: B009 (not among the fields that mypy knows)
