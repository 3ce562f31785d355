"""Token weights: pure functions `(positive_logps, negative_logps, mask) -> [..., 2, N]`, everything else by keyword.

`importance_weights` is the paper's formula; `CONTROLS` are what it has to beat; `TRANSFORMS` is what the
public PyTorch code does. None lets a gradient through. What an argument cannot be is a ValueError that names it; see
`tisdpo_jax.arguments`. Importing this loads jax and nothing else.
"""

from collections.abc import Callable

from jax import Array

from tisdpo_jax.weights._controls import log_uniform, position, rank, shuffled, uniform
from tisdpo_jax.weights._entropy import entropy_weights
from tisdpo_jax.weights._importance import importance_weights, token_rewards
from tisdpo_jax.weights._sums import weighted_sums
from tisdpo_jax.weights._transforms import TRANSFORMS

CONTROLS: dict[str, Callable[..., Array]] = {
    "log_uniform": log_uniform,
    "position": position,
    "rank": rank,
    "shuffled": shuffled,
    "uniform": uniform,
}
"""Name -> function(positive_logps, negative_logps, mask, ...); the random ones take `key`."""

__all__ = [
    "CONTROLS",
    "TRANSFORMS",
    "entropy_weights",
    "importance_weights",
    "log_uniform",
    "position",
    "rank",
    "shuffled",
    "token_rewards",
    "uniform",
    "weighted_sums",
]
