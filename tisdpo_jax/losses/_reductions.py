"""How losses by response become one number: the means that papers take, as sums and counts."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

Array = jax.Array
Reduction = Callable[[Array, Array], tuple[Array, Array]]


def _lengths(mask: Array) -> Array:
    return (mask > 0).sum(-1).astype(jnp.float32)


def _responses(mask: Array) -> Array:
    return (mask > 0).any(-1).sum().astype(jnp.float32)


REDUCE: dict[str, Reduction] = {
    "response": lambda loss, mask: (loss.sum(), _responses(mask)),
    "token": lambda loss, mask: (loss.sum(), _lengths(mask).sum()),
    "constant": lambda loss, mask: (loss.sum(), _responses(mask) * mask.shape[-1]),
    "mean": lambda loss, mask: ((loss / jnp.maximum(_lengths(mask), 1.0)).sum(), _responses(mask)),
}
"""Name -> function(loss `[..., K]`, mask `[..., K, N]`) -> numerator and denominator, scalars.

Both are summed over micro-batches and devices, then one is divided by the other.

"response": a mean over responses; "token": over the tokens of the batch (DAPO); "constant": over responses times N, so
that no token weighs more for the length of its response (Dr. GRPO); "mean": over responses, of the means over their
tokens (GRPO). Responses without tokens, filler rows among them, do not count.
"""
