"""The clipped surrogate, and with it PPO, RLOO, GRPO, GSPO and DAPO."""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp

from tisdpo_jax import arguments
from tisdpo_jax.losses._policy import (
    CAP,
    PolicyLoss,
    actions,
    checked_advantages,
    mean_of_actions,
    sample_kl,
)

Array = jax.Array


def clipped_loss(
    policy_logps: Array,
    behaviour_logps: Array,
    mask: Array,
    *,
    advantages: Array,
    low: float = 0.2,
    high: float = 0.2,
    dual: float | None = None,
    level: Literal["token", "sequence", "mean"] = "token",
) -> PolicyLoss:
    """Clipped surrogate: `-sum min(rho A, clip(rho, 1 - low, 1 + high) A)` over the actions of a response.

        "token":    rho_t = exp(m_t), summed over tokens
        "sequence": rho = exp(sum_t m_t), a response is one action
        "mean":     rho = exp(mean_t m_t), one number a response

    | method | level | bounds | advantages | reduced by (`REDUCE`) |
    | --- | --- | --- | --- | --- |
    | PPO | token | 0.2 | of a critic, `[..., K, N]` | token |
    | RLOO, as TRL has it | sequence | 0.2 | `leave_one_out` of `penalised` | response |
    | GRPO | token | 0.2, plus a coefficient times `reference_kl` | `group_normalised` | mean |
    | Dr. GRPO | token | 0.2 | `group_mean` | constant |
    | GSPO | mean | 3e-4, 4e-4 | `group_normalised` | response |
    | DAPO | token | 0.2, 0.28 | `group_normalised` | token |

    Args:
      policy_logps, behaviour_logps, mask: as in `mdloo_loss`. A response without tokens gives 0 and no gradient.
      advantages: `[..., K]`, or for "token" `[..., K, N]` as well; constants.
      low, high: how far rho may go below and above 1 for its gain, at least 0; infinite for no bound.
      dual: bound above 1 of rho where A < 0, whose loss would grow without end: `max(., dual A)`. None is without.

    Returns: PolicyLoss of `[..., K]`; `kl` is the sample form of `mdloo_loss`, by token for "mean". `clipped` is the
    share of actions whose gradient the clip takes away. log rho is held to +-20, beyond which it has no gradient.
    Source: Schulman et al., PPO, arXiv 1707.06347, eq. 7; dual: Ye et al., arXiv 1912.09729; "mean": Zheng et
    al., GSPO, arXiv 2507.18071; bounds of two sizes: Yu et al., DAPO, arXiv 2503.14476.
    """
    policy_logps, behaviour_logps, mask = arguments.group_arrays(
        "clipped_loss", mask, policy_logps=policy_logps, behaviour_logps=behaviour_logps
    )
    arguments.choice("clipped_loss", "level", level, ("token", "sequence", "mean"))
    arguments.number("clipped_loss", "low", low, at_least=0, infinite=True)
    arguments.number("clipped_loss", "high", high, at_least=0, infinite=True)
    if dual is not None:
        arguments.number("clipped_loss", "dual", dual, above=1)
    advantages = checked_advantages("clipped_loss", advantages, mask, by_token=level == "token")
    logs, real = actions(policy_logps, behaviour_logps, mask, level)
    rho = jnp.exp(jnp.clip(logs, -CAP, CAP))
    # said as where the bounds bind, not as a minimum: at a tie the gradient would be halved
    clipped = jnp.where(advantages > 0, rho > 1.0 + high, (advantages < 0) & (rho < 1.0 - low))
    bounded = jnp.where(clipped, jnp.where(advantages > 0, 1.0 + high, 1.0 - low), rho)
    if dual is not None:
        runs_away = (advantages < 0) & (rho > dual)
        clipped, bounded = clipped | runs_away, jnp.where(runs_away, dual, bounded)
    by_token, _ = actions(policy_logps, behaviour_logps, mask, "token" if level == "mean" else level)
    kl = sample_kl(jnp.clip(by_token, -CAP, CAP)).sum(-1)
    ratio, share = mean_of_actions(rho, real, 1.0), mean_of_actions(clipped, real, 0.0)
    return PolicyLoss(-(bounded * advantages).sum(-1), *jax.lax.stop_gradient((ratio, kl, share)))
