"""ORPO: fine-tuning on the chosen response with an odds ratio against the rejected one, without a reference."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from tisdpo_jax import arguments
from tisdpo_jax.losses._pairs import PairLoss, mean_logps, sides

Array = jax.Array


def orpo_loss(policy_logps: Array, mask: Array, *, coef: float = 0.1) -> PairLoss:
    """`-mean_c - coef log sigmoid(logit(exp mean_c) - logit(exp mean_r))`, means of log-likelihoods over tokens.

    Args:
      policy_logps: `[..., 2, N]` log-likelihoods of response tokens under the policy.
      mask: `[..., 2, N]`, 1 on real response tokens.
      coef: the paper's lambda, at least 0; at 0 this is fine-tuning on the chosen response, each pair counting alike.

    Returns: PairLoss of `[...]`; rewards are coef times the mean log-likelihoods.
    Source: Hong et al., ORPO, arXiv 2403.07691, eq. 6-7.
    """
    policy_logps, mask = arguments.pair_arrays("orpo_loss", mask, policy_logps=policy_logps)
    arguments.number("orpo_loss", "coef", coef, at_least=0)
    means = mean_logps(policy_logps, mask)
    chosen, rejected = sides(means)
    odds_chosen, odds_rejected = sides(means - log1mexp(means))  # log odds: log p - log(1 - p)
    loss = -chosen - coef * jax.nn.log_sigmoid(odds_chosen - odds_rejected)
    return PairLoss(loss, *jax.lax.stop_gradient((coef * chosen, coef * rejected)))


def log1mexp(x: Array) -> Array:
    """`log(1 - exp(x))` for x <= 0, exact at both ends; at 0, a certain response, that of the nearest float below 1."""
    x = jnp.minimum(x, -jnp.finfo(jnp.float32).eps)
    near = x > -0.6931472  # log 2: each form where it keeps its digits
    return jnp.where(near, jnp.log(-jnp.expm1(jnp.where(near, x, -1.0))), jnp.log1p(-jnp.exp(jnp.where(near, -1.0, x))))
