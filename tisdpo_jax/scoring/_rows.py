"""From other loops to ours: the shift by one, and rows of chosen and rejected as sides."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from tisdpo_jax import arguments

Array = jax.Array


def next_token(ids: Array, mask: Array) -> tuple[Array, Array]:
    """Targets of `logits[..., :-1, :]` (or hidden states), and their mask: the shift by one.

    Args:
      ids: `[..., T]` integers, the tokens that the model reads; labels with -100 behind the mask will do.
      mask: `[..., T]`, 1 on the tokens that count, response tokens as a rule. The first token of a row is predicted by
        nothing, so it counts nowhere.

    Returns: targets `[..., T - 1]`, 0 where the mask is, and the mask `[..., T - 1]`, float32.
    Raises: ValueError for other shapes and dtypes.
    """
    ids = arguments.integers("next_token", "ids", ids)
    if not ids.ndim or not ids.shape[-1]:
        raise ValueError(f"next_token: ids has shape {ids.shape}; it must be [..., T] with at least one token")
    real = arguments.mask_like("next_token", mask, "ids", ids.shape)[..., 1:] > 0
    return jnp.where(real, ids[..., 1:], 0), real.astype(jnp.float32)


def pairs(x: Array) -> Array:
    """`[2B, ...]`, all chosen rows and then all rejected ones (TRL, Tunix, EasyDeL) -> `[B, 2, ...]`.

    Rows of one pair must not stand beside each other: chosen, rejected, chosen, ... is `x.reshape(B, 2, ...)`.
    Raises: ValueError for an odd number of rows.
    """
    x = _array("pairs", x)
    if not x.ndim or x.shape[0] % 2:
        raise ValueError(f"pairs: x has shape {x.shape}; it must be [2B, ...], as many rejected rows as chosen ones")
    return jnp.stack(jnp.split(x, 2), axis=1)


def unpairs(x: Array) -> Array:
    """`[B, 2, ...]` -> `[2B, ...]`, all chosen rows and then all rejected ones: the inverse of `pairs`.

    Raises: ValueError when axis 1 is not of chosen and rejected.
    """
    x = _array("unpairs", x)
    if x.ndim < 2 or x.shape[1] != 2:
        raise ValueError(f"unpairs: x has shape {x.shape}; it must be [B, 2, ...], axis 1 chosen and rejected")
    return jnp.concatenate([x[:, 0], x[:, 1]])


def _array(function: str, x: Array) -> Array:
    if not hasattr(x, "shape"):
        raise ValueError(f"{function}: x is a {type(x).__name__}; it must be an array")
    return jnp.asarray(x)
