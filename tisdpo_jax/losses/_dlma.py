"""DLMA: DPO with the model's own contrastive score of the pair as a margin; with token weights, TIS-DPO with it."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from tisdpo_jax.losses._dpo import logistic
from tisdpo_jax.losses._pairs import PairLoss, log_ratios, sides
from tisdpo_jax.losses._tisdpo import weighted_logits

Array = jax.Array


def dlma_loss(
    policy_logps: Array,
    reference_logps: Array,
    self_reward: Array,
    mask: Array,
    *,
    beta: float = 0.1,
    margin_coef: float = 0.2,
    lower: float = -40.0,
    upper: float = 40.0,
    weights: Array | None = None,
    token_kl: Array | None = None,
    kl_coef: float = 1.0,
    label_smoothing: float = 0.0,
) -> PairLoss:
    """`-log sigmoid(beta h - beta1 clamp(R, lower, upper))`, with `beta1 = beta * margin_coef`.

    With `weights`, the loss of TIS-DPO with that margin: `-log sigmoid(u - eta - beta1 clamp(R, lower, upper))`.
    Weights and R come from the same log-ratios of pi+ and pi-: R is their sum over tokens, chosen minus rejected.

    Args:
      policy_logps, reference_logps, mask: as in `dpo_loss`.
      self_reward: `[...]`, R: the contrast of chosen minus that of rejected, summed over tokens; a constant.
      margin_coef: beta1 / beta.
      lower, upper: clamp of R, in nats.
      weights, token_kl, kl_coef: as in `tisdpo_loss`; without weights there is no KL term.
      label_smoothing: share of labels taken as flipped, in [0, 0.5].

    Returns: PairLoss of `[...]`; rewards are beta times the log-ratios, weighted where there are weights, and summed.
    Source: Liu et al., DLMA, arXiv 2402.11907, eq. 7-8; constants of its public code. Weights and margin together are
    of this package.
    """
    if weights is None:
        chosen, rejected = sides(log_ratios(policy_logps, reference_logps, mask).sum(-1))
        logits = beta * (chosen - rejected)
    else:
        logits, chosen, rejected = weighted_logits(
            policy_logps, reference_logps, weights, mask, beta=beta, token_kl=token_kl, kl_coef=kl_coef
        )
    margin = jnp.clip(jax.lax.stop_gradient(self_reward).astype(jnp.float32), lower, upper)
    loss = logistic(logits - beta * margin_coef * margin, label_smoothing)
    return PairLoss(loss, *jax.lax.stop_gradient((beta * chosen, beta * rejected)))
