"""From logits to the next token: filters, and draws that depend on the sample alone.

The noise of a token is a function of (seed, prompt id, sample number, step). Neither the batch in which a sample is
drawn, nor its place there, nor the mesh has a part in it.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class SamplingParams:
    """How tokens are chosen; hashable. Filters work in this order, each on what the one before left."""

    temperature: float = 1.0  # 0 is greedy
    top_k: int = 0  # the k likeliest tokens; 0 takes all
    top_p: float = 1.0  # the fewest tokens that together have this probability
    min_p: float = 0.0  # tokens at least this share as likely as the likeliest

    def __post_init__(self) -> None:
        if self.temperature < 0 or self.top_k < 0 or not 0 < self.top_p <= 1 or not 0 <= self.min_p <= 1:
            raise ValueError(f"{self}: temperature and top_k are at least 0, top_p in (0, 1], min_p in [0, 1]")


def row_keys(seed: int, names: Sequence[tuple[str, int]]) -> npt.NDArray[np.uint32]:
    """Key data `[R, 2]` of each (prompt id, sample number)."""
    digests = [hashlib.sha256(f"{seed}\0{sample}\0{name}".encode()).digest()[:8] for name, sample in names]
    return np.frombuffer(b"".join(digests), "<u4").reshape(-1, 2).astype(np.uint32)


def choose(logits: Array, keys: Array, step: Array, how: SamplingParams) -> tuple[Array, Array]:
    """The next token of each row.

    Args:
      logits: `[R, V]` float32.
      keys: `[R, 2]` from `row_keys`.
      step: `[]` int32, number of the token in its answer.

    Returns: tokens `[R]` int32, and their log-likelihoods `[R]` under the model as it is: temperature 1, no filter.
    """
    if how.temperature == 0:
        token = jnp.argmax(logits, axis=-1)
    else:
        z = filtered(logits / how.temperature, how)
        token = jnp.argmax(z + jax.vmap(_noise, (0, None, None))(keys, step, z.shape[-1]), axis=-1)  # Gumbel-max
    chosen = jnp.take_along_axis(logits, token[:, None], axis=-1)[:, 0]
    return token.astype(jnp.int32), chosen - jax.nn.logsumexp(logits, axis=-1)


def filtered(z: Array, how: SamplingParams) -> Array:
    """`z [R, V]` with -inf where a filter of `how` leaves a token out; of equal tokens none is preferred."""
    if 0 < how.top_k < z.shape[-1]:
        lowest = jax.lax.top_k(z, how.top_k)[0][:, -1:]
        z = jnp.where(z < lowest, -jnp.inf, z)
    if how.top_p < 1:
        ordered = -jnp.sort(-z, axis=-1)
        p = jax.nn.softmax(ordered, axis=-1)
        before = jnp.cumsum(p, axis=-1) - p  # 0 for the likeliest, which always stays
        lowest = jnp.min(jnp.where(before < how.top_p, ordered, jnp.inf), axis=-1, keepdims=True)
        z = jnp.where(z < lowest, -jnp.inf, z)
    if how.min_p > 0:
        z = jnp.where(z < z.max(-1, keepdims=True) + np.log(how.min_p), -jnp.inf, z)
    return z


def _noise(key: Array, step: Array, size: int) -> Any:
    key = jax.random.fold_in(jax.random.wrap_key_data(key, impl="threefry2x32"), step)
    return jax.random.gumbel(key, (size,), jnp.float32)
