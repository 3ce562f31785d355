"""DPO (with conservative labels) and IPO."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from tisdpo_jax import arguments
from tisdpo_jax.losses._pairs import PairLoss, log_ratios, sides

Array = jax.Array


def logistic(logits: Array, label_smoothing: float | Array) -> Array:
    """`-log sigmoid` of the logits; a share `label_smoothing` of the labels is taken as flipped."""
    kept, flipped = -jax.nn.log_sigmoid(logits), -jax.nn.log_sigmoid(-logits)
    return (1.0 - label_smoothing) * kept + label_smoothing * flipped


def dpo_loss(
    policy_logps: Array, reference_logps: Array, mask: Array, *, beta: float = 0.1, label_smoothing: float = 0.0
) -> PairLoss:
    """Direct preference optimisation: `-log sigmoid(beta h)`, h the log-ratio of chosen minus rejected.

    Args:
      policy_logps: `[..., 2, N]` log-likelihoods of response tokens under the policy.
      reference_logps: `[..., 2, N]`, the same under the reference; receives no gradient.
      mask: `[..., 2, N]`, 1 on real response tokens. A pair without any gives log 2 and no gradient.
      beta: strength of the reference, above 0.
      label_smoothing: share of labels taken as flipped, in [0, 0.5] (conservative DPO).

    Returns: PairLoss of `[...]`; rewards are beta times the summed log-ratios.
    Source: Rafailov et al., arXiv 2305.18290, eq. 7; smoothing: Mitchell, "A note on DPO with noisy preferences".
    """
    policy_logps, reference_logps, mask = arguments.pair_arrays(
        "dpo_loss", mask, policy_logps=policy_logps, reference_logps=reference_logps
    )
    arguments.number("dpo_loss", "beta", beta, above=0)
    arguments.number("dpo_loss", "label_smoothing", label_smoothing, at_least=0, at_most=0.5)
    chosen, rejected = sides(log_ratios(policy_logps, reference_logps, mask).sum(-1))
    loss = logistic(beta * (chosen - rejected), label_smoothing)  # eq. 7
    return PairLoss(loss, *jax.lax.stop_gradient((beta * chosen, beta * rejected)))


def ipo_loss(
    policy_logps: Array, reference_logps: Array, mask: Array, *, beta: float = 0.1, average: bool = False
) -> PairLoss:
    """Identity preference optimisation: `(h - 1 / (2 beta))^2`.

    Args:
      policy_logps, reference_logps, mask: as in `dpo_loss`.
      beta: the paper's tau, above 0.
      average: h from log-ratios averaged over the tokens of each response, as TRL does; the paper sums.

    Returns: PairLoss of `[...]`; rewards are beta times the log-ratios (averaged where `average`).
    Source: Azar et al., arXiv 2310.12036, eq. 17.
    """
    policy_logps, reference_logps, mask = arguments.pair_arrays(
        "ipo_loss", mask, policy_logps=policy_logps, reference_logps=reference_logps
    )
    arguments.number("ipo_loss", "beta", beta, above=0)
    arguments.flag("ipo_loss", "average", average)
    totals = log_ratios(policy_logps, reference_logps, mask).sum(-1)
    if average:
        totals = totals / jnp.maximum((mask > 0).sum(-1), 1)
    chosen, rejected = sides(totals)
    loss = jnp.square(chosen - rejected - 1.0 / (2.0 * beta))  # eq. 17
    return PairLoss(loss, *jax.lax.stop_gradient((beta * chosen, beta * rejected)))
