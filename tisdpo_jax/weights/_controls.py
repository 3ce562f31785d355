"""Controls: weights that a real estimate has to beat. Same arguments and shapes as the estimate."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from tisdpo_jax import arguments
from tisdpo_jax.weights._importance import check_formula, checked_pairs, of_ratios, token_rewards

Array = jax.Array


def uniform(positive_logps: Array, negative_logps: Array, mask: Array) -> Array:
    """Weight 1 on every token: TIS-DPO without token weights."""
    *_, mask = checked_pairs("uniform", positive_logps, negative_logps, mask)
    return (mask > 0).astype(jnp.float32)


def log_uniform(
    positive_logps: Array,
    negative_logps: Array,
    mask: Array,
    *,
    key: Array,
    scale: float = 1.0,
    mu: float = 1.0,
    lower: float = -0.5,
    upper: float = 1.5,
) -> Array:
    """A fair random control: the log-ratio is drawn from U(lower, upper), the rest is the paper's formula.

    The paper draws the weight itself from U(-0.5, 1.5); a quarter of those are negative.
    """
    *_, mask = checked_pairs("log_uniform", positive_logps, negative_logps, mask)
    check_formula("log_uniform", scale, mu, lower, upper)
    drawn = jax.random.uniform(key, mask.shape, jnp.float32, lower, upper)
    return of_ratios(drawn, mask, scale, mu, lower, upper)


def shuffled(
    positive_logps: Array,
    negative_logps: Array,
    mask: Array,
    *,
    key: Array,
    scale: float = 1.0,
    mu: float = 1.0,
    lower: float = -0.5,
    upper: float = 1.5,
) -> Array:
    """The estimate's own weights, permuted within each response: same values, wrong tokens."""
    positive_logps, negative_logps, mask = checked_pairs("shuffled", positive_logps, negative_logps, mask)
    check_formula("shuffled", scale, mu, lower, upper)
    weights = of_ratios(token_rewards(positive_logps, negative_logps, mask), mask, scale, mu, lower, upper)
    # Real tokens in random order, then the others in theirs; and the places of the real tokens likewise.
    noise = jax.random.uniform(key, mask.shape)
    sources = jnp.argsort(jnp.where(mask > 0, noise, 2.0), axis=-1, stable=True)
    places = jnp.argsort(jnp.where(mask > 0, 0, 1), axis=-1, stable=True)
    values = jnp.take_along_axis(weights, sources, axis=-1)
    return jnp.put_along_axis(jnp.zeros_like(weights), places, values, axis=-1, inplace=False)


def position(positive_logps: Array, negative_logps: Array, mask: Array, *, gamma: float = 0.9) -> Array:
    """`gamma^t` on the t-th token of a response, counted from 0: what a weight knows that sees places, not tokens."""
    *_, mask = checked_pairs("position", positive_logps, negative_logps, mask)
    arguments.number("position", "gamma", gamma, above=0)
    real = mask > 0
    return jnp.where(real, gamma ** (jnp.cumsum(real, axis=-1) - 1).astype(jnp.float32), 0.0)


def rank(
    positive_logps: Array,
    negative_logps: Array,
    mask: Array,
    *,
    scale: float = 1.0,
    mu: float = 1.0,
    lower: float = -0.5,
    upper: float = 1.5,
) -> Array:
    """The order of tokens without its size: ranks within the response, spread evenly over [lower, upper]."""
    positive_logps, negative_logps, mask = checked_pairs("rank", positive_logps, negative_logps, mask)
    check_formula("rank", scale, mu, lower, upper)
    share = rank_share(token_rewards(positive_logps, negative_logps, mask), mask)
    ratio = lower + (upper - lower) * share
    return of_ratios(ratio, mask, scale, mu, lower, upper)


def rank_share(values: Array, mask: Array) -> Array:
    """Rank of each real token among those of its response, from 0 (lowest) to 1; ties by position."""
    real = mask > 0
    order = jnp.argsort(jnp.where(real, values, jnp.inf), axis=-1, stable=True)
    ranks = jnp.argsort(order, axis=-1, stable=True)
    count = real.sum(-1, keepdims=True)
    return jnp.where(real, ranks / jnp.maximum(count - 1, 1), 0.0).astype(jnp.float32)
