"""Correction for an engine that samples with other numbers than the trainer has."""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp

from tisdpo_jax import arguments
from tisdpo_jax.losses._pairs import log_ratios
from tisdpo_jax.losses._policy import CAP

Array = jax.Array


def sampler_weights(
    behaviour_logps: Array,
    sampler_logps: Array,
    mask: Array,
    *,
    level: Literal["token", "sequence"] = "token",
    mode: Literal["truncate", "mask"] = "truncate",
    cap: float = 2.0,
    floor: float = 0.0,
) -> Array:
    """Importance weights of behaviour to sampler, bounded: `clip(exp(behaviour - sampler), floor, cap)`.

    They multiply token losses, which are linear in the advantages: `advantages[..., None] * weights` is how a loss by
    token takes them. For a loss by sequence, those of level "sequence" are one number a response, `weights.max(-1)`.

    Args:
      behaviour_logps, sampler_logps: `[..., K, N]` log-likelihoods of the sampled tokens by the trainer and by the
        engine, for the same policy. They are constants here.
      mask: `[..., K, N]`; the weight is 0 where it is 0.
      level: "token", each by its own ratio; "sequence", all tokens of a response by that of the whole.
      mode: "truncate" to the bounds, or "mask": 0 outside of them.
      cap, floor: at least 1 and between 0 and 1, so that where both agree the weight is 1; cap may be infinite.

    Returns: `[..., K, N]` float32. What the engine does not know, NaN, stays NaN.
    Source: Ionides, "Truncated importance sampling", 2008; the four kinds of TRL. Elsewhere the truncated kind is
    known by an abbreviation that means something else in this package.
    """
    behaviour_logps, sampler_logps, mask = arguments.group_arrays(
        "sampler_weights", mask, behaviour_logps=behaviour_logps, sampler_logps=sampler_logps
    )
    arguments.choice("sampler_weights", "level", level, ("token", "sequence"))
    arguments.choice("sampler_weights", "mode", mode, ("truncate", "mask"))
    arguments.number("sampler_weights", "cap", cap, at_least=1, infinite=True)
    arguments.number("sampler_weights", "floor", floor, at_least=0, at_most=1)
    logs = log_ratios(behaviour_logps, sampler_logps, mask)
    if level == "sequence":
        logs = jnp.broadcast_to(logs.sum(-1, keepdims=True), logs.shape)
    ratio = jnp.exp(jnp.clip(logs, -CAP, CAP))
    inside = (ratio >= floor) & (ratio <= cap) | jnp.isnan(ratio)
    weights = jnp.clip(ratio, floor, cap) if mode == "truncate" else jnp.where(inside, ratio, 0.0)
    return jax.lax.stop_gradient(jnp.where(mask > 0, weights, 0.0))
