"""Moving entries of rows to other places, forward and backward by gathers alone.

The gradient of a gather is a scatter, which accelerators do slowly. Where it is known which outputs read an entry, the
gradient is a gather too.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array


@jax.custom_vjp
def take(x: Array, index: Array, readers: Array) -> Array:
    """`y[r, i] = x[r, index[r, i]]`, zero where the index is negative.

    Args:
      x: `[R, T, ...]`.
      index: `[R, M]` integers below T.
      readers: `[R, T, K]`, the inverse: the places of `index` that name each entry of `x`; -1 where there are fewer.

    Returns: `[R, M, ...]`.
    """
    return _pick(x, index)


def _pick(x: Array, index: Array) -> Array:
    # by rows, so that a partitioned batch of rows needs no communication
    picked = jax.vmap(lambda row, places: jnp.take(row, places, axis=0, mode="clip"))(x, index)
    present = (index >= 0).reshape(*index.shape, *(1,) * (x.ndim - 2))
    return jnp.where(present, picked, jnp.zeros((), x.dtype))


def _forward(x: Array, index: Array, readers: Array) -> tuple[Array, tuple[Array, Array]]:
    return _pick(x, index), (index, readers)


def _backward(saved: tuple[Array, Array], g: Array) -> tuple[Array, np.ndarray, np.ndarray]:
    index, readers = saved
    total = _pick(g, readers[..., 0])
    for k in range(1, readers.shape[-1]):
        total = total + _pick(g, readers[..., k])
    none = [np.zeros(x.shape, jax.dtypes.float0) for x in (index, readers)]
    return total, none[0], none[1]


take.defvjp(_forward, _backward)
