"""Supervised fine-tuning."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from tisdpo_jax import arguments
from tisdpo_jax.losses._pairs import FLOOR

Array = jax.Array


def sft_loss(policy_logps: Array, mask: Array) -> tuple[Array, Array]:
    """Summed negative log-likelihood and token count, both scalars, over all axes.

    Not a mean: callers add both over micro-batches and hosts and divide once, so that a micro-batch
    of few tokens does not weigh as much as one of many.

    Args:
      policy_logps: `[..., N]` log-likelihoods of the tokens, in nats.
      mask: `[..., N]`, 1 on the tokens that count.
    """
    policy_logps, mask = arguments.elements("sft_loss", mask, policy_logps=policy_logps)
    logps = jnp.maximum(policy_logps.astype(jnp.float32), FLOOR)
    return -jnp.where(mask > 0, logps, 0.0).sum(), (mask > 0).astype(jnp.float32).sum()
