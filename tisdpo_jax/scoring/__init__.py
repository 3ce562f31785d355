"""Scoring: element log-likelihoods and full-vocabulary KL, for any number of models over a batch.

An argument of another shape, dtype or range is a ValueError that names it, when traced (see `tisdpo_jax.arguments`).
"""

from tisdpo_jax.scoring._fused import fused_logps, fused_logps_and_kl
from tisdpo_jax.scoring._logits import Direction, kl_from_logits, logps_from_logits, next_token, pairs, unpairs
from tisdpo_jax.scoring._reward import reward_scores
from tisdpo_jax.scoring.scorer import Scorer, Text, contrast_scores, read, score, score_pair_of_models

__all__ = [
    "Direction",
    "Scorer",
    "Text",
    "contrast_scores",
    "fused_logps",
    "fused_logps_and_kl",
    "kl_from_logits",
    "logps_from_logits",
    "next_token",
    "pairs",
    "read",
    "reward_scores",
    "score",
    "score_pair_of_models",
    "unpairs",
]
