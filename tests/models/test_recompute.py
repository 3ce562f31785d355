"""The loop over layers written by hand: the numbers of checkpoint and scan, gradients only where wanted, in place."""

from __future__ import annotations

import dataclasses
import functools
from collections import Counter
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tisdpo_jax.models import ComputeConfig, Model, hidden_states
from tisdpo_jax.models.recompute import through_layers
from tisdpo_jax.testing import FAMILIES, random_adapters, random_params

LAYERS, ROWS, WIDTH = 5, 3, 8


def layer(own: dict[str, Any], x: jax.Array, shared: Any) -> jax.Array:
    """Not linear, different at every layer, with whole numbers among its variables and what it shares."""
    picked = jnp.take(own["params"]["kernel"], own["params"]["order"], axis=0)
    y = jnp.tanh(x @ picked + own["lora"]["a"] @ own["lora"]["b"] * shared["scale"])
    return x + jnp.where(shared["mask"], y, 0.5 * y)


def checkpointed(own: dict[str, Any], x: jax.Array, shared: Any) -> jax.Array:
    body = jax.checkpoint(lambda x, own: (layer(own, x, shared), None))
    return jax.lax.scan(body, x, own)[0]


@pytest.fixture
def inputs() -> dict[str, Any]:
    draw = np.random.default_rng(0).standard_normal
    return {
        "kernel": jnp.asarray(draw((LAYERS, WIDTH, WIDTH))),
        "a": jnp.asarray(draw((LAYERS, ROWS, 2))),
        "b": jnp.asarray(draw((LAYERS, 2, WIDTH))),
        "x": jnp.asarray(draw((ROWS, WIDTH))),
    }


def value(run: Any, wanted: dict[str, Any], rest: dict[str, Any]) -> jax.Array:
    every = wanted | rest
    order = jnp.stack([jnp.roll(jnp.arange(WIDTH), at) for at in range(LAYERS)])
    own = {"params": {"kernel": every["kernel"], "order": order}, "lora": {"a": every["a"], "b": every["b"]}}
    shared = {"scale": jnp.asarray(0.3), "mask": jnp.arange(WIDTH) % 3 > 0, "none": None}
    y = run(own, every["x"], shared)
    return jnp.sum(y * jnp.cos(jnp.arange(y.size).reshape(y.shape)))


by_hand = functools.partial(through_layers, [layer], count=LAYERS)
SUBSETS = [("kernel", "a", "b", "x"), ("kernel",), ("a", "b"), ("x",), ("b", "x")]


@pytest.mark.parametrize("names", SUBSETS, ids="-".join)
def test_values_and_gradients_are_those_of_checkpoint_and_scan(inputs: dict[str, Any], names: tuple[str, ...]) -> None:
    wanted = {name: inputs[name] for name in names}
    rest = {name: leaf for name, leaf in inputs.items() if name not in names}
    found, expected = (
        jax.jit(jax.value_and_grad(functools.partial(value, run)))(wanted, rest) for run in (by_hand, checkpointed)
    )
    for mine, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert float(jnp.abs(theirs).max()) > 1e-2
        np.testing.assert_allclose(mine, theirs, rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("period", [2, 3, LAYERS + 1])
def test_layers_of_a_pattern_take_turns(inputs: dict[str, Any], period: int) -> None:
    """Also where the last period is not whole, or the only one."""

    def turned(number: int) -> Any:
        return lambda own, x, shared: layer(own, jnp.roll(x, number, axis=-1), shared)

    def plain(own: dict[str, Any], x: jax.Array, shared: Any) -> jax.Array:
        for at in range(LAYERS):
            x = turned(at % period)(jax.tree.map(lambda stack, at=at: stack[at], own), x, shared)
        return x

    turns = functools.partial(through_layers, [turned(number) for number in range(period)], count=LAYERS)
    got, expected = (jax.jit(jax.value_and_grad(functools.partial(value, run)))(inputs, {}) for run in (turns, plain))
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=2e-5, atol=2e-6), got, expected)


def test_weights_that_are_read_again_are_what_they_were(inputs: dict[str, Any]) -> None:
    """Gradients are written over weights only where nothing reads those afterwards."""

    def twice(run: Any, wanted: dict[str, Any]) -> tuple[jax.Array, dict[str, Any]]:
        grads = jax.grad(functools.partial(value, run))(wanted, {})
        moved = {name: leaf - 0.1 * grads[name] for name, leaf in wanted.items()}
        return value(run, moved, {}) + value(run, wanted, {}), moved

    before = jax.tree.map(np.array, inputs)
    found, expected = (jax.jit(functools.partial(twice, run))(inputs) for run in (by_hand, checkpointed))
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=2e-5, atol=2e-6), found, expected)
    jax.tree.map(np.testing.assert_array_equal, inputs, before)


