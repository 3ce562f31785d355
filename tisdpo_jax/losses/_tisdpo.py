"""TIS-DPO: DPO in which every token carries an importance weight."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from tisdpo_jax import arguments
from tisdpo_jax.losses._dpo import logistic
from tisdpo_jax.losses._pairs import PairLoss, log_ratios, masked, sides

Array = jax.Array


def tisdpo_loss(
    policy_logps: Array,
    reference_logps: Array,
    mask: Array,
    *,
    weights: Array,
    beta: float = 0.1,
    token_kl: Array | None = None,
    kl_coef: float = 1.0,
    label_smoothing: float = 0.0,
) -> PairLoss:
    """`-log sigmoid(u - eta)`, both sums over tokens weighted by `weights`.

        u   = beta (sum_t w_t m_t  of chosen - of rejected),  m_t = log pi - log pi_ref
        eta = beta (sum_t w_t KL_t of chosen - of rejected)

    Args:
      policy_logps, reference_logps: `[..., 2, N]` log-likelihoods; no gradient to the reference.
      mask: `[..., 2, N]`, 1 on real response tokens. A pair without any gives log 2 and no gradient.
      weights: `[..., 2, N]` from `tisdpo_jax.weights`; taken as constants.
      beta: strength of the reference, above 0.
      token_kl: `[..., 2, N]`, KL(policy || reference) over the vocabulary at each token, unweighted;
        the gradient flows through it. None leaves eta out.
      kl_coef: coefficient of eta, at least 0.
      label_smoothing: share of labels taken as flipped, in [0, 0.5].

    Returns: PairLoss of `[...]`; rewards are beta times the weighted log-ratios.
    Source: Liu et al., TIS-DPO, arXiv 2410.04350, eq. 13-15. Paper: coefficient of eta 1; public code: 0.5,
    and eta off by default; here: the paper's.
    """
    arguments.number("tisdpo_loss", "label_smoothing", label_smoothing, at_least=0, at_most=0.5)
    logits, chosen, rejected = weighted_logits(
        "tisdpo_loss",
        policy_logps,
        reference_logps,
        mask,
        weights=weights,
        beta=beta,
        token_kl=token_kl,
        kl_coef=kl_coef,
    )
    loss = logistic(logits, label_smoothing)
    return PairLoss(loss, *jax.lax.stop_gradient((beta * chosen, beta * rejected)))


def weighted_logits(
    function: str,
    policy_logps: Array,
    reference_logps: Array,
    mask: Array,
    *,
    weights: Array,
    beta: float,
    token_kl: Array | None,
    kl_coef: float,
) -> tuple[Array, Array, Array]:
    """`u - eta` of every pair, and the weighted log-ratios of chosen and rejected; for `function`, shared with DLMA."""
    policy_logps, reference_logps, weights, mask = arguments.pair_arrays(
        function, mask, policy_logps=policy_logps, reference_logps=reference_logps, weights=weights
    )
    arguments.number(function, "beta", beta, above=0)
    arguments.number(function, "kl_coef", kl_coef, at_least=0)
    # zero behind the mask: 0 times a NaN or infinite weight there would not be 0
    w = jnp.where(mask > 0, jax.lax.stop_gradient(weights).astype(jnp.float32), 0.0)
    chosen, rejected = sides((w * log_ratios(policy_logps, reference_logps, mask)).sum(-1))
    logits = beta * (chosen - rejected)  # u
    if token_kl is not None:
        token_kl = arguments.floats(function, "token_kl", token_kl)
        arguments.same_shape(function, "token_kl", token_kl, "policy_logps", policy_logps.shape)
        kl_chosen, kl_rejected = sides((w * masked(token_kl, mask)).sum(-1))
        logits = logits - kl_coef * beta * (kl_chosen - kl_rejected)  # u - eta
    return logits, chosen, rejected
