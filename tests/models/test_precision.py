"""bfloat16 computation: matmuls in bfloat16; norms, rotary positions and softmax in float32."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tisdpo_jax.models import ComputeConfig, Model, hidden_states, logits
from tisdpo_jax.models.block import rms_norm
from tisdpo_jax.models.config import RopeConfig
from tisdpo_jax.models.rope import rope_tables, rotate
from tisdpo_jax.testing import FAMILIES, random_adapters, random_params, tiny_config

TOKENS = np.random.default_rng(0).integers(0, 64, (2, 12), np.int32)
LOW = ComputeConfig(dtype="bfloat16")


def equations(program: Any) -> Iterator[Any]:
    for equation in program.eqns:
        yield equation
        for value in jax.tree.leaves(equation.params, is_leaf=lambda x: hasattr(x, "eqns") or hasattr(x, "jaxpr")):
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from equations(inner)


@pytest.fixture(scope="module")
def program() -> list[Any]:
    """The equations of a model that has a norm inside attention, an adapter, and a loss behind it."""
    config = FAMILIES["qwen3"]
    params = random_params(0, config)
    lora = random_adapters(0, params)

    def total(params: Any, lora: Any) -> jax.Array:
        return hidden_states(Model(config, LOW), {"params": params, "lora": lora}, jnp.asarray(TOKENS)).sum()

    return list(equations(jax.make_jaxpr(jax.grad(total, argnums=(0, 1)))(params, lora).jaxpr))


@pytest.mark.parametrize("primitive", ["rsqrt", "exp", "cos", "sin", "reduce_max"])
def test_what_is_sensitive_is_float32(program: list[Any], primitive: str) -> None:
    dtypes = {str(e.outvars[0].aval.dtype) for e in program if e.primitive.name == primitive}
    assert dtypes == {"float32"}


def test_matmuls_with_weights_are_bfloat16(program: list[Any]) -> None:
    """All but those of attention itself, which take bfloat16 and give float32."""
    operands = {str(v.aval.dtype) for e in program if e.primitive.name == "dot_general" for v in e.invars}
    forward = [e for e in program if e.primitive.name == "dot_general" and e.invars[1].aval.shape == (32, 48)]
    assert forward and all(str(v.aval.dtype) == "bfloat16" for e in forward for v in (*e.invars, *e.outvars))
    assert "bfloat16" in operands


def test_the_norm_is_taken_in_float32() -> None:
    """Values whose squares bfloat16 could not add up: 1 among 256 threes."""
    x = jnp.asarray(np.r_[[1.0], np.full(256, 3.0)], jnp.bfloat16)[None]
    got = rms_norm(jnp.ones(257), x, Model(tiny_config(), LOW))
    assert got.dtype == jnp.bfloat16
    exact = np.asarray(x, np.float64) / np.sqrt(np.square(np.asarray(x, np.float64)).mean() + 1e-5)
    np.testing.assert_allclose(got.astype(jnp.float32), exact, rtol=2**-8)


def test_rotary_positions_are_exact_far_into_a_row() -> None:
    """At position 4001 bfloat16 angles would be off by 8 turns of a radian."""
    x = jnp.ones((1, 1, 1, 8), jnp.bfloat16)
    got = rotate(x, rope_tables(RopeConfig(), 8, jnp.asarray([[4001]])))
    angle = 4001 * 10_000.0 ** (-np.arange(4) / 4)
    expected = np.concatenate((np.cos(angle) - np.sin(angle), np.cos(angle) + np.sin(angle)))
    assert got.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.asarray(got, np.float32)[0, 0, 0], expected, atol=0.01)


def test_rotation_rounds_once() -> None:
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 12, 3, 8)), jnp.bfloat16)
    tables = rope_tables(RopeConfig(), 8, jnp.arange(12)[None])
    np.testing.assert_array_equal(rotate(x, tables), rotate(x.astype("float32"), tables).astype("bfloat16"))


def test_bfloat16_is_near_float32() -> None:
    config = FAMILIES["qwen3"]
    params = random_params(0, config)
    apply = jax.jit(logits, static_argnums=0)
    exact = apply(Model(config), {"params": params}, TOKENS)
    got = apply(Model(config, LOW), {"params": params}, TOKENS)
    assert got.dtype == jnp.float32
    error = float(jnp.abs(got - exact).max() / jnp.abs(exact).max())
    assert 1e-5 < error < 0.03, error


def test_parameters_keep_their_dtype_and_gradients_take_it() -> None:
    config = tiny_config()
    params = random_params(0, config, "bfloat16")
    params["final_norm"]["scale"] = params["final_norm"]["scale"].astype("float32")
    grad = jax.jit(jax.grad(lambda p: hidden_states(Model(config, LOW), {"params": p}, TOKENS).sum()))(params)
    for (path, leaf), one in zip(jax.tree_util.tree_leaves_with_path(grad), jax.tree.leaves(params), strict=True):
        assert leaf.dtype == one.dtype, path
