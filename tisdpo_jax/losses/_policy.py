"""What the losses of online reinforcement learning share: the result, ratios of actions, estimates of a KL.

A response is one action ("sequence") or a row of them, its tokens ("token"). Arrays are `[..., K, N]`, K responses to
one prompt; `behaviour` is the policy that sampled them, scored by the trainer, not what an engine said.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from tisdpo_jax import arguments
from tisdpo_jax.losses._pairs import log_ratios

Array = jax.Array

# A ratio of probabilities is taken as one between exp(-CAP) and exp(CAP), beyond which it has no gradient.
CAP = 20.0


class PolicyLoss(NamedTuple):
    """Per-response results, shapes `[..., K]`, float32. The caller reduces, see `REDUCE`.

    Only `loss` carries a gradient. Of a response without tokens they are 0, 1, 0 and 0.
    """

    loss: Array
    ratio: Array  # of policy to behaviour; where the loss looks at tokens, their mean
    kl: Array  # KL(policy || behaviour), summed over tokens: what was given, or an estimate from the sample
    clipped: Array  # share of actions whose gradient the clip or the cap takes away, in [0, 1]


def reference_kl(policy_logps: Array, reference_logps: Array, mask: Array) -> Array:
    """KL to a reference as GRPO has it in its loss: `sum_t (q_t - log q_t - 1)`, `q = pi_ref / pi`, known as k3.

    Args:
      policy_logps, reference_logps, mask: `[..., K, N]`; no gradient to the reference.

    Returns: `[..., K]` float32, at least 0; the loss adds a coefficient times it. log q is clipped to +-20.
    Source: Shao et al., GRPO, arXiv 2402.03300, eq. 4; Schulman, "Approximating KL divergence". The value is unbiased
    for KL(pi || pi_ref) under samples of pi, but its gradient is that of KL(pi_ref || pi): a policy trained with it
    stops elsewhere than at `pi_ref exp(r / beta)`, which the penalty in the reward has (`advantages.penalised`).
    """
    policy_logps, reference_logps, mask = arguments.group_arrays(
        "reference_kl", mask, policy_logps=policy_logps, reference_logps=reference_logps
    )
    x = jnp.clip(log_ratios(policy_logps, reference_logps, mask), -CAP, CAP)
    return k3(-x).sum(-1)  # 0 behind the mask, as x is


def k3(y: Array) -> Array:
    """`exp(y) - 1 - y`, at least 0; by its series near 0, where the difference has no digits left, nor its gradient."""
    near = jnp.abs(y) < 0.3
    x = jnp.where(near, y, 0.0)
    series = x * x * (1 / 2 + x * (1 / 6 + x * (1 / 24 + x * (1 / 120 + x * (1 / 720 + x / 5040)))))
    return jnp.where(near, series, jnp.expm1(y) - y)


def sample_kl(x: Array) -> Array:
    """`rho log rho - rho + 1` at `log rho = x`: under samples of the behaviour unbiased for KL(policy || behaviour).

    Never negative, and its gradient `rho log rho grad log pi` is 0 at rho = 1 on every sample. That of `rho log rho`
    alone is so in expectation only, and leaves noise where there is nothing to do.
    """
    return jnp.exp(x) * k3(-x)


def actions(policy_logps: Array, behaviour_logps: Array, mask: Array, level: str) -> tuple[Array, Array]:
    """log rho of each action `[..., K, A]`, and which are real: A is N tokens, or 1 for "sequence" and "mean"."""
    logs, real = log_ratios(policy_logps, behaviour_logps, mask), mask > 0
    if level == "token":
        return logs, real
    total = logs.sum(-1, keepdims=True)
    if level == "mean":
        total = total / jnp.maximum(real.sum(-1, keepdims=True), 1)
    return total, real.any(-1, keepdims=True)


def mean_of_actions(values: Array, real: Array, empty: float) -> Array:
    """`[..., K, A]` -> `[..., K]`: mean over the real ones, `empty` where there is none."""
    count = real.sum(-1)
    return jnp.where(count > 0, jnp.where(real, values, 0.0).sum(-1) / jnp.maximum(count, 1), empty)


def checked_advantages(function: str, advantages: Any, mask: Array, *, by_token: bool) -> Array:
    """Of each action: `[..., K, N]` where `by_token`, else `[..., K, 1]`; a float32 constant, 0 behind the mask.

    Raises: ValueError unless advantages are `[..., K]` or, where `by_token`, `[..., K, N]`.
    """
    values = jax.lax.stop_gradient(arguments.floats(function, "advantages", advantages))
    if values.shape == mask.shape[:-1]:
        values = values[..., None]
    elif values.shape != mask.shape or not by_token:
        expected = f"{mask.shape[:-1]} by response"
        expected += f" or {mask.shape} by token" if by_token else ", which is one action here"
        raise ValueError(f"{function}: advantages has shape {values.shape}; it must be {expected}")
    real = mask > 0 if by_token else (mask > 0).any(-1, keepdims=True)
    return jnp.where(real, values.astype(jnp.float32), 0.0)
