"""Gathers whose gradients are gathers: what plain indexing gives, forward and backward."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from programs import equations

from tisdpo_jax.routing import take

ROWS, PLACES, READS = 3, 7, 9


def random_map(seed: int, readers: int) -> tuple[np.ndarray, np.ndarray]:
    """`index [R, M]`, about a third of it -1, no place read more than `readers` times; and its inverse."""
    random = np.random.default_rng(seed)
    index = np.full((ROWS, READS), -1, np.int32)
    inverse = np.full((ROWS, PLACES, readers), -1, np.int32)
    for row in range(ROWS):
        for slot in np.flatnonzero(random.random(READS) < 0.7):
            open_places = np.flatnonzero((inverse[row] < 0).any(-1))
            if not len(open_places):
                break
            place = random.choice(open_places)
            index[row, slot] = place
            free = np.flatnonzero(inverse[row, place] < 0)  # readers may stand in any column
            inverse[row, place, random.choice(free)] = slot
    return index, inverse


def plain(x: jax.Array, index: Any) -> jax.Array:
    found = x[jnp.arange(ROWS)[:, None], jnp.maximum(index, 0)]
    return jnp.where((index >= 0).reshape(*index.shape, *(1,) * (x.ndim - 2)), found, 0.0)


@jax.jit
def both(x: jax.Array, index: jax.Array, readers: jax.Array, g: jax.Array) -> Any:
    one, pull = jax.vjp(lambda x: take(x, index, readers), x)
    other, expected = jax.vjp(lambda x: plain(x, index), x)
    return (one, pull(g)[0]), (other, expected(g)[0])


@pytest.mark.parametrize("inner", [(), (4,), (2, 3)], ids=str)
@given(seed=st.integers(0, 10**6), readers=st.integers(1, 3))
def test_take_is_indexing_and_so_is_its_gradient(inner: tuple[int, ...], seed: int, readers: int) -> None:
    index, inverse = random_map(seed, readers)
    random = np.random.default_rng(seed)
    x, g = (random.normal(size=(ROWS, count, *inner)).astype(np.float32) for count in (PLACES, READS))
    (got, grad), (expected, expected_grad) = both(x, index, inverse, g)
    np.testing.assert_array_equal(got, expected)
    np.testing.assert_array_equal(np.asarray(got)[index < 0], 0.0)
    np.testing.assert_allclose(grad, expected_grad, rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(np.asarray(grad)[(inverse < 0).all(-1)], 0.0)


def test_what_is_not_read_may_be_anything() -> None:
    """NaN in a place that nobody reads, or in the gradient of an empty slot, goes nowhere."""
    index, inverse = np.asarray([[1, -1, 2]] * ROWS), np.asarray([[[-1], [0], [2], [-1]]] * ROWS)
    x = np.ones((ROWS, 4), np.float32)
    x[:, [0, 3]] = np.nan
    out, pull = jax.vjp(lambda x: take(x, index, inverse), x)
    np.testing.assert_array_equal(out, [[1.0, 0.0, 1.0]] * ROWS)
    g = np.asarray([[2.0, np.nan, 3.0]] * ROWS, np.float32)
    np.testing.assert_array_equal(pull(g)[0], [[0.0, 2.0, 3.0, 0.0]] * ROWS)


def test_neither_way_is_there_a_scatter() -> None:
    index, inverse = random_map(0, 2)
    x = jnp.ones((ROWS, PLACES, 4))

    def made(function: Any) -> set[str]:
        program = jax.make_jaxpr(jax.grad(lambda x: (function(x) ** 2).sum()))(x).jaxpr
        return {equation.primitive.name for equation in equations(program)}

    assert "scatter-add" in made(lambda x: plain(x, index)), "the walk does find them"
    names = made(lambda x: take(x, index, inverse))
    assert "gather" in names and not any(name.startswith("scatter") for name in names)


def test_the_dtype_stays() -> None:
    index, inverse = random_map(1, 2)
    x = jnp.ones((ROWS, PLACES, 4), jnp.bfloat16)
    out, pull = jax.vjp(lambda x: take(x, index, inverse), x)
    assert out.dtype == pull(out)[0].dtype == jnp.bfloat16
