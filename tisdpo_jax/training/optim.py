"""Optimizers and schedules from optax, as the configuration names them."""

from __future__ import annotations

from typing import Any

import jax
import optax

from tisdpo_jax.config import OptimizerSection
from tisdpo_jax.models import SCORE
from tisdpo_jax.partitioning import map_with_path


def schedule(section: OptimizerSection, total_steps: int) -> optax.Schedule:
    """Learning rate by step. Warm-up step s of w uses (s + 1) / (w + 1) of the peak: none is wasted at 0."""
    peak, warmup = section.learning_rate, section.warmup_steps
    steps = max(total_steps - warmup, 1)
    after = {
        "constant": optax.constant_schedule(peak),
        "linear": optax.linear_schedule(peak, peak * section.end_fraction, steps),
        "cosine": optax.cosine_decay_schedule(peak, steps, section.end_fraction),
    }[section.schedule]
    if not warmup:
        return after
    return optax.join_schedules([optax.linear_schedule(peak / (warmup + 1), peak, warmup), after], [warmup])


def optimizer(section: OptimizerSection, total_steps: int) -> optax.GradientTransformation:
    """Clipping by global norm, then the named optimizer with decoupled weight decay and the schedule."""
    parts = [optax.clip_by_global_norm(section.clip_norm)] if section.clip_norm is not None else []
    if section.name == "adamw":
        parts.append(optax.scale_by_adam(section.b1, section.b2, section.eps))
    elif section.name == "rmsprop":
        parts.append(optax.scale_by_rms(decay=section.b2, eps=section.eps, eps_in_sqrt=False))
    else:
        parts += [optax.scale_by_factored_rms(), optax.clip_by_block_rms(1.0)]
    if section.weight_decay > 0:
        parts.append(optax.add_decayed_weights(section.weight_decay, mask=decayed))
    if section.head_rate != 1:
        parts.append(optax.masked(optax.scale(section.head_rate), is_head))
    return optax.chain(*parts, optax.scale_by_learning_rate(schedule(section, total_steps)))


def decayed(params: Any) -> Any:
    """Which leaves decay: matrices. Norm scales and biases do not."""
    return map_with_path(lambda path, _: not path.endswith(("scale", "bias")), params)


def is_head(params: Any) -> Any:
    """Which leaves are the head of a reward model."""
    return map_with_path(lambda path, _: path == SCORE, params)


def optimizer_shardings(opt_state: Any, params: Any, shardings: Any, default: Any) -> Any:
    """Shardings of an optimizer state: moments lie as their parameters do, everything else as `default`.

    Optax keeps moments in trees of the parameters' own structure, so the end of a leaf's path is its parameter's.
    """
    paths = jax.tree_util.tree_leaves_with_path(params)
    known = {path: (leaf.shape, lies) for (path, leaf), lies in zip(paths, jax.tree.leaves(shardings), strict=True)}

    def of(path: Any, leaf: Any) -> Any:
        for start in range(len(path)):
            shape, sharding = known.get(path[start:], (None, None))
            if shape == leaf.shape:
                return sharding
        return default

    return jax.tree_util.tree_map_with_path(of, opt_state)
