"""Every loss of log-likelihoods as a function of `Pairs`, so that one test can be made of all of them."""

from __future__ import annotations

from collections.abc import Callable

import jax.numpy as jnp

from tisdpo_jax import losses, weights
from tisdpo_jax.losses import PairLoss, PolicyLoss
from tisdpo_jax.testing import Pairs

INFINITE = float("inf")

Case = Callable[[Pairs], PairLoss]
GroupCase = Callable[[Pairs], PolicyLoss]


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


def by_response(p: Pairs):
    """Advantages: some numbers for each response, of both signs, that say nothing of the policy."""
    return jnp.clip(weights.token_rewards(p.positive_logps, p.negative_logps, p.mask).sum(-1), -2.0, 2.0)


def by_token(p: Pairs):
    return jnp.clip(weights.token_rewards(p.positive_logps, p.negative_logps, p.mask) + 0.3, -2.0, 2.0)  # none is 0


def _mdloo(p: Pairs, **options) -> PolicyLoss:
    return losses.mdloo_loss(*_three(p), **{"advantages": by_response(p), "gamma": 0.7, **options})


def _clipped(p: Pairs, **options) -> PolicyLoss:
    return losses.clipped_loss(*_three(p), **{"advantages": by_response(p), **options})


def _grpo(p: Pairs) -> PolicyLoss:
    out = _clipped(p)
    return out._replace(loss=out.loss + 0.04 * losses.reference_kl(*_three(p)))


GROUP_LOSSES: dict[str, GroupCase] = {
    "mdloo": _mdloo,
    "mdloo, exact KL": lambda p: _mdloo(p, token_kl=p.token_kl),
    "mdloo by token": lambda p: _mdloo(p, level="token", advantages=by_token(p)),
    "mdloo by token, exact KL": lambda p: _mdloo(p, level="token", token_kl=p.token_kl),
    "ppo": lambda p: _clipped(p, advantages=by_token(p)),
    "ppo, dual": lambda p: _clipped(p, dual=1.5, low=0.5, high=0.6),
    "rloo": lambda p: _clipped(p, level="sequence"),
    "grpo": _grpo,
    "gspo": lambda p: _clipped(p, level="mean", low=0.05, high=0.07),
    "unclipped": lambda p: _clipped(p, low=INFINITE, high=INFINITE),
    "reinforce": lambda p: losses.reinforce_loss(p.policy_logps, p.mask, advantages=by_response(p)),
    "reinforce by token": lambda p: losses.reinforce_loss(p.policy_logps, p.mask, advantages=by_token(p)),
}
"""Those of groups of any number of responses, here two, with a loss for each; the reference is who sampled."""

ALL: dict[str, Callable[[Pairs], PairLoss | PolicyLoss]] = {**LOSSES, **GROUP_LOSSES}

CLIPS = {"ppo", "ppo, dual", "rloo", "gspo"}
"""Those whose gradient is 0 at some tokens that count."""

TAKES_KL = {
    *("tdpo 1", "tdpo 2", "tisdpo with KL", "dlma with weights and KL"),
    *("mdloo, exact KL", "mdloo by token, exact KL"),
}
"""Those that let a gradient through to `token_kl`."""

OF_THE_BATCH = {"kto of the batch"}
"""Those in which one pair's loss depends on the others."""
