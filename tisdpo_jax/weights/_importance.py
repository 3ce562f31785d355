"""The paper's importance weight of a token."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from tisdpo_jax import arguments

Array = jax.Array

_FLOOR = -1e9  # stands for "impossible", so that -inf - (-inf) is 0 and not NaN


def token_rewards(positive_logps: Array, negative_logps: Array, mask: Array) -> Array:
    """`log pi+ - log pi-` per token, float32, 0 where the mask is 0; no gradient flows through it.

    Shapes `[..., N]`. Its sum over a response is the response's self-reward in DLMA (arXiv 2402.11907, eq. 5).
    """
    positive_logps, negative_logps, mask = arguments.elements(
        "token_rewards", mask, positive_logps=positive_logps, negative_logps=negative_logps
    )
    positive, negative = (jnp.maximum(x.astype(jnp.float32), _FLOOR) for x in (positive_logps, negative_logps))
    return jax.lax.stop_gradient(jnp.where(mask > 0, positive - negative, 0.0))


def signed(values: Array) -> Array:
    """`[..., 2, N]`, the sign of the rejected side flipped."""
    return values * jnp.asarray([1.0, -1.0], jnp.float32)[:, None]


def importance_weights(
    positive_logps: Array,
    negative_logps: Array,
    mask: Array,
    *,
    scale: float = 1.0,
    mu: float = 1.0,
    lower: float = -0.5,
    upper: float = 1.5,
) -> Array:
    """`w_t = k exp(+-mu clamp(log pi+ - log pi-, L, U))`: +mu on chosen, -mu on rejected.

    Args:
      positive_logps, negative_logps: `[..., 2, N]` log-likelihoods of the same tokens under pi+ and pi-.
      mask: `[..., 2, N]`; the weight is 0 where it is 0.
      scale: k, above 0.
      mu: exponent, finite; with the defaults chosen weights lie in [0.607, 4.482], rejected ones in [0.223, 1.649].
      lower, upper: L and U, the clamp of the log-ratio in nats, the same on both sides, before mu; `lower <= upper`.

    Returns: `[..., 2, N]` float32. No gradient flows through it.
    Source: Liu et al., TIS-DPO, arXiv 2410.04350, eq. 12. Public code: see `TRANSFORMS`.
    """
    positive_logps, negative_logps, mask = checked_pairs("importance_weights", positive_logps, negative_logps, mask)
    check_formula("importance_weights", scale, mu, lower, upper)
    return of_ratios(token_rewards(positive_logps, negative_logps, mask), mask, scale, mu, lower, upper)


def checked_pairs(function: str, positive_logps: Array, negative_logps: Array, mask: Array) -> tuple[Array, ...]:
    """The arrays that every kind of weights takes, `[..., 2, N]` all three; raises in the name of `function`."""
    return arguments.pair_arrays(function, mask, positive_logps=positive_logps, negative_logps=negative_logps)


def check_formula(function: str, scale: float, mu: float, lower: float, upper: float) -> None:
    """The numbers of the paper's formula; raises in the name of `function`."""
    arguments.number(function, "scale", scale, above=0)
    arguments.number(function, "mu", mu)
    arguments.clamp(function, lower, upper)


def of_ratios(ratios: Array, mask: Array, scale: float, mu: float, lower: float, upper: float) -> Array:
    """The paper's formula on log-ratios."""
    ratio = jnp.clip(ratios, lower, upper)
    return jnp.where(mask > 0, scale * jnp.exp(mu * signed(ratio)), 0.0)
