"""What a model is: the names and shapes of its parameters, which are public, and configurations that are refused."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import numpy as np
import pytest

from tisdpo_jax.models import ComputeConfig, Model, RopeConfig, TransformerConfig, abstract_params, init_params
from tisdpo_jax.partitioning import map_with_path
from tisdpo_jax.testing import FAMILIES, random_params, tiny_config

# Checkpoints, partitioning rules and adapters hold on to these names. A change here breaks all of them.
LLAMA = {
    "embed/embedding": (64, 32),
    "final_norm/scale": (32,),
    "head/kernel": (32, 64),
    "layers/attention/k/kernel": (2, 32, 16),
    "layers/attention/o/kernel": (2, 32, 32),
    "layers/attention/q/kernel": (2, 32, 32),
    "layers/attention/v/kernel": (2, 32, 16),
    "layers/attention_norm/scale": (2, 32),
    "layers/mlp/down/kernel": (2, 48, 32),
    "layers/mlp/gate/kernel": (2, 32, 48),
    "layers/mlp/up/kernel": (2, 32, 48),
    "layers/mlp_norm/scale": (2, 32),
}
OPTIONS: dict[str, dict[str, tuple[int, ...]]] = {
    "qkv_bias": {f"layers/attention/{name}/bias": (2, width) for name, width in (("q", 32), ("k", 16), ("v", 16))},
    "output_bias": {"layers/attention/o/bias": (2, 32)},
    "mlp_bias": {f"layers/mlp/{name}/bias": (2, width) for name, width in (("gate", 48), ("up", 48), ("down", 32))},
    "qk_norm": {f"layers/attention/{name}_norm/scale": (2, 8) for name in "qk"},
    "post_norms": {f"layers/post_{name}_norm/scale": (2, 32) for name in ("attention", "mlp")},
}


make_params = jax.jit(init_params, static_argnums=(1, 2))


def shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    found: dict[str, tuple[int, ...]] = {}
    map_with_path(lambda path, leaf: found.update({path: leaf.shape}), tree)
    return found


def test_parameter_names_are_pinned() -> None:
    assert shapes(abstract_params(tiny_config())) == LLAMA


@pytest.mark.parametrize("option", OPTIONS)
def test_what_an_option_adds(option: str) -> None:
    assert shapes(abstract_params(tiny_config(**{option: True}))) == LLAMA | OPTIONS[option]


def test_a_tied_head_has_no_kernel() -> None:
    without = {path: shape for path, shape in LLAMA.items() if path != "head/kernel"}
    assert shapes(abstract_params(tiny_config(tied_head=True))) == without


@pytest.mark.parametrize("family", ["qwen2", "smollm2"])
def test_abstract_parameters_are_those_that_are_made(family: str) -> None:
    abstract = abstract_params(FAMILIES[family], "bfloat16")
    made = make_params(jax.random.key(0), FAMILIES[family], "bfloat16")
    assert shapes(abstract) == shapes(made) == shapes(random_params(0, FAMILIES[family]))
    for one, other in zip(jax.tree.leaves(abstract), jax.tree.leaves(made), strict=True):
        assert one.dtype == other.dtype == np.dtype("bfloat16")


def test_initial_values() -> None:
    config = tiny_config(qkv_bias=True, hidden_size=128)
    made = make_params(jax.random.key(0), config, "float32")
    layers = made["layers"]
    np.testing.assert_array_equal(layers["mlp_norm"]["scale"], 1.0)
    np.testing.assert_array_equal(layers["attention"]["q"]["bias"], 0.0)
    kernel = np.asarray(layers["mlp"]["gate"]["kernel"])
    np.testing.assert_allclose([kernel.mean(), kernel.std()], [0.0, 0.02], atol=1e-3)
    assert (kernel[0] != kernel[1]).any(), "each layer its own draw"
    other = make_params(jax.random.key(1), config, "float32")
    assert (np.asarray(other["layers"]["mlp"]["gate"]["kernel"]) != kernel).any()


def test_a_model_is_a_value() -> None:
    """Models are static arguments: equal ones must be one compilation."""
    one, other = Model(tiny_config(rope=RopeConfig(theta=5e5))), Model(tiny_config(rope=RopeConfig(theta=5e5)))
    assert one == other and hash(one) == hash(other)
    assert one != Model(tiny_config()) and one != dataclasses.replace(one, compute=ComputeConfig(remat="full"))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"vocab_size": 0}, "vocab_size is 0; it must be at least 1"),
        ({"num_layers": -1}, "num_layers is -1; it must be at least 1"),
        ({"num_kv_heads": 0}, "num_kv_heads is 0; it must be at least 1"),
        ({"num_heads": 4, "num_kv_heads": 3}, "num_heads 4 is not a multiple of num_kv_heads 3"),
        ({"head_dim": 7}, "head_dim is 7; rotary embedding needs an even number"),
        ({"sliding_window": 0}, "sliding_window is 0; it must be at least 1, or None for none"),
    ],
)
def test_impossible_decoders_are_refused(fields: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=f"TransformerConfig.*{message}"):
        tiny_config(**fields)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: RopeConfig(kind="longrope"), "kind is 'longrope'; one of default, linear, dynamic, llama3, yarn"),
        (lambda: tiny_config(pattern=()), r"pattern is \(\); one or more of sliding, full"),
        (lambda: tiny_config(pattern=("local",)), "pattern is .'local',.; one or more of sliding, full"),
        (lambda: tiny_config(final_softcap=0.0), "final_softcap is 0.0; it must be above 0, or None for none"),
        (lambda: RopeConfig(factor=0.0), "RopeConfig.factor is 0.0; it must be above 0"),
        (lambda: ComputeConfig(remat="layers"), "ComputeConfig.remat is 'layers'; one of none, full, dots"),
        (lambda: ComputeConfig(layer_loop="unrolled"), "ComputeConfig.layer_loop is 'unrolled'; one of scan, unroll"),
        (lambda: ComputeConfig(attention="flash"), "ComputeConfig.attention is 'flash'; one of xla, splash, cudnn"),
    ],
)
def test_names_that_mean_nothing_are_refused(make: Any, message: str) -> None:
    """Not taken for the default in silence."""
    with pytest.raises(ValueError, match=message):
        make()


def test_every_field_has_a_default_or_is_needed() -> None:
    needed = [f.name for f in dataclasses.fields(TransformerConfig) if f.default is dataclasses.MISSING]
    assert needed == [
        "vocab_size",
        "hidden_size",
        "intermediate_size",
        "num_layers",
        "num_heads",
        "num_kv_heads",
        "head_dim",
    ]
