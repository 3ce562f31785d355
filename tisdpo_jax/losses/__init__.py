"""Preference losses: pure functions of `[..., side, element]` log-likelihoods.

`(policy_logps, reference_logps, mask)` by position, without the second where there is no reference, everything else by
keyword, so that no two other arrays of one shape can be swapped. Per-pair and unreduced; float32 inside. An argument of
another shape, dtype or range is a ValueError that names it, when traced (see `tisdpo_jax.arguments`, also for what
shapes cannot tell). Importing this loads jax and nothing else.
"""

from tisdpo_jax.losses._dlma import dlma_loss
from tisdpo_jax.losses._dpo import dpo_loss, ipo_loss
from tisdpo_jax.losses._kto import kto_loss
from tisdpo_jax.losses._orpo import orpo_loss
from tisdpo_jax.losses._pairs import PairLoss
from tisdpo_jax.losses._reward import reward_loss
from tisdpo_jax.losses._sft import sft_loss
from tisdpo_jax.losses._simpo import simpo_loss
from tisdpo_jax.losses._tdpo import tdpo_loss
from tisdpo_jax.losses._tisdpo import tisdpo_loss

__all__ = [
    "PairLoss",
    "dlma_loss",
    "dpo_loss",
    "ipo_loss",
    "kto_loss",
    "orpo_loss",
    "reward_loss",
    "sft_loss",
    "simpo_loss",
    "tdpo_loss",
    "tisdpo_loss",
]
