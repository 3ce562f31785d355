"""The head: from hidden states to the vocabulary."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from tisdpo_jax.models.config import TransformerConfig
from tisdpo_jax.types import Params, Variables

Array = jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Head:
    """The map from hidden states to the vocabulary, and the soft cap of its logits."""

    kernel: Any  # [D, V], in the dtype that it is stored in
    softcap: float | None = dataclasses.field(default=None, metadata={"static": True})

    def logits(self, hidden: Array) -> Array:
        """`[..., V]` float32 of `hidden [..., D]`. For few tokens: training never makes this array."""
        return capped(product(hidden, self.kernel.astype(hidden.dtype)), self.softcap)


def head_of(config: TransformerConfig, variables: Variables) -> Head:
    params = variables["params"]
    kernel = params["embed"]["embedding"].T if config.tied_head else params["head"]["kernel"]
    return Head(kernel, config.final_softcap)


def head_only(config: TransformerConfig, params: Params) -> Params:
    """The part of the parameters that `head_of` reads; the same arrays."""
    name = "embed" if config.tied_head else "head"
    return {name: params[name]}


def capped(x: Array, softcap: float | None) -> Array:
    """`softcap * tanh(x / softcap)`: x where it is small, and never beyond the cap."""
    return x if softcap is None else softcap * jnp.tanh(x / softcap)


def product(x: Array, y: Array) -> Array:
    """`x @ y` of two arrays of one dtype, summed and given in float32.

    Asking for a float32 result is not enough everywhere: XLA for CPUs, as of jax 0.7 (Colab), cannot run the bfloat16
    product with a transposed second operand, which a tied head has, and every gradient. On a CPU the operands are
    widened instead; products of two bfloat16 numbers are exact in float32, so the result is the same.
    """
    if x.dtype == jnp.float32:
        return jnp.matmul(x, y)
    return jax.lax.platform_dependent(x, y, cpu=_widened, default=_asked)


def _widened(x: Array, y: Array) -> Array:
    return jnp.matmul(x.astype(jnp.float32), y.astype(jnp.float32))


def _asked(x: Array, y: Array) -> Array:
    return jnp.matmul(x, y, preferred_element_type=jnp.float32)
