"""The training step, a pure function `(state, frozen, batch) -> (state, metrics)`; and its program, compiled once.

Programs are kept in the process by what they depend on, and on disk by JAX.
"""

from __future__ import annotations

import functools
import os
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from tisdpo_jax import partitioning
from tisdpo_jax.config import OptimizerSection
from tisdpo_jax.roles import Frozen
from tisdpo_jax.training import optim
from tisdpo_jax.training.objective import Result, StepSpec, objective, step_key
from tisdpo_jax.types import Batch, Params, TrainState

Array = jax.Array
Metrics = dict[str, Array]


def init_state(trained: Params, optimizer: optax.GradientTransformation) -> TrainState:
    zero = jnp.zeros((), jnp.int32)
    return TrainState(zero, trained, optimizer.init(trained), zero)


def train_step(
    state: TrainState, frozen: Frozen, batch: Batch, *, plan: StepSpec, optimizer: optax.GradientTransformation
) -> tuple[TrainState, Metrics]:
    """One optimizer step over a batch of pairs.

    Every micro-batch scores all models, frozen ones too, so accumulation saves their memory as well.
    Numerators and denominators are summed and divided once. An update that is not finite is not applied: the
    state stays, `skipped` counts how many in a row.
    """
    gradients, result = accumulate(plan, state.trained, frozen, batch, step_key(plan, state.step))
    with jax.named_scope("update"):
        norm = global_norm(gradients)
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.trained)
        trained = optax.apply_updates(state.trained, updates)
        finite = jnp.isfinite(norm) & jnp.isfinite(result.total)
        keep = lambda new, old: jnp.where(finite, new, old)  # noqa: E731 (one line says it)
        trained, opt_state = jax.tree.map(keep, (trained, opt_state), (state.trained, state.opt_state))
    skipped = jnp.where(finite, 0, state.skipped + 1)
    metrics = means(result.sums) | {"grad_norm": norm, "skipped": skipped.astype(jnp.float32)}
    return TrainState(state.step + 1, trained, opt_state, skipped), metrics


def accumulate(
    plan: StepSpec, trained: Params, frozen: Frozen, batch: Batch, key: Array | None = None
) -> tuple[Params, Result]:
    """Gradients of the mean loss over the batch, in `gradient_accumulation_steps` parts, float32 sums."""

    working = working_copy(trained, plan.scorer.compute_dtype())

    def value(trained: Params, part: Batch, *, mean: bool) -> tuple[Array, Result]:
        result = objective(plan, trained, frozen, part, key)
        return result.total / jnp.maximum(result.denominator, 1.0) if mean else result.total, result

    if plan.gradient_accumulation_steps == 1:  # the mean at once: no second copy of the gradients
        (_, result), grads = jax.value_and_grad(value, has_aux=True)(working, batch, mean=True)
        return jax.tree.map(lambda g, p: g.astype(p.dtype), grads, trained), result

    def gradient(part: Batch) -> tuple[Params, Result]:
        (_, result), grads = jax.value_and_grad(value, has_aux=True)(working, part, mean=False)
        return jax.tree.map(lambda g: g.astype(jnp.float32), grads), result

    parts = jax.tree.map(lambda x: _deal(x, plan.gradient_accumulation_steps), batch)
    first = jax.eval_shape(gradient, jax.tree.map(lambda x: x[0], parts))
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), first)
    add = lambda carry, part: (jax.tree.map(jnp.add, carry, gradient(part)), None)  # noqa: E731 (one line says it)
    (grads, result), _ = jax.lax.scan(add, zeros, parts)
    count = jnp.maximum(result.denominator, 1.0)
    return jax.tree.map(lambda g, p: (g / count).astype(p.dtype), grads, trained), result


def working_copy(trained: Params, dtype: str) -> Params:
    """Parameters with the matrices of the layers in the dtype of the computation.

    They are read in no other, so their gradients, which layers stack, need no more digits: half the memory for
    float32 parameters of a bfloat16 computation.
    """
    layers = jax.tree.map(lambda x: x.astype(dtype) if x.ndim > 2 else x, trained.get("layers", {}))
    return trained | ({"layers": layers} if layers else {})


def global_norm(tree: Params) -> Array:
    """Euclidean norm over all leaves, float32."""
    return jnp.sqrt(sum((jnp.sum(jnp.square(x.astype(jnp.float32))) for x in jax.tree.leaves(tree)), jnp.zeros(())))


def _deal(x: Array, parts: int) -> Array:
    """`[B, ...]` -> `[parts, B / parts, ...]`, dealt like cards: each device keeps the rows it has."""
    return jnp.swapaxes(x.reshape(x.shape[0] // parts, parts, *x.shape[1:]), 0, 1)


def evaluate_step(trained: Params, frozen: Frozen, batch: Batch, *, plan: StepSpec) -> dict[str, tuple[Array, Array]]:
    """Metric sums and counts of a batch, without gradients."""
    return objective(plan, trained, frozen, batch).sums


def means(sums: dict[str, tuple[Any, Any]]) -> Metrics:
    """Sums divided by counts; squares become standard deviations."""
    metrics = {name: total / jnp.maximum(count, 1.0) for name, (total, count) in sums.items()}
    for name in [name for name in metrics if name.endswith("_squared")]:
        base = name.removesuffix("_squared")
        metrics[f"{base}_std"] = jnp.sqrt(jnp.maximum(metrics.pop(name) - jnp.square(metrics[base]), 0.0))
    return metrics


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
