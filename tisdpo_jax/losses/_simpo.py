"""SimPO: preference optimisation by mean log-likelihoods, without a reference."""

from __future__ import annotations

import jax

from tisdpo_jax import arguments
from tisdpo_jax.losses._dpo import logistic
from tisdpo_jax.losses._pairs import PairLoss, mean_logps, sides

Array = jax.Array


def simpo_loss(
    policy_logps: Array, mask: Array, *, beta: float = 2.0, gamma: float = 1.0, label_smoothing: float = 0.0
) -> PairLoss:
    """`-log sigmoid(beta (mean_c - mean_r) - gamma)`, means of log-likelihoods over the tokens of a response.

    Args:
      policy_logps: `[..., 2, N]` log-likelihoods of response tokens under the policy.
      mask: `[..., 2, N]`, 1 on real response tokens. A response without any has mean 0.
      beta: scale of the means, above 0; larger than DPO's, since means are smaller than sums.
      gamma: margin that the chosen response is to win by, in nats of the logit, at least 0.
      label_smoothing: share of labels taken as flipped, in [0, 0.5].

    Returns: PairLoss of `[...]`; rewards are beta times the mean log-likelihoods.
    Source: Meng et al., SimPO, arXiv 2405.14734, eq. 6. Public code: the ratio gamma / beta; here: the paper's gamma.
    """
    policy_logps, mask = arguments.pair_arrays("simpo_loss", mask, policy_logps=policy_logps)
    arguments.number("simpo_loss", "beta", beta, above=0)
    arguments.number("simpo_loss", "gamma", gamma, at_least=0)
    arguments.number("simpo_loss", "label_smoothing", label_smoothing, at_least=0, at_most=0.5)
    chosen, rejected = sides(mean_logps(policy_logps, mask))
    loss = logistic(beta * (chosen - rejected) - gamma, label_smoothing)  # eq. 6
    return PairLoss(loss, *jax.lax.stop_gradient((beta * chosen, beta * rejected)))
