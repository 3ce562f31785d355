"""The loss of reward models: Bradley-Terry with a soft label."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from tisdpo_jax import arguments
from tisdpo_jax.losses._pairs import PairLoss, sides

Array = jax.Array


def reward_loss(rewards: Array, *, target: Array | float = 1.0, center_coef: float = 0.0) -> PairLoss:
    """`-p log sigmoid(d) - (1 - p) log sigmoid(-d) + center_coef (r_c + r_r)^2`, `d = r_c - r_r`.

    Smallest at `d = logit(p)`; with p = 1 it is Bradley-Terry's, and log 2 where both rewards are equal.

    Args:
      rewards: `[..., 2]`, of the chosen and of the rejected response, in nats of the odds.
      target: p, the probability that the chosen response is the better one, in [0, 1]; a number, or `[...]`. No
        gradient.
      center_coef: draws the two rewards of a pair towards a sum of 0, at least 0.

    Returns: PairLoss of `[...]`; its rewards are those that came in, without a gradient.
    Source: soft labels by strength of preference: Apple, arXiv 2407.21075, section on reward models. Centring: TRL's
      `center_rewards_coefficient` (a mean over pairs of the same square).
    """
    rewards = arguments.floats("reward_loss", "rewards", rewards)
    if not rewards.shape or rewards.shape[-1] != 2:
        raise ValueError(f"reward_loss: rewards has shape {rewards.shape}; it must be [..., 2], chosen and rejected")
    if getattr(target, "shape", ()) == ():
        arguments.number("reward_loss", "target", target, at_least=0, at_most=1)
    else:
        target = arguments.floats("reward_loss", "target", target)
        arguments.same_shape("reward_loss", "target", target, "the pairs of rewards", rewards.shape[:-1])
    arguments.number("reward_loss", "center_coef", center_coef, at_least=0)
    chosen, rejected = sides(rewards.astype(jnp.float32))
    p, margin = jax.lax.stop_gradient(jnp.asarray(target, jnp.float32)), chosen - rejected
    loss = -p * jax.nn.log_sigmoid(margin) - (1 - p) * jax.nn.log_sigmoid(-margin)
    loss = loss + center_coef * jnp.square(chosen + rejected)
    return PairLoss(loss, *jax.lax.stop_gradient((chosen, rejected)))
