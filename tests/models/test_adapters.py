"""LoRA: nothing at first, on top of the base when trained, the same merged, and alone in the gradient."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tisdpo_jax.errors import ConfigError
from tisdpo_jax.models import ComputeConfig, Model, hidden_states, init_adapters, merge
from tisdpo_jax.partitioning import map_with_path
from tisdpo_jax.testing import FAMILIES, random_adapters, random_params
from tisdpo_jax.types import Params

ALL = "attention/(q|k|v|o)|mlp/(gate|up|down)"
SCALE = 2.0
TOKENS = np.random.default_rng(0).integers(0, 64, (2, 10), np.int32)

apply = jax.jit(hidden_states, static_argnums=0)


@functools.cache
def base(family: str = "qwen2") -> Params:
    return random_params(0, FAMILIES[family])


def model(family: str = "qwen2", **compute: Any) -> Model:
    return Model(FAMILIES[family], ComputeConfig(lora_scale=SCALE, **compute))


def paths(tree: Params) -> dict[str, tuple[int, ...]]:
    found: dict[str, tuple[int, ...]] = {}
    map_with_path(lambda path, leaf: found.update({path: leaf.shape}), tree)
    return found


def test_fresh_adapters_change_nothing_to_the_last_bit() -> None:
    lora = init_adapters(jax.random.key(0), base(), rank=4, targets=ALL)
    with_adapter = apply(model(), {"params": base(), "lora": lora}, TOKENS)
    np.testing.assert_array_equal(with_adapter, apply(model(), {"params": base()}, TOKENS))
    leaves = paths(lora)
    assert all(
        bool((leaf == 0).all()) == (path[-1].key == "b") for path, leaf in jax.tree_util.tree_leaves_with_path(lora)
    )
    assert leaves["layers/attention/q/a"] == (2, 32, 4) and leaves["layers/attention/q/b"] == (2, 4, 32)
    assert leaves["layers/mlp/down/a"] == (2, 48, 4) and leaves["layers/mlp/down/b"] == (2, 4, 32)
    assert len(leaves) == 2 * 7


def test_initial_a_has_the_spread_that_keeps_sizes() -> None:
    lora = init_adapters(jax.random.key(0), base(), rank=64, targets="mlp/gate")
    a = np.asarray(lora["layers"]["mlp"]["gate"]["a"])
    np.testing.assert_allclose(a.std(), 32**-0.5, rtol=0.05)
    assert np.abs(a).max() <= (3 / 32) ** 0.5
    assert (a[0] != a[1]).any(), "each layer its own draw"


@pytest.mark.parametrize(("family", "layer_loop"), [("qwen2", "scan"), ("qwen3", "unroll")])
def test_merging_is_the_adapter_switched_on(family: str, layer_loop: str) -> None:
    lora = random_adapters(1, base(family))
    on = apply(model(family, layer_loop=layer_loop), {"params": base(family), "lora": lora}, TOKENS)
    merged = apply(model(family, layer_loop=layer_loop), {"params": merge(base(family), lora, SCALE)}, TOKENS)
    np.testing.assert_allclose(on, merged, atol=2e-5)
    off = apply(model(family, layer_loop=layer_loop), {"params": base(family)}, TOKENS)
    assert float(jnp.abs(on - off).max()) > 0.1


def test_merge_adds_scale_a_b_to_the_kernels_it_names_and_to_nothing_else() -> None:
    lora = random_adapters(2, base(), targets="attention/v")
    merged = merge(base(), lora, SCALE)
    adapter = lora["layers"]["attention"]["v"]
    for path, leaf in jax.tree_util.tree_leaves_with_path(merged):
        before = functools.reduce(lambda node, key: node[key.key], path, base())
        if [key.key for key in path] == ["layers", "attention", "v", "kernel"]:
            expected = before + SCALE * np.einsum("lir,lro->lio", adapter["a"], adapter["b"])
            np.testing.assert_allclose(leaf, expected, rtol=1e-5, atol=1e-6)
        else:
            assert leaf is before


def test_merge_adds_in_float32_and_keeps_the_dtype_of_the_base() -> None:
    low = jax.tree.map(lambda x: x.astype("bfloat16"), base())
    lora = random_adapters(2, base(), targets="mlp/up")
    merged = merge(low, lora, SCALE)["layers"]["mlp"]["up"]["kernel"]
    exact = merge(jax.tree.map(lambda x: x.astype("float32"), low), lora, SCALE)["layers"]["mlp"]["up"]["kernel"]
    assert merged.dtype == jnp.bfloat16
    np.testing.assert_array_equal(merged, exact.astype("bfloat16"))


def test_merge_refuses_an_adapter_of_another_model() -> None:
    lora = random_adapters(0, base())
    lora["layers"]["attention"]["qkv"] = lora["layers"]["attention"].pop("q")
    with pytest.raises(ValueError, match=r"adapter holds \['layers.*qkv'\], which the parameters do not have"):
        merge(base(), lora, SCALE)


def test_the_gradient_of_an_adapter_needs_no_base() -> None:
    """What is differentiated is the adapter; at b = 0 its b moves and its a does not yet."""

    def total(lora: Params, b_factor: float) -> jax.Array:
        lora = map_with_path(lambda path, x: x * b_factor if path.endswith("/b") else x, lora)
        out = hidden_states(model(), {"params": base(), "lora": lora}, jnp.asarray(TOKENS))
        return (out * jnp.cos(jnp.arange(out.size).reshape(out.shape))).sum()

    lora = random_adapters(3, base())
    gradient = jax.jit(jax.grad(total))
    trained, fresh = gradient(lora, 1.0), gradient(lora, 0.0)
    assert jax.tree.structure(trained) == jax.tree.structure(lora)
    assert all(bool((leaf != 0).any()) for leaf in jax.tree.leaves(trained))
    for path, leaf in jax.tree_util.tree_leaves_with_path(fresh):
        if path[-1].key == "a":
            np.testing.assert_array_equal(leaf, 0.0)


def test_adapters_of_some_projections_leave_the_others_alone() -> None:
    lora = random_adapters(4, base(), targets="attention/(q|v)")
    assert {path.rpartition("/")[0] for path in paths(lora)} == {"layers/attention/q", "layers/attention/v"}
    everything = random_adapters(4, base())
    part = {"layers": {"attention": {name: everything["layers"]["attention"][name] for name in "qv"}}}
    on = apply(model(), {"params": base(), "lora": part}, TOKENS)
    zeroed = map_with_path(
        lambda path, x: x if path.startswith(("layers/attention/q", "layers/attention/v")) else jnp.zeros_like(x),
        everything,
    )
    np.testing.assert_array_equal(on, apply(model(), {"params": base(), "lora": zeroed}, TOKENS))


def test_shapes_alone_are_enough_to_plan_with() -> None:
    def make(key: jax.Array) -> Params:
        return init_adapters(key, base(), rank=8, targets=ALL, dtype="bfloat16")

    planned = jax.eval_shape(make, jax.random.key(0))
    made = make(jax.random.key(0))
    assert paths(planned) == paths(made)
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(made)} == {"bfloat16"}


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        ("attention/query", r"lora\.targets 'attention/query' matches no projection; there are: attention/k, .*mlp/up"),
        ("attention/(q", r"lora\.targets 'attention/\(q' is not a regular expression"),
        ("", "matches no projection"),
    ],
)
def test_targets_that_select_nothing_raise(targets: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        init_adapters(jax.random.key(0), base(), rank=4, targets=targets)
