"""Token log-likelihood and full-vocabulary KL from logits, for small inputs; what a target is; rows of other loops."""

from __future__ import annotations

from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np

from tisdpo_jax import arguments

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


def check_targets(function: str, targets: Array, shape: tuple[int, ...], vocabulary: int, mask: Any) -> Array | None:
    """The mask, checked. Raises for a target that counts and is outside the vocabulary, where values can be seen.

    Targets and mask as the caller gave them: once they are arrays of jax, constants of a traced function are not seen.
    """
    checked = None if mask is None else arguments.mask_like(function, mask, "targets", shape)
    if arguments.visible(targets) and (mask is None or arguments.visible(mask)):
        values = np.asarray(targets)
        outside = (values < 0) | (values >= vocabulary)
        if mask is not None:
            outside &= np.asarray(mask) > 0
        if outside.any():
            place = tuple(map(int, np.argwhere(outside)[0]))
            raise ValueError(
                f"{function}: targets{list(place)} is {values[place]}, outside the vocabulary of {vocabulary} "
                f"({outside.sum()} such). Say where tokens do not count, as in mask=targets != -100"
            )
    return checked


def of_targets(logps: Array, targets: Array, vocabulary: int, mask: Array | None) -> Array:
    """Log-likelihoods of targets: 0 where the mask is 0, NaN where the target is outside the vocabulary."""
    # whatever was looked up for such a target is a number, or a 0 that reads as certainty
    logps = jnp.where((targets >= 0) & (targets < vocabulary), logps, jnp.nan)
    return logps if mask is None else jnp.where(mask > 0, logps, 0.0)


def next_token(ids: Array, mask: Array) -> tuple[Array, Array]:
    """Targets of `logits[..., :-1, :]` (or hidden states), and their mask: the shift by one.

    Args:
      ids: `[..., T]` integers, the tokens that the model reads; labels with -100 behind the mask will do.
      mask: `[..., T]`, 1 on the tokens that count, response tokens as a rule. The first token of a row is predicted by
        nothing, so it counts nowhere.

    Returns: targets `[..., T - 1]`, 0 where the mask is, and the mask `[..., T - 1]`, float32.
    Raises: ValueError for other shapes and dtypes.
    """
    ids = arguments.integers("next_token", "ids", ids)
    if not ids.ndim or not ids.shape[-1]:
        raise ValueError(f"next_token: ids has shape {ids.shape}; it must be [..., T] with at least one token")
    real = arguments.mask_like("next_token", mask, "ids", ids.shape)[..., 1:] > 0
    return jnp.where(real, ids[..., 1:], 0), real.astype(jnp.float32)


def pairs(x: Array) -> Array:
    """`[2B, ...]`, all chosen rows and then all rejected ones (TRL, Tunix, EasyDeL) -> `[B, 2, ...]`.

    Rows of one pair must not stand beside each other: chosen, rejected, chosen, ... is `x.reshape(B, 2, ...)`.
    Raises: ValueError for an odd number of rows.
    """
    return jnp.stack(jnp.split(_rows("pairs", x, 0, "[2B, ...], as many rejected rows as chosen ones"), 2), axis=1)


def unpairs(x: Array) -> Array:
    """`[B, 2, ...]` -> `[2B, ...]`, all chosen rows and then all rejected ones: the inverse of `pairs`.

    Raises: ValueError when axis 1 is not of chosen and rejected.
    """
    x = _rows("unpairs", x, 1, "[B, 2, ...], axis 1 chosen and rejected")
    return jnp.concatenate([x[:, 0], x[:, 1]])


def _rows(function: str, x: Any, axis: int, expected: str) -> Array:
    if not hasattr(x, "shape"):
        raise ValueError(f"{function}: x is a {type(x).__name__}; it must be an array")
    if x.ndim <= axis or x.shape[axis] % 2 or (axis and x.shape[axis] != 2):
        raise ValueError(f"{function}: x has shape {x.shape}; it must be {expected}")
    return jnp.asarray(x)
