"""The training step: a pure function `(state, frozen, batch) -> (state, metrics)`."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax

from tisdpo_jax.roles import Frozen
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
    metrics = finish(result) | {"grad_norm": norm, "skipped": skipped.astype(jnp.float32)}
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


def finish(result: Result) -> Metrics:
    """Sums divided by counts; squares become standard deviations."""
    return means(result.sums)


def means(sums: dict[str, tuple[Any, Any]]) -> Metrics:
    metrics = {name: total / jnp.maximum(count, 1.0) for name, (total, count) in sums.items()}
    for name in [name for name in metrics if name.endswith("_squared")]:
        base = name.removesuffix("_squared")
        metrics[f"{base}_std"] = jnp.sqrt(jnp.maximum(metrics.pop(name) - jnp.square(metrics[base]), 0.0))
    return metrics
