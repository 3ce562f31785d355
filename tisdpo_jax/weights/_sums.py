"""Sums over tokens with weights: for DPO trainers that take one number a response."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from tisdpo_jax import arguments

Array = jax.Array

_FLOOR = -1e9  # stands for "impossible": a weight of 0 times -inf would not be 0


def weighted_sums(logps: Array, weights: Array, mask: Array) -> Array:
    """`sum_t w_t log pi_t` of each response: what DPO trainers call chosen and rejected log-probabilities.

    DPO of such sums, policy and reference with the same weights, is TIS-DPO without eta, in any trainer.

    Args:
      logps: `[..., 2, N]` log-likelihoods of response tokens, in nats.
      weights: `[..., 2, N]`, taken as constants; not to be swapped with `logps`, which the gradient flows through.
      mask: `[..., 2, N]`, 1 on real response tokens.

    Returns: `[..., 2]` float32, chosen and rejected; 0 for a response without tokens.
    """
    logps, weights, mask = arguments.pair_arrays("weighted_sums", mask, logps=logps, weights=weights)
    real = mask > 0
    w = jnp.where(real, jax.lax.stop_gradient(weights).astype(jnp.float32), 0.0)
    return (w * jnp.where(real, jnp.maximum(logps.astype(jnp.float32), _FLOOR), 0.0)).sum(-1)
