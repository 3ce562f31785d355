"""Token log-likelihood and full-vocabulary KL from logits: the plain definitions, for small inputs."""

from __future__ import annotations

from typing import Literal, get_args

import jax
import jax.numpy as jnp

from tisdpo_jax import arguments
from tisdpo_jax.scoring._targets import check_targets, of_targets

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


def logps_from_logits(logits: Array, targets: Array, *, mask: Array | None = None) -> Array:
    """Log-likelihood of each target.

    A target outside the vocabulary, as the label -100 is, counts nowhere: under the mask its log-likelihood is 0,
    without a gradient. Elsewhere it is an error where its value can be seen, and NaN where it is traced (under jit).

    Args:
      logits: `[..., N, V]`, any float dtype; row n predicts target n (the shift by one is the caller's: `next_token`).
      targets: `[..., N]` integers in [0, V).
      mask: `[..., N]`, 1 on tokens that count. Where it is 0, nothing is looked at, neither target nor logits.

    Returns: `[..., N]` float32, natural logarithms; -inf where the logit of the target is.
    Raises: ValueError for other shapes and dtypes, and for targets outside the vocabulary.
    """
    function = "logps_from_logits"
    logits = arguments.floats(function, "logits", logits)
    given, targets = targets, arguments.integers(function, "targets", targets)
    if not logits.ndim or logits.shape[:-1] != targets.shape:
        raise ValueError(
            f"{function}: logits has shape {logits.shape} and targets {targets.shape}; they must be [..., N, V] and "
            "[..., N]. Logits of the tokens themselves are shifted first: see scoring.next_token"
        )
    mask = check_targets(function, given, targets.shape, logits.shape[-1], mask)
    if mask is not None:
        logits = jnp.where(mask[..., None] > 0, logits, jnp.zeros((), logits.dtype))
    picked = jnp.take_along_axis(log_softmax(logits), jnp.clip(targets, 0, logits.shape[-1] - 1)[..., None], axis=-1)
    return of_targets(picked[..., 0], targets, logits.shape[-1], mask)


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
    function = "kl_from_logits"
    policy_logits = arguments.floats(function, "policy_logits", policy_logits)
    reference_logits = arguments.floats(function, "reference_logits", reference_logits)
    if not policy_logits.ndim:
        raise ValueError(f"{function}: policy_logits has shape (); it must be [..., V]")
    arguments.same_shape(function, "reference_logits", reference_logits, "policy_logits", policy_logits.shape)
    arguments.choice(function, "direction", direction, DIRECTIONS)
    policy, reference = log_softmax(policy_logits), log_softmax(reference_logits)
    first, second = (policy, reference) if direction == "policy||reference" else (reference, policy)
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
