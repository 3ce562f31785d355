"""Frozen models in 8 bits: weights of the layers as int8, a scale for every output channel."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from tisdpo_jax.types import Params


def quantize(params: Params) -> Params:
    """Parameters whose layer kernels are int8, with `kernel_scale [L, out]` float32 beside each.

    Symmetric and to the nearest: `kernel ~ int8 * scale`, the largest entry of a channel becomes 127. Embedding,
    head, norms and biases keep their dtype: they are few, and the head decides what KL there is.
    """

    def visit(node: Params) -> Params:
        found: Params = {}
        for name, value in node.items():
            if isinstance(value, dict):
                found[name] = visit(value)
            elif name == "kernel":
                found["kernel"], found["kernel_scale"] = _channels(value)
            else:
                found[name] = value
        return found

    return {**params, "layers": visit(params["layers"])}


def _channels(kernel: jax.Array) -> tuple[jax.Array, jax.Array]:
    wide = kernel.astype(jnp.float32)
    largest = jnp.max(jnp.abs(wide), axis=-2, keepdims=True)
    scale = jnp.where(largest > 0, largest / 127.0, 1.0)
    return jnp.round(wide / scale).astype(jnp.int8), scale[..., 0, :]
