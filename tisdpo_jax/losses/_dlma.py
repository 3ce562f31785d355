"""DLMA: DPO with the model's own contrastive score of the pair as a margin; with token weights, TIS-DPO with it."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from tisdpo_jax import arguments
from tisdpo_jax.losses._dpo import logistic
from tisdpo_jax.losses._pairs import PairLoss, log_ratios, sides
from tisdpo_jax.losses._tisdpo import weighted_logits

Array = jax.Array


def dlma_loss(
    policy_logps: Array,
    reference_logps: Array,
    mask: Array,
    *,
    self_reward: Array,
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
      margin_coef: beta1 / beta, at least 0.
      lower, upper: clamp of R, in nats.
      weights, token_kl, kl_coef: as in `tisdpo_loss`; there is no KL term without weights, and none may be given.
      label_smoothing: share of labels taken as flipped, in [0, 0.5].

    Returns: PairLoss of `[...]`; rewards are beta times the log-ratios, weighted where there are weights, and summed.
    Source: Liu et al., DLMA, arXiv 2402.11907, eq. 7-8; constants of its public code. Weights and margin together are
    of this package.
    """
    arguments.number("dlma_loss", "label_smoothing", label_smoothing, at_least=0, at_most=0.5)
    arguments.number("dlma_loss", "margin_coef", margin_coef, at_least=0)
    arguments.clamp("dlma_loss", lower, upper)
    if weights is None:
        if token_kl is not None:
            raise ValueError(
                "dlma_loss: token_kl comes without weights; the KL term is that of TIS-DPO, which has both"
            )
        policy_logps, reference_logps, mask = arguments.pair_arrays(
            "dlma_loss", mask, policy_logps=policy_logps, reference_logps=reference_logps
        )
        arguments.number("dlma_loss", "beta", beta, above=0)
        chosen, rejected = sides(log_ratios(policy_logps, reference_logps, mask).sum(-1))
        logits = beta * (chosen - rejected)
    else:
        logits, chosen, rejected = weighted_logits(
            "dlma_loss",
            policy_logps,
            reference_logps,
            mask,
            weights=weights,
            beta=beta,
            token_kl=token_kl,
            kl_coef=kl_coef,
        )
    self_reward = arguments.floats("dlma_loss", "self_reward", self_reward)
    if self_reward.shape != chosen.shape:
        raise ValueError(
            f"dlma_loss: self_reward has shape {self_reward.shape}; it must be {chosen.shape}, one number for each "
            "pair: R of chosen minus rejected, summed over tokens"
        )
    margin = jnp.clip(jax.lax.stop_gradient(self_reward).astype(jnp.float32), lower, upper)
    loss = logistic(logits - beta * margin_coef * margin, label_smoothing)
    return PairLoss(loss, *jax.lax.stop_gradient((beta * chosen, beta * rejected)))
