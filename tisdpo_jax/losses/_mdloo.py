"""MDLOO: a step of mirror descent on leave-one-out advantages, held to the policy that sampled by a KL."""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp

from tisdpo_jax import arguments
from tisdpo_jax.losses._pairs import masked
from tisdpo_jax.losses._policy import (
    CAP,
    PolicyLoss,
    actions,
    checked_advantages,
    mean_of_actions,
    sample_kl,
)

Array = jax.Array


def mdloo_loss(
    policy_logps: Array,
    behaviour_logps: Array,
    mask: Array,
    *,
    advantages: Array,
    gamma: float,
    level: Literal["sequence", "token"] = "sequence",
    token_kl: Array | None = None,
    cap: float = CAP,
) -> PolicyLoss:
    """Mirror-descent policy optimisation: `-rho A + gamma KL(policy || behaviour)`, `rho = policy / behaviour`.

        "sequence": -rho A + gamma KL,              rho = exp(clip(sum_t m_t, -cap, cap)), a response is one action
        "token":    -sum_t rho_t A_t + gamma KL,    rho_t = exp(clip(m_t, -cap, cap))

    with `m_t = log pi - log pi_k`. KL is the sum of `token_kl` or, without it, `rho log rho - rho + 1` of each action,
    which under samples of the behaviour is unbiased, never negative, and has no gradient where policy = behaviour.

    Args:
      policy_logps, behaviour_logps: `[..., K, N]` log-likelihoods of the sampled tokens; no gradient to the behaviour,
        the policy pi_k that sampled, as the trainer scores it.
      mask: `[..., K, N]`, 1 on real response tokens. A response without any gives 0 and no gradient.
      advantages: `[..., K]`, or for "token" `[..., K, N]` as well; constants. Of `leave_one_out`, for the name.
      gamma: weight of the KL, the inverse of the step size, at least 0, in the units of the reward
        (`advantages.trust_gamma` takes it from a trust radius). At 0 nothing but `cap` bounds the ratio.
      token_kl: `[..., K, N]`, KL(policy || behaviour) over the vocabulary at each token, in nats; the gradient flows
        through it. Exact at the states that were visited.
      cap: bound of log rho, in nats, above 0 and at most 80; beyond it neither rho nor its KL has a gradient.

    Returns: PolicyLoss of `[..., K]`; `clipped` is the share of actions beyond the cap.
    Source: mirror descent: Tomar et al., MDPO, arXiv 2005.09814, and its public code; with
    leave-one-out and a KL to the reference in the reward: Gunter et al., Apple, arXiv 2407.21075. Paper (Apple): its
    objective is described, its line and constants are not known to us; here: MDPO's. Public code (MDPO): the ratio
    alone estimates the KL, `rho log rho` or the exact one; here: the form above, or the exact one.
    """
    policy_logps, behaviour_logps, mask = arguments.group_arrays(
        "mdloo_loss", mask, policy_logps=policy_logps, behaviour_logps=behaviour_logps
    )
    arguments.choice("mdloo_loss", "level", level, ("sequence", "token"))
    arguments.number("mdloo_loss", "gamma", gamma, at_least=0)
    arguments.number("mdloo_loss", "cap", cap, above=0, at_most=80)
    advantages = checked_advantages("mdloo_loss", advantages, mask, by_token=level == "token")
    logs, real = actions(policy_logps, behaviour_logps, mask, level)
    x = jnp.clip(logs, -cap, cap)
    rho = jnp.exp(x)
    if token_kl is None:
        kl = sample_kl(x).sum(-1)
    else:
        token_kl = arguments.floats("mdloo_loss", "token_kl", token_kl)
        arguments.same_shape("mdloo_loss", "token_kl", token_kl, "policy_logps", policy_logps.shape)
        kl = masked(token_kl, mask).sum(-1)
    loss = -(rho * advantages).sum(-1) + gamma * kl
    ratio, clipped = mean_of_actions(rho, real, 1.0), mean_of_actions(jnp.abs(logs) > cap, real, 0.0)
    return PolicyLoss(loss, *jax.lax.stop_gradient((ratio, kl, clipped)))
