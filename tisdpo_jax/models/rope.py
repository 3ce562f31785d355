"""Rotary positions (RoFormer, arXiv 2104.09864), and how models stretch them over longer texts."""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from tisdpo_jax.models.config import RopeConfig

Array = jax.Array


class Rope(NamedTuple):
    """What turns queries and keys."""

    cos: Array  # [R or 1, T, 1, head_dim / 2] float32
    sin: Array
    swap: Array | None = None  # [head_dim, head_dim], the permutation that swaps the halves


def rope_frequencies(rope: RopeConfig, head_dim: int, length: Array | float = 0) -> Array:
    """Angle per position of each pair of dimensions: `[..., head_dim / 2]` float32.

        default  theta^(-2i / head_dim), RoFormer eq. 15
        linear   divided by `factor`
        dynamic  theta grows with `length` once that is above the original positions (NTK-aware)
        llama3   wavelengths longer than the original positions / low_freq_factor are divided by `factor`, short ones
                 are kept, and those between are blended, as in the Llama 3.1 release
        yarn     likewise, by dimension between beta_fast and beta_slow turns (YaRN, arXiv 2309.00071)

    Args:
      length: `[...]` tokens of the text, which "dynamic" alone reads.
    """
    theta: Array | float = rope.theta
    if rope.kind == "dynamic":
        over = jnp.maximum(length, rope.original_max_positions) / rope.original_max_positions
        grown = (rope.factor * over - (rope.factor - 1)) ** (head_dim / (head_dim - 2))
        theta = (rope.theta * jnp.asarray(grown, jnp.float32))[..., None]
    inverse = theta ** -(jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim)
    if rope.kind in ("default", "dynamic"):
        return inverse
    if rope.kind == "linear":
        return inverse / rope.factor
    if rope.kind == "yarn":
        keep: Array = jnp.asarray(_kept_by_yarn(rope, head_dim))
    else:
        turns = rope.original_max_positions * inverse / (2 * jnp.pi)
        keep = (turns - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor)
        keep = jnp.clip(keep, 0.0, 1.0)
    return keep * inverse + (1 - keep) * inverse / rope.factor


def _kept_by_yarn(rope: RopeConfig, head_dim: int) -> np.ndarray:
    """The share of each frequency that is not stretched, `[head_dim / 2]` float32."""

    def dimension(turns: float) -> float:
        """Which one turns so often over the original positions."""
        return head_dim * math.log(rope.original_max_positions / (turns * 2 * math.pi)) / (2 * math.log(rope.theta))

    low, high = dimension(rope.beta_fast), dimension(rope.beta_slow)
    if rope.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1)
    stretched = (np.arange(head_dim // 2) - low) / (high - low or 0.001)
    return 1 - np.clip(stretched, 0, 1).astype(np.float32)


def attention_factor(rope: RopeConfig) -> float:
    """What cos and sin are multiplied by, so that attention stays as sharp over more positions."""
    if rope.kind != "yarn":
        return 1.0
    if rope.attention_factor is None:
        return 0.1 * math.log(max(rope.factor, 1.0)) + 1.0
    return rope.attention_factor


def rope_tables(rope: RopeConfig, head_dim: int, positions: Array, *, platform: str = "") -> Rope:
    """cos and sin for `positions [R, T]`; on TPUs the halves are swapped by a matrix, which XLA cannot do as well.

    "dynamic" goes by the last position of each row, which pairs that are packed in one share; while decoding keys stay
    as they were turned, as in transformers.
    """
    length = positions.max(-1)[:, None, None] + 1 if rope.kind == "dynamic" else 0
    angles = positions.astype(jnp.float32)[:, :, None, None] * rope_frequencies(rope, head_dim, length)
    swap = None
    if (platform or jax.default_backend()) == "tpu":
        swap = jnp.roll(jnp.eye(head_dim), head_dim // 2, axis=1)
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    if (factor := attention_factor(rope)) != 1.0:
        cos, sin = cos * factor, sin * factor
    return Rope(cos, sin, swap)


def rotate(x: Array, rope: Rope) -> Array:
    """Rotary embedding, halves convention: dimension i turns with i + head_dim / 2. In float32."""
    cos, sin, swap = rope
    if swap is None:
        first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
        turned = jnp.concatenate((first * cos - second * sin, second * cos + first * sin), axis=-1)
        return turned.astype(x.dtype)
    # the same numbers: a product with a permutation is exact, and what comes behind is part of it
    partner = jnp.matmul(x, swap.astype(x.dtype), precision=jax.lax.Precision.HIGHEST).astype(jnp.float32)
    cos, sin = jnp.concatenate((cos, cos), axis=-1), jnp.concatenate((-sin, sin), axis=-1)
    return (x.astype(jnp.float32) * cos + partner * sin).astype(x.dtype)
