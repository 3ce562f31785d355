"""Weights by how uncertain a model is of a token: of no pair of models."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from tisdpo_jax import arguments

Array = jax.Array


def entropy_weights(entropy: Array, mask: Array, *, power: float = 1.0) -> Array:
    """`w_t = (H_t / mean of H over the response)^power`: tokens at which a model could go on in many ways weigh more.

    Args:
      entropy: `[..., N]`, entropy of the model's next-token distribution at each token, in nats, at least 0.
      mask: `[..., N]`; the weight is 0 where it is 0.
      power: finite; 0 gives weight 1 to all tokens, below 0 certain tokens weigh more.

    Returns: `[..., N]` float32. A response of entropy 0 throughout weighs 1 everywhere. No gradient flows through it.
    Source: of this package; that few tokens of high entropy decide is an observation of Wang et al., arXiv 2506.01939.
    """
    entropy, mask = arguments.elements("entropy_weights", mask, entropy=entropy)
    arguments.number("entropy_weights", "power", power)
    real = mask > 0
    values = jnp.where(real, jnp.maximum(entropy.astype(jnp.float32), 0.0), 0.0)
    mean = values.sum(-1, keepdims=True) / jnp.maximum(real.sum(-1, keepdims=True), 1)
    share = jnp.where(mean > 0, values / jnp.where(mean > 0, mean, 1.0), 1.0)
    return jax.lax.stop_gradient(jnp.where(real, jnp.maximum(share, 1e-6) ** power, 0.0))
