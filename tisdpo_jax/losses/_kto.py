"""KTO on pairs: chosen responses are desirable, rejected ones undesirable."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from tisdpo_jax import arguments
from tisdpo_jax.losses._pairs import PairLoss, log_ratios, sides

Array = jax.Array


def kto_loss(
    policy_logps: Array,
    reference_logps: Array,
    mask: Array,
    *,
    beta: float = 0.1,
    kl: Array | None = None,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
) -> PairLoss:
    """Half the sum of `1 - sigmoid(beta (h_c - z_c))` and `1 - sigmoid(beta (z_r - h_r))`.

    Half, so that the mean over pairs is the mean over single responses, as in TRL.

    Args:
      policy_logps, reference_logps, mask: as in `dpo_loss`.
      kl: the reference point z: `[]` for both sides, `[2]` by side, or `[..., 2]` by response; no
        gradient. None estimates it from the pairs at hand: z of a side is the mean summed log-ratio of the
        *other* side over all pairs that have one, at least 0. It then depends on the batch, and under
        micro-batching on the micro-batch.
      desirable_weight, undesirable_weight: weights of the two halves, at least 0.

    Returns: PairLoss of `[...]`; rewards are beta times the summed log-ratios.
    Source: Ethayarajh et al., arXiv 2402.01306, eq. 8; the paired estimate is that of its public code.
    """
    policy_logps, reference_logps, mask = arguments.pair_arrays(
        "kto_loss", mask, policy_logps=policy_logps, reference_logps=reference_logps
    )
    arguments.number("kto_loss", "beta", beta, above=0)
    arguments.number("kto_loss", "desirable_weight", desirable_weight, at_least=0)
    arguments.number("kto_loss", "undesirable_weight", undesirable_weight, at_least=0)
    totals = log_ratios(policy_logps, reference_logps, mask).sum(-1)
    if kl is None:
        real = (mask > 0).any(-1)
        axes = tuple(range(totals.ndim - 1))
        means = totals.sum(axes) / jnp.maximum(real.sum(axes), 1)
        kl = jnp.maximum(means[::-1], 0.0)
    kl = arguments.floats("kto_loss", "kl", kl)
    if kl.shape not in ((), (2,), totals.shape):
        raise ValueError(f"kto_loss: kl has shape {kl.shape}; it must be (), (2,) or {totals.shape}, by response")
    z = jnp.broadcast_to(jax.lax.stop_gradient(kl).astype(jnp.float32), totals.shape)
    (chosen, rejected), (z_chosen, z_rejected) = sides(totals), sides(z)
    desirable = desirable_weight * jax.nn.sigmoid(-beta * (chosen - z_chosen))
    undesirable = undesirable_weight * jax.nn.sigmoid(-beta * (z_rejected - rejected))
    return PairLoss(0.5 * (desirable + undesirable), *jax.lax.stop_gradient((beta * chosen, beta * rejected)))
