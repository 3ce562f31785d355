"""Every pair loss as a function of `Pairs`, so that one test can be made of all of them."""

from __future__ import annotations

from collections.abc import Callable

import jax.numpy as jnp

from tisdpo_jax import losses, weights
from tisdpo_jax.losses import PairLoss
from tisdpo_jax.testing import Pairs

Case = Callable[[Pairs], PairLoss]


def _weights(p: Pairs):
    return weights.importance_weights(p.positive_logps, p.negative_logps, p.mask)


def _self_reward(p: Pairs):
    per_side = weights.token_rewards(p.positive_logps, p.negative_logps, p.mask).sum(-1)
    return per_side[..., 0] - per_side[..., 1]


def _three(p: Pairs):
    return p.policy_logps, p.reference_logps, p.mask


def _tdpo(p: Pairs, variant: int) -> PairLoss:
    return losses.tdpo_loss(p.policy_logps, p.reference_logps, p.mask, token_kl=p.token_kl, beta=0.3, variant=variant)


def _tisdpo(p: Pairs, **options) -> PairLoss:
    return losses.tisdpo_loss(p.policy_logps, p.reference_logps, p.mask, weights=_weights(p), beta=0.3, **options)


LOSSES: dict[str, Case] = {
    "dpo": lambda p: losses.dpo_loss(*_three(p), beta=0.3),
    "dpo smoothed": lambda p: losses.dpo_loss(*_three(p), beta=0.3, label_smoothing=0.1),
    "ipo": lambda p: losses.ipo_loss(*_three(p), beta=0.3),
    "ipo averaged": lambda p: losses.ipo_loss(*_three(p), beta=0.3, average=True),
    "tdpo 1": lambda p: _tdpo(p, 1),
    "tdpo 2": lambda p: _tdpo(p, 2),
    "kto": lambda p: losses.kto_loss(
        *_three(p), beta=0.3, kl=jnp.asarray([0.4, 0.7]), desirable_weight=1.2, undesirable_weight=0.7
    ),
    "kto of the batch": lambda p: losses.kto_loss(*_three(p), beta=0.3),
    "dlma": lambda p: losses.dlma_loss(*_three(p), self_reward=_self_reward(p), beta=0.3),
    "dlma with weights and KL": lambda p: losses.dlma_loss(
        *_three(p),
        self_reward=_self_reward(p),
        beta=0.3,
        weights=_weights(p),
        token_kl=p.token_kl,
        kl_coef=0.5,
        label_smoothing=0.05,
    ),
    "simpo": lambda p: losses.simpo_loss(p.policy_logps, p.mask, beta=2.0, gamma=0.6, label_smoothing=0.05),
    "orpo": lambda p: losses.orpo_loss(p.policy_logps, p.mask, coef=0.3),
    "tisdpo": _tisdpo,
    "tisdpo with KL": lambda p: _tisdpo(p, token_kl=p.token_kl, kl_coef=0.5, label_smoothing=0.05),
}

TAKES_KL = {"tdpo 1", "tdpo 2", "tisdpo with KL", "dlma with weights and KL"}
"""Those that let a gradient through to `token_kl`."""

OF_THE_BATCH = {"kto of the batch"}
"""Those in which one pair's loss depends on the others."""
