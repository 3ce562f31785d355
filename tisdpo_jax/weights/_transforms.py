"""What the public PyTorch code makes of the log-ratios; for comparison, never the default.

It stores `log pi- - log pi+` rounded to two decimals, flips the sign for the chosen side on loading, and
passes the result through one of these. So on both sides a larger value means "this token makes the
label": `d = log pi+ - log pi-` on chosen, `log pi- - log pi+` on rejected. It gives the end-of-turn token
weight 0 always; `zero_last=True` does that here (to the last real token of each response).
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from tisdpo_jax import arguments
from tisdpo_jax.weights._controls import rank_share
from tisdpo_jax.weights._importance import checked_pairs, signed, token_rewards

Array = jax.Array

_LOW, _HIGH = 0.7, 1.3  # the range that the public code maps ranks and scaled values to


def _stored(
    function: str, positive_logps: Array, negative_logps: Array, mask: Array, zero_last: bool
) -> tuple[Array, Array]:
    """d as the public code stores it, and the mask; the arguments are checked in the name of `function`."""
    positive_logps, negative_logps, mask = checked_pairs(function, positive_logps, negative_logps, mask)
    arguments.flag(function, "zero_last", zero_last)
    ratio = token_rewards(positive_logps, negative_logps, mask)
    return signed(jnp.round(ratio * 100.0) / 100.0), mask


def _finish(weights: Array, mask: Array, zero_last: bool) -> Array:
    real = mask > 0
    if zero_last:
        last = real.sum(-1, keepdims=True) - 1
        real &= jnp.cumsum(real, axis=-1) - 1 < last
    return jax.lax.stop_gradient(jnp.where(real, weights, 0.0).astype(jnp.float32))


def origin(positive_logps: Array, negative_logps: Array, mask: Array, *, zero_last: bool = False) -> Array:
    """The raw value d: may be negative, and is 0 where the two models agree."""
    values, mask = _stored("origin", positive_logps, negative_logps, mask, zero_last)
    return _finish(values, mask, zero_last)


def threshold(positive_logps: Array, negative_logps: Array, mask: Array, *, zero_last: bool = False) -> Array:
    """d clamped to [-1, 1] and used as it is: negative weights occur."""
    values, mask = _stored("threshold", positive_logps, negative_logps, mask, zero_last)
    return _finish(jnp.clip(values, -1.0, 1.0), mask, zero_last)


def threshold_and_scale(positive_logps: Array, negative_logps: Array, mask: Array, *, zero_last: bool = False) -> Array:
    """d clamped to [-1.5, 1.5], then mapped linearly to [0.7, 1.3]."""
    values, mask = _stored("threshold_and_scale", positive_logps, negative_logps, mask, zero_last)
    clamped = jnp.clip(values, -1.5, 1.5)
    return _finish(_LOW + (_HIGH - _LOW) * (clamped + 1.5) / 3.0, mask, zero_last)


def rank_based(positive_logps: Array, negative_logps: Array, mask: Array, *, zero_last: bool = False) -> Array:
    """Rank of d within the response, mapped to [0.7, 1.3]; ties by position."""
    values, mask = _stored("rank_based", positive_logps, negative_logps, mask, zero_last)
    share = rank_share(values, mask)
    return _finish(_LOW + (_HIGH - _LOW) * share, mask, zero_last)


def binary(
    positive_logps: Array, negative_logps: Array, mask: Array, *, top_percent: float = 100.0, zero_last: bool = False
) -> Array:
    """1 on the top `top_percent` % of each response by d, 0 on the rest; at 100 every weight is 1, at 0 none."""
    arguments.number("binary", "top_percent", top_percent, at_least=0, at_most=100)
    values, mask = _stored("binary", positive_logps, negative_logps, mask, zero_last)
    real = mask > 0
    order = jnp.argsort(jnp.where(real, -values, jnp.inf), axis=-1, stable=True)
    place = jnp.argsort(order, axis=-1, stable=True)  # 0 for the largest
    kept = jnp.ceil(real.sum(-1, keepdims=True) * top_percent / 100.0)  # in this order whole shares stay whole
    return _finish((place < kept).astype(jnp.float32), mask, zero_last)


def random(positive_logps: Array, negative_logps: Array, mask: Array, *, key: Array, zero_last: bool = False) -> Array:
    """U(0.7, 1.3), whatever the models say."""
    _, mask = _stored("random", positive_logps, negative_logps, mask, zero_last)
    return _finish(jax.random.uniform(key, mask.shape, jnp.float32, _LOW, _HIGH), mask, zero_last)


TRANSFORMS: dict[str, Callable[..., Array]] = {
    "binary": binary,
    "origin": origin,
    "random": random,
    "rank_based": rank_based,
    "threshold": threshold,
    "threshold_and_scale": threshold_and_scale,
}
"""Name -> function(positive_logps, negative_logps, mask, *, zero_last=False); `random` also takes `key`."""
