"""The decoder: causal, blind to padding, the same however it is computed, for every family."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tisdpo_jax.models import ComputeConfig, Model, RopeConfig, head_of, hidden_states, logits
from tisdpo_jax.models.rope import rope_tables, rotate
from tisdpo_jax.testing import FAMILIES, random_params, tiny_config
from tisdpo_jax.types import Params, Rows, Tree

ROWS, LENGTH, VOCABULARY = 3, 12, 64
# all that families differ in: the others are parts of these
EVERY_FAMILY = pytest.mark.parametrize("family", ["llama3", "mistral", "qwen2", "gemma2", "gemma3"])

apply = jax.jit(hidden_states, static_argnums=0)


@functools.cache
def params(family: str) -> Params:
    return random_params(0, FAMILIES[family])


def tokens(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, VOCABULARY, (ROWS, LENGTH), np.int32)


def states(family: str, rows: Any) -> np.ndarray:
    return np.asarray(apply(Model(FAMILIES[family]), {"params": params(family)}, rows))


def other(rows: np.ndarray, where: Any) -> np.ndarray:
    """Other tokens in the columns `where`."""
    changed = rows.copy()
    changed[:, where] = (changed[:, where] + 17) % VOCABULARY
    return changed


@EVERY_FAMILY
def test_a_token_sees_what_stands_before_it_and_nothing_behind(family: str) -> None:
    before = states(family, tokens())
    after = states(family, other(tokens(), 6))
    np.testing.assert_array_equal(before[:, :6], after[:, :6])
    assert (before[:, 6:9] != after[:, 6:9]).any(axis=(0, 2)).all()


@EVERY_FAMILY
def test_padding_changes_nothing(family: str) -> None:
    """Rows are left-aligned, so causality is the whole mask: whatever pads, and however much."""
    short, long = tokens()[:, :8], tokens()
    np.testing.assert_allclose(states(family, short), states(family, long)[:, :8], atol=1e-5)
    np.testing.assert_array_equal(states(family, long)[:, :8], states(family, other(long, slice(8, None)))[:, :8])


@EVERY_FAMILY
def test_rows_do_not_see_each_other(family: str) -> None:
    order = [2, 0, 1]
    np.testing.assert_array_equal(states(family, tokens())[order], states(family, tokens()[order]))


@EVERY_FAMILY
def test_pairs_in_a_row_are_conversations_in_rows_of_their_own(family: str) -> None:
    """A prompt and two responses behind it, then another pair: each response as if it alone stood behind its prompt."""
    rows = tokens()
    pair = np.asarray([1] * 7 + [2] * 5, np.int32)
    branch = np.asarray([0, 0, 0, 1, 1, 2, 2, 0, 1, 1, 1, 2], np.int32)
    positions = np.asarray([0, 1, 2, 3, 4, 3, 4, 0, 1, 2, 3, 1], np.int32)
    wide = lambda x: np.broadcast_to(x, rows.shape)  # noqa: E731
    packed = states(family, Rows(rows, wide(positions), Tree(wide(pair), wide(branch))))
    for number, side in ((1, 1), (1, 2), (2, 1), (2, 2)):
        where = np.flatnonzero((pair == number) & ((branch == 0) | (branch == side)))
        alone = np.zeros_like(rows)
        alone[:, : len(where)] = rows[:, where]
        np.testing.assert_allclose(packed[:, where], states(family, alone)[:, : len(where)], atol=1e-5)


@EVERY_FAMILY
def test_only_differences_of_positions_count(family: str) -> None:
    positions = np.arange(LENGTH, dtype=np.int32)[None]

    def at(positions: np.ndarray) -> np.ndarray:
        return states(family, Rows(tokens(), positions))

    np.testing.assert_allclose(at(positions), at(positions + 100), atol=2e-4)
    assert np.abs(at(positions) - at(positions * 2)).max() > 1e-2


def test_a_sliding_window_is_as_wide_as_it_says() -> None:
    """In one layer a query sees `window` keys, itself included; each further layer sees through the one before."""
    for layers, reach in ((1, 4), (2, 8)):
        model = Model(tiny_config(sliding_window=5, num_layers=layers))
        weights = {"params": random_params(0, model.config)}
        before, after = (np.asarray(apply(model, weights, rows)) for rows in (tokens(), other(tokens(), 0)))
        seen = (before != after).any(axis=(0, 2))
        np.testing.assert_array_equal(np.flatnonzero(seen), np.arange(reach + 1))


def test_a_window_wider_than_the_row_is_none() -> None:
    wide = Model(dataclasses.replace(FAMILIES["mistral"], sliding_window=LENGTH))
    none = Model(dataclasses.replace(FAMILIES["mistral"], sliding_window=None))
    weights = {"params": params("mistral")}
    np.testing.assert_array_equal(apply(wide, weights, tokens()), apply(none, weights, tokens()))


def test_logits_are_hidden_states_times_the_head() -> None:
    for family in ("llama2", "smollm2"):
        model, weights = Model(FAMILIES[family]), {"params": params(family)}
        got = jax.jit(logits, static_argnums=0)(model, weights, tokens())
        assert got.shape == (ROWS, LENGTH, VOCABULARY) and got.dtype == jnp.float32
        np.testing.assert_allclose(
            got, states(family, tokens()) @ np.asarray(head_of(model.config, weights).kernel), rtol=1e-4, atol=1e-4
        )
    tied = head_of(FAMILIES["smollm2"], {"params": params("smollm2")}).kernel
    np.testing.assert_array_equal(tied, params("smollm2")["embed"]["embedding"].T)


# However it is computed.

VARIANTS = {
    "unrolled": ComputeConfig(layer_loop="unroll"),
    "remat full": ComputeConfig(remat="full"),
    "remat dots": ComputeConfig(remat="dots"),
    "remat full, unrolled": ComputeConfig(remat="full", layer_loop="unroll"),
}


EVERYTHING = dataclasses.replace(
    FAMILIES["gemma3"],
    **dict.fromkeys(("qkv_bias", "output_bias", "mlp_bias"), True),
    attention_softcap=2.0,
    final_softcap=3.0,
)
"""Two periods of its pattern, the second not whole."""


@functools.cache
def value_and_gradient(compute: ComputeConfig) -> tuple[Any, Params]:
    model = Model(EVERYTHING, compute)

    def total(params: Params) -> tuple[jax.Array, jax.Array]:
        out = logits(model, {"params": params}, jnp.asarray(tokens()))
        return (out * jnp.cos(jnp.arange(out.size).reshape(out.shape))).sum(), out

    grad, out = jax.jit(jax.grad(total, has_aux=True))(random_params(0, EVERYTHING))
    return out, grad


@pytest.mark.parametrize("variant", VARIANTS)
def test_computing_it_otherwise_changes_nothing(variant: str) -> None:
    expected, expected_grad = value_and_gradient(ComputeConfig())
    got, grad = value_and_gradient(VARIANTS[variant])
    np.testing.assert_allclose(got, expected, atol=1e-5)
    for (path, one), two in zip(jax.tree_util.tree_leaves_with_path(grad), jax.tree.leaves(expected_grad), strict=True):
        scale = float(jnp.abs(two).max())
        assert scale > 0, path
        np.testing.assert_allclose(one, two, rtol=1e-5, atol=1e-5 * scale, err_msg=jax.tree_util.keystr(path))


def primitives(program: Any) -> list[str]:
    names = []
    for equation in program.eqns:
        names.append(equation.primitive.name)
        for value in jax.tree.leaves(equation.params, is_leaf=lambda x: hasattr(x, "eqns") or hasattr(x, "jaxpr")):
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                names += primitives(inner)
    return names


def test_the_choices_of_how_to_compute_do_something() -> None:
    def count(compute: ComputeConfig, name: str) -> int:
        model = Model(FAMILIES["llama2"], compute)
        program = jax.make_jaxpr(jax.grad(lambda p: logits(model, {"params": p}, jnp.asarray(tokens())).sum()))
        return primitives(program(params("llama2")).jaxpr).count(name)

    # forward and backward, and once more forward where nothing was kept
    none, full, dots = (count(ComputeConfig(remat=remat), "logistic") for remat in ("none", "full", "dots"))
    assert full > none and dots > none
    matmuls = [count(ComputeConfig(remat=remat), "dot_general") for remat in ("none", "dots", "full")]
    assert matmuls[0] < matmuls[1] < matmuls[2], "dots keeps what weights were multiplied with, full keeps nothing"

    model = Model(FAMILIES["llama2"], ComputeConfig(layer_loop="unroll"))
    lowered = jax.jit(hidden_states, static_argnums=0).lower(model, {"params": params("llama2")}, tokens())
    assert "while" not in lowered.compile().as_text()
    lowered = apply.lower(Model(FAMILIES["llama2"]), {"params": params("llama2")}, tokens())
    assert "while" in lowered.compile().as_text()


# Rotary positions.


def test_rope_turns_pairs_of_halves_and_keeps_lengths() -> None:
    x = jnp.asarray(np.random.default_rng(0).normal(size=(1, 5, 1, 8)), jnp.float32)
    positions = jnp.asarray([[0, 1, 2, 50, 51]])
    turned = np.asarray(rotate(x, rope_tables(RopeConfig(theta=100.0), 8, positions)))
    as_complex = np.asarray(x)[..., :4] + 1j * np.asarray(x)[..., 4:]
    angle = np.asarray(positions)[..., None] * 100.0 ** (-np.arange(4) / 4)
    expected = as_complex * np.exp(1j * angle)[:, :, None]
    np.testing.assert_allclose(turned[..., :4] + 1j * turned[..., 4:], expected, atol=1e-5)
    np.testing.assert_array_equal(turned[:, 0], x[:, 0])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_on_tpus_a_matrix_swaps_the_halves_and_nothing_else_changes(dtype: str) -> None:
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 5, 3, 8)), dtype)
    plain, other = (rope_tables(RopeConfig(), 8, jnp.arange(5)[None] * 7, platform=name) for name in ("cpu", "tpu"))
    assert plain.swap is None and other.swap is not None
    one, two = (jax.vjp(lambda x, tables=tables: rotate(x, tables), x) for tables in (plain, other))
    assert one[0].dtype == two[0].dtype == jnp.dtype(dtype)
    np.testing.assert_allclose(one[0].astype("float32"), two[0].astype("float32"), rtol=1e-6, atol=1e-6)
    gradients = [pull(out)[0].astype("float32") for out, pull in (one, two)]
    tolerance = 1e-6 if dtype == "float32" else 0.02  # the halves of a bfloat16 gradient are rounded before they meet
    np.testing.assert_allclose(*gradients, rtol=tolerance, atol=tolerance)
