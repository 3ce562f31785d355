"""REINFORCE: the plain policy gradient."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from tisdpo_jax import arguments
from tisdpo_jax.losses._pairs import FLOOR
from tisdpo_jax.losses._policy import PolicyLoss, checked_advantages

Array = jax.Array


def reinforce_loss(policy_logps: Array, mask: Array, *, advantages: Array) -> PolicyLoss:
    """Policy gradient: `-sum_t A_t log pi_t`.

    Args:
      policy_logps: `[..., K, N]` log-likelihoods of the sampled tokens under the policy.
      mask: `[..., K, N]`, 1 on real response tokens.
      advantages: `[..., K]`, one for each response, or `[..., K, N]`; constants (see `tisdpo_jax.advantages`).

    Returns: PolicyLoss of `[..., K]`; there is no behaviour to differ from, so ratio 1, kl 0, clipped 0.
    Source: Williams, 1992; with `leave_one_out`, Ahmadian et al., arXiv 2402.14740. Its gradient is that of a policy
    objective only at the policy that sampled.
    """
    policy_logps, mask = arguments.group_arrays("reinforce_loss", mask, policy_logps=policy_logps)
    advantages = checked_advantages("reinforce_loss", advantages, mask, by_token=True)
    logps = jnp.where(mask > 0, jnp.maximum(policy_logps.astype(jnp.float32), FLOOR), 0.0)
    loss = -(advantages * logps).sum(-1)
    zero = jnp.zeros_like(jax.lax.stop_gradient(loss))
    return PolicyLoss(loss, zero + 1.0, zero, zero)
