"""Token-level DPO, variants 1 and 2."""

from __future__ import annotations

from typing import Literal

import jax

from tisdpo_jax import arguments
from tisdpo_jax.losses._dpo import logistic
from tisdpo_jax.losses._pairs import PairLoss, log_ratios, masked, sides

Array = jax.Array


def tdpo_loss(
    policy_logps: Array,
    reference_logps: Array,
    mask: Array,
    *,
    token_kl: Array,
    beta: float = 0.1,
    alpha: float = 0.5,
    variant: Literal[1, 2] = 2,
) -> PairLoss:
    """DPO with the difference of sequential KLs, `K = sum_t KL(reference || policy)`.

        variant 1: -log sigmoid(beta (h - (K_r - K_c)))
        variant 2: -log sigmoid(beta (h - alpha (K_r - stop_gradient(K_c))))

    Args:
      policy_logps, reference_logps, mask: as in `dpo_loss`.
      token_kl: `[..., 2, N]`, KL(reference || policy): the other direction than TIS-DPO's.
      alpha: coefficient of the KL difference in variant 2, at least 0.

    Returns: PairLoss of `[...]`; rewards are `beta (h_side + K_side)`.
    Source: Zeng et al., arXiv 2404.11999, eq. 14-17.
    """
    policy_logps, reference_logps, token_kl, mask = arguments.pair_arrays(
        "tdpo_loss", mask, policy_logps=policy_logps, reference_logps=reference_logps, token_kl=token_kl
    )
    arguments.number("tdpo_loss", "beta", beta, above=0)
    arguments.number("tdpo_loss", "alpha", alpha, at_least=0)
    arguments.choice("tdpo_loss", "variant", variant, (1, 2))
    chosen, rejected = sides(log_ratios(policy_logps, reference_logps, mask).sum(-1))
    kl_chosen, kl_rejected = sides(masked(token_kl, mask).sum(-1))
    difference = kl_rejected - kl_chosen if variant == 1 else alpha * (kl_rejected - jax.lax.stop_gradient(kl_chosen))
    loss = logistic(beta * (chosen - rejected - difference), 0.0)
    rewards = (beta * (chosen + kl_chosen), beta * (rejected + kl_rejected))
    return PairLoss(loss, *jax.lax.stop_gradient(rewards))
