"""The embedding table read where it lies is the table indexed: values, gradients, and never a whole table anywhere."""

from __future__ import annotations

import functools
import math
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from tisdpo_jax.models.leaves import take_rows
from tisdpo_jax.testing import device_mesh

VOCABULARY, WIDTH = 48, 16
MESHES = [(1, 8, 1), (2, 2, 2), (1, 1, 8), (2, 4, 1)]


def table_and_tokens(rows: int = 8, length: int = 5) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(0)
    tokens = random.integers(0, VOCABULARY, (rows, length)).astype(np.int32)
    tokens[0, :4] = [0, VOCABULARY - 1, 0, VOCABULARY // 2]  # both ends, the seam of a split in two, one token twice
    return random.normal(size=(VOCABULARY, WIDTH)).astype(np.float32), tokens


def pull(function: Any, table: Any, tokens: Any) -> tuple[Any, Any]:
    def total(table: jax.Array) -> tuple[jax.Array, jax.Array]:
        out = function(table, tokens, "float32")
        return (out * jnp.cos(jnp.arange(out.size, dtype=jnp.float32).reshape(out.shape))).sum(), out

    gradient, out = jax.jit(jax.grad(total, has_aux=True))(table)
    return jax.device_get((out, gradient))


@functools.cache
def expected(rows: int = 8) -> tuple[Any, Any]:
    return pull(lambda table, tokens, dtype: table[tokens].astype(dtype), *table_and_tokens(rows))


@pytest.mark.parametrize("shape", MESHES, ids=str)
def test_on_a_mesh_it_is_plain_indexing(shape: tuple[int, int, int]) -> None:
    table, tokens = table_and_tokens()
    mesh = device_mesh(*shape)
    placed = jax.device_put(table, NamedSharding(mesh, PartitionSpec("tensor", "fsdp")))
    dealt = jax.device_put(tokens, NamedSharding(mesh, PartitionSpec(("data", "fsdp"))))
    with jax.set_mesh(mesh):
        out, gradient = pull(take_rows, placed, dealt)
    np.testing.assert_array_equal(out, expected()[0])
    np.testing.assert_allclose(gradient, expected()[1], rtol=1e-6, atol=1e-6)


def test_without_a_mesh_and_with_rows_that_do_not_divide() -> None:
    """Generation reads one row on any mesh."""
    out, gradient = pull(take_rows, *table_and_tokens())
    np.testing.assert_array_equal(out, expected()[0])
    np.testing.assert_allclose(gradient, expected()[1], rtol=1e-6, atol=1e-6)
    table, tokens = table_and_tokens(3)
    with jax.set_mesh(device_mesh(2, 2, 2)):
        out, gradient = pull(take_rows, table, tokens)
    np.testing.assert_array_equal(out, expected(3)[0])
    np.testing.assert_allclose(gradient, expected(3)[1], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("shape", [(1, 8, 1), (2, 2, 2)], ids=str)
def test_no_device_ever_holds_a_whole_table(shape: tuple[int, int, int]) -> None:
    """Neither gathered nor as a gradient: with few tokens, nothing in the compiled program is larger than a share."""
    mesh = device_mesh(*shape)
    vocabulary, width, rows, length = 1024, 64, 8, 2
    where = NamedSharding(mesh, PartitionSpec("tensor", "fsdp"))
    table = jax.ShapeDtypeStruct((vocabulary, width), "float32", sharding=where)
    dealt = NamedSharding(mesh, PartitionSpec(("data", "fsdp")))
    tokens = jax.ShapeDtypeStruct((rows, length), "int32", sharding=dealt)

    def sizes(function: Any) -> list[int]:
        def total(table: jax.Array, tokens: jax.Array) -> jax.Array:
            return (function(table, tokens, "float32") ** 2).sum()

        with jax.set_mesh(mesh):
            text = jax.jit(jax.grad(total), out_shardings=where).lower(table, tokens).compile().as_text()
        return [math.prod(map(int, shape.split(","))) for shape in re.findall(r"\bf32\[([0-9,]+)\]", text)]

    assert max(sizes(take_rows)) == vocabulary * width // (shape[1] * shape[2])


def test_the_table_is_read_in_the_dtype_of_the_computation_and_learns_in_its_own() -> None:
    table, tokens = table_and_tokens()
    with jax.set_mesh(device_mesh(1, 4, 2)):
        low, gradient = jax.jit(
            jax.value_and_grad(lambda table: take_rows(table, tokens, "bfloat16").astype(jnp.float32).sum())
        )(table)
        assert jax.eval_shape(lambda: take_rows(jnp.asarray(table), tokens, "bfloat16")).dtype == jnp.bfloat16
    np.testing.assert_allclose(low, table[tokens].astype(jnp.bfloat16).astype(np.float32).sum(), rtol=1e-5)
    assert gradient.dtype == jnp.float32
    np.testing.assert_array_equal(gradient.sum(1) / WIDTH, np.bincount(tokens.ravel(), minlength=VOCABULARY))
