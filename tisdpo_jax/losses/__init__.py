"""Losses: pure functions of `[..., response, element]` log-likelihoods, or of the rewards of responses.

Of pairs (the responses are chosen and rejected) and of groups of K, for online reinforcement learning; for reward
models and distillation too. `(policy_logps, reference_logps, mask)` by position, without the second where there is no
reference, everything else by keyword, so that no two other arrays of one shape can be swapped. Per pair or per response
and unreduced; float32 inside. An argument of another shape, dtype or range is a ValueError that names it, when traced
(see `tisdpo_jax.arguments`, also for what shapes cannot tell). Importing this loads jax and nothing else.
"""

from tisdpo_jax.losses._clipped import clipped_loss
from tisdpo_jax.losses._distill import top1_distillation
from tisdpo_jax.losses._dlma import dlma_loss
from tisdpo_jax.losses._dpo import dpo_loss, ipo_loss
from tisdpo_jax.losses._kto import kto_loss
from tisdpo_jax.losses._mdloo import mdloo_loss
from tisdpo_jax.losses._orpo import orpo_loss
from tisdpo_jax.losses._pairs import PairLoss
from tisdpo_jax.losses._policy import PolicyLoss, reference_kl
from tisdpo_jax.losses._reductions import REDUCE
from tisdpo_jax.losses._reinforce import reinforce_loss
from tisdpo_jax.losses._reward import TARGETS, grade_loss, reward_loss
from tisdpo_jax.losses._sampler import sampler_weights
from tisdpo_jax.losses._sft import sft_loss
from tisdpo_jax.losses._simpo import simpo_loss
from tisdpo_jax.losses._tdpo import tdpo_loss
from tisdpo_jax.losses._tisdpo import tisdpo_loss

__all__ = [
    "REDUCE",
    "TARGETS",
    "PairLoss",
    "PolicyLoss",
    "clipped_loss",
    "dlma_loss",
    "dpo_loss",
    "grade_loss",
    "ipo_loss",
    "kto_loss",
    "mdloo_loss",
    "orpo_loss",
    "reference_kl",
    "reinforce_loss",
    "reward_loss",
    "sampler_weights",
    "sft_loss",
    "simpo_loss",
    "tdpo_loss",
    "tisdpo_loss",
    "top1_distillation",
]