def test_nothing_but_the_inputs_of_layers_is_kept(inputs: dict[str, Any]) -> None:
    """Of what a forward pass makes for its backward pass, only the stack of inputs is new."""
    _, pull = jax.vjp(lambda kernel: value(by_hand, {"kernel": kernel}, {**inputs, "kernel": kernel}), inputs["kernel"])
    stacks = Counter(leaf.shape for leaf in jax.tree.leaves(pull) if getattr(leaf, "shape", ())[:1] == (LAYERS,))
    given = Counter([leaf.shape for name, leaf in inputs.items() if name != "x"] + [(LAYERS, WIDTH)])  # and the order
    assert stacks - given == Counter([(LAYERS, ROWS, WIDTH)])


def test_stacks_of_another_depth_are_refused(inputs: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="stacks of"):
        value(functools.partial(through_layers, [layer], count=LAYERS - 1), inputs, {})
    params = random_params(0, FAMILIES["llama2"])
    shallow = dataclasses.replace(FAMILIES["llama2"], num_layers=1)
    with pytest.raises(ValueError, match=r"stacks of \[2\] layers, not of 1"):
        hidden_states(Model(shallow, ComputeConfig(remat="full")), {"params": params}, jnp.zeros((1, 4), jnp.int32))


def test_a_gradient_by_what_layers_share_is_refused_and_not_zero(inputs: dict[str, Any]) -> None:
    def shifted(scale: jax.Array) -> jax.Array:
        def run(own: Any, x: jax.Array, shared: Any) -> jax.Array:
            return by_hand(own, x, {**shared, "scale": scale})

        return value(run, inputs, {})

    with pytest.raises(ValueError, match="no gradient by what layers share"):
        jax.grad(shifted)(jnp.asarray(0.3))


def test_the_gradient_takes_no_memory_beside_the_weights() -> None:
    """Of a working copy, which nothing reads after the backward pass: one stack, where the scan holds two."""
    count, width, rows = 16, 256, 4

    def plain(own: jax.Array, x: jax.Array, _: Any) -> jax.Array:
        return jnp.tanh(x @ own)

    def scanned(own: jax.Array, x: jax.Array, _: Any) -> jax.Array:
        return jax.lax.scan(jax.checkpoint(lambda x, own: (plain(own, x, None), None)), x, own)[0]

    def temporaries(run: Any) -> int:
        def step(weights: jax.Array, x: jax.Array) -> jax.Array:
            grads = jax.grad(lambda copy: jnp.sum(run(copy, x, None) ** 2))(weights * 0.5)
            return weights - grads / jnp.linalg.norm(grads)

        shapes = (
            jax.ShapeDtypeStruct((count, width, width), jnp.float32),
            jax.ShapeDtypeStruct((rows, width), jnp.float32),
        )
        memory = jax.jit(step, donate_argnums=0).lower(*shapes).compile().memory_analysis()
        return int(memory.temp_size_in_bytes)

    stack = 4 * count * width * width
    written_over, beside = temporaries(functools.partial(through_layers, [plain], count=count)), temporaries(scanned)
    assert written_over <= beside
    if jax.__version_info__ >= (0, 10):  # XLA of before copies the weights of such a loop, as of a scan
        assert written_over < 1.5 * stack


@pytest.mark.parametrize("family", ["llama2", "qwen3"])
def test_a_frozen_base_gets_no_gradient_computed(family: str) -> None:
    """With adapters alone trained, weights of the base take part in one product less: theirs."""
    config = FAMILIES[family]
    params = random_params(0, config)
    adapters = random_adapters(1, params)
    model = Model(config, ComputeConfig(remat="full"))
    tokens = jnp.arange(36).reshape(3, 12) % 64

    def total(params: Any, adapters: Any) -> jax.Array:
        return jnp.sum(hidden_states(model, {"params": params, "lora": adapters}, tokens) ** 2)

    def shapes(argument: int) -> list[tuple[int, ...]]:
        """Of what is written into stacks by the backward pass."""
        program = jax.make_jaxpr(jax.grad(total, argnums=argument))(params, adapters)
        loops = [equation for equation in program.eqns if equation.primitive.name in ("while", "scan")]
        return sorted(out.aval.shape for out in loops[-1].outvars if out.aval.ndim > 2 and out.aval.shape[0] == 2)

    kernels = sorted(leaf.shape for leaf in jax.tree.leaves(params["layers"]) if leaf.ndim > 2)
    assert [shape for shape in shapes(0) if shape in kernels] == kernels
    assert not [shape for shape in shapes(1) if shape in kernels]
    assert shapes(1) == sorted(leaf.shape for leaf in jax.tree.leaves(adapters))


def test_the_model_goes_through_its_layers_this_way_when_it_recomputes_them_whole() -> None:
    config = FAMILIES["llama2"]
    params = random_params(0, config)

    def outside(remat: Any) -> list[str]:
        """Operations of the model that stand in no other."""
        model = Model(config, ComputeConfig(remat=remat))
        program = jax.make_jaxpr(lambda params: hidden_states(model, {"params": params}, jnp.zeros((1, 4), jnp.int32)))
        return [equation.primitive.name for equation in program(params).eqns]

    assert "scan" in outside("none") and "scan" in outside("dots")
    assert "scan" not in outside("full")  # it is inside of the function that has a gradient of its own
