"""What the losses share: the result type and masked sums of log-ratios."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

Array = jax.Array

# A log-probability below this says "impossible". It keeps -inf out of sums, where
# -inf - (-inf) is NaN; no float32 log-softmax of finite logits of a model comes near it.
FLOOR = -1e9


class PairLoss(NamedTuple):
    """Per-pair results, shapes `[...]`, float32. The caller reduces."""

    loss: Array
    chosen_reward: Array  # beta times the log-ratio that the loss uses; carries no gradient
    rejected_reward: Array


def log_ratios(policy_logps: Array, reference_logps: Array, mask: Array) -> Array:
    """`m_t = log pi - log pi_ref` in float32, 0 where the mask is 0; no gradient to the reference."""
    policy = jnp.maximum(policy_logps.astype(jnp.float32), FLOOR)
    reference = jnp.maximum(jax.lax.stop_gradient(reference_logps).astype(jnp.float32), FLOOR)
    return jnp.where(mask > 0, policy - reference, 0.0)


def mean_logps(logps: Array, mask: Array) -> Array:
    """`[..., N]` -> `[...]`: mean log-likelihood over the real tokens, float32; 0 where there is none."""
    values = jnp.where(mask > 0, jnp.maximum(logps.astype(jnp.float32), FLOOR), 0.0)
    return values.sum(-1) / jnp.maximum((mask > 0).sum(-1), 1)


def masked(values: Array, mask: Array) -> Array:
    """float32 values, 0 where the mask is 0, and finite: an infinite KL counts as -FLOOR."""
    return jnp.where(mask > 0, jnp.minimum(values.astype(jnp.float32), -FLOOR), 0.0)


def sides(totals: Array) -> tuple[Array, Array]:
    """`[..., S]` -> chosen `[...]`, rejected `[...]`."""
    return totals[..., 0], totals[..., 1]
