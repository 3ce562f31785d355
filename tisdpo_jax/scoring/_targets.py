"""Targets of log-likelihoods: which are tokens of the vocabulary, and what is said of the others."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tisdpo_jax import arguments

Array = jax.Array


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
