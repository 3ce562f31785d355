"""Token log-likelihood and full-vocabulary KL from logits: the plain definitions, for small inputs."""

from __future__ import annotations

from typing import Literal, get_args

import jax
import jax.numpy as jnp

Array = jax.Array
Direction = Literal["policy||reference", "reference||policy"]
DIRECTIONS = get_args(Direction)


def log_softmax(logits: Array) -> Array:
    """float32 log-softmax over the last axis; -inf stays -inf, also where a whole row is, and NaN stays NaN."""
    logits = logits.astype(jnp.float32)
    peak = jax.lax.stop_gradient(jnp.max(logits, axis=-1, keepdims=True))
    peak = jnp.where(peak == -jnp.inf, 0.0, peak)
    possible = logits != -jnp.inf  # NaN is not impossible: what a diverged model says must not look like a number
    # the double where keeps NaN out of the gradient of exp and log as well
    shifted = jnp.where(possible, logits - peak, 0.0)
    total = jnp.sum(jnp.where(possible, jnp.exp(shifted), 0.0), axis=-1, keepdims=True)
    norm = jnp.log(jnp.where(total == 0, 1.0, total))
    return jnp.where(possible, shifted - norm, -jnp.inf)


def logps_from_logits(logits: Array, targets: Array) -> Array:
    """Log-likelihood of each target.

    Args:
      logits: `[..., N, V]`, any float dtype; row n predicts target n (the shift by one is the caller's).
      targets: `[..., N]` integers in [0, V).

    Returns: `[..., N]` float32, natural logarithms; -inf where the logit of the target is.
    """
    return jnp.take_along_axis(log_softmax(logits), targets[..., None], axis=-1)[..., 0]


def kl_from_logits(
    policy_logits: Array, reference_logits: Array, *, direction: Direction = "policy||reference"
) -> Array:
    """KL divergence over the whole vocabulary at each position.

    Args:
      policy_logits, reference_logits: `[..., V]`, any float dtype. Gradients flow through both.
      direction: "policy||reference" as TIS-DPO has it, "reference||policy" as TDPO.

    Returns: `[...]` float32 nats, at least 0. Entries that the first distribution gives no probability
    add nothing; +inf where the second excludes what the first allows (the gradient is then that of the
    remaining entries).
    """
    policy, reference = log_softmax(policy_logits), log_softmax(reference_logits)
    if direction == "policy||reference":
        first, second = policy, reference
    elif direction == "reference||policy":
        first, second = reference, policy
    else:
        raise ValueError(f"kl_from_logits: direction {direction!r} is neither {' nor '.join(map(repr, DIRECTIONS))}")
    return kl_from_log_probs(first, second)


def kl_from_log_probs(first: Array, second: Array) -> Array:
    """`sum_v p_v (log p_v - log q_v)` over the last axis, for log-probabilities that may be -inf."""
    impossible = ((first != -jnp.inf) & (second == -jnp.inf) & (jnp.exp(first) > 0)).any(-1)
    nothing = (first == -jnp.inf).all(-1)
    return jnp.where(impossible, jnp.inf, jnp.where(nothing, 0.0, kl_terms(first, second).sum(-1)))


def kl_terms(first: Array, second: Array) -> Array:
    """Terms of the KL by vocabulary entry, at least 0; where q is 0 and p is not, 0 stands for what is not a number.

    Summed as `p d - p + q` with `d = log p - log q`: what is added sums to 0, and makes every term of second order in
    d. The plain sum loses all its digits where p is near q, which is where training begins.
    """
    no_first, no_second = first == -jnp.inf, second == -jnp.inf
    both = ~no_first & ~no_second
    log_p, log_q = jnp.where(both, first, 0.0), jnp.where(both, second, 0.0)
    d = log_p - log_q
    p, q = jnp.exp(log_p), jnp.exp(log_q)
    small = jnp.where(jnp.abs(d) < 1.0, d, 0.0)  # expm1 of a large one would overflow, in the gradient as well
    terms = jnp.where(jnp.abs(d) < 1.0, p * (small + jnp.expm1(-small)), p * d - p + q)
    # where p is 0, its term is q
    return jnp.where(both, terms, jnp.where(no_second, 0.0, jnp.exp(jnp.where(no_second, 0.0, second))))
