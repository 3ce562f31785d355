"""Frozen layers in int8: as near as 8 bits are, the same model as its dequantised weights, under adapters too."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tisdpo_jax import partitioning
from tisdpo_jax.models import Int8, Model, abstract_params, hidden_states, quantize
from tisdpo_jax.models.leaves import dense, take_rows
from tisdpo_jax.testing import FAMILIES, device_mesh, random_adapters, random_params, tiny_config
from tisdpo_jax.types import Params

TOKENS = np.random.default_rng(0).integers(0, 64, (8, 10), np.int32)
apply = jax.jit(hidden_states, static_argnums=0)


def leaves(tree: Params) -> dict[str, Any]:
    found: dict[str, Any] = {}
    partitioning.map_with_path(lambda path, leaf: found.update({path: leaf}), tree)
    return found


def dequantised(params: Params) -> Params:
    return partitioning.map_with_path(lambda _, leaf: dense(leaf), params)


@functools.cache
def small(family: str) -> Params:
    return quantize(random_params(0, FAMILIES[family]))


def test_every_entry_is_within_half_a_step_and_the_largest_of_a_channel_is_exact() -> None:
    params = random_params(0, FAMILIES["qwen2"])
    before, after = leaves(params), leaves(quantize(params))
    kernels = [path for path in before if path.startswith("layers/") and path.endswith("/kernel")]
    assert len(kernels) == 7
    for path in kernels:
        wide, scale = np.asarray(before[path]), np.asarray(after[path].scale)
        assert after[path].dtype == jnp.int8 and scale.dtype == np.float32 and scale.shape == wide[:, 0].shape
        back = np.asarray(after[path].dense())
        np.testing.assert_array_equal(back, np.asarray(after[path].values, np.float32) * scale[:, None])
        assert (np.abs(back - wide) <= 0.5001 * scale[:, None]).all()
        np.testing.assert_array_equal(np.abs(np.asarray(after[path].values, np.int32)).max(1), 127)
        np.testing.assert_allclose(np.abs(back).max(1), np.abs(wide).max(1), rtol=1e-6)
    for path in before.keys() - set(kernels):
        assert after[path] is before[path], f"{path} stays as it is"
    assert after.keys() == before.keys()
    some = np.asarray([[3, 0], [1, 3]])
    table = Int8.of(before["embed/embedding"])
    np.testing.assert_array_equal(take_rows(table, some, "float32"), table.dense()[some])


def test_a_channel_of_nothing_stays_nothing() -> None:
    params = random_params(0, FAMILIES["llama2"])
    kernel = params["layers"]["mlp"]["up"]["kernel"]
    params["layers"]["mlp"]["up"]["kernel"] = kernel.at[:, :, 3].set(0.0)
    small = quantize(params)["layers"]["mlp"]["up"]["kernel"]
    np.testing.assert_array_equal(small.values[:, :, 3], 0)
    assert np.isfinite(small.scale).all()


def test_the_model_is_that_of_the_dequantised_weights() -> None:
    model = Model(FAMILIES["qwen2"])
    plain = apply(model, {"params": small("qwen2")}, TOKENS)
    np.testing.assert_allclose(plain, apply(model, {"params": dequantised(small("qwen2"))}, TOKENS), atol=2e-5)
    exact = apply(model, {"params": random_params(0, model.config)}, TOKENS)
    assert 1e-4 < float(jnp.abs(plain - exact).mean()) < 0.05, "near, and not the same"


def test_an_adapter_and_its_gradients_are_those_over_the_dequantised_weights() -> None:
    model = Model(FAMILIES["qwen2"])
    lora = random_adapters(1, random_params(0, model.config))

    @jax.jit
    def gradient(lora: Params, params: Params) -> tuple[Params, jax.Array]:
        def total(lora: Params) -> tuple[jax.Array, jax.Array]:
            out = hidden_states(model, {"params": params, "lora": lora}, jnp.asarray(TOKENS))
            return (out * jnp.cos(jnp.arange(out.size).reshape(out.shape))).sum(), out

        return jax.grad(total, has_aux=True)(lora)

    (got, out), (expected, same) = gradient(lora, small("qwen2")), gradient(lora, dequantised(small("qwen2")))
    np.testing.assert_allclose(out, same, atol=2e-5)
    for one, other in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(one, other, atol=2e-5 * float(jnp.abs(other).max()))


def test_on_a_mesh_it_is_the_same_model_and_lies_as_its_weights_do() -> None:
    config = tiny_config(qkv_bias=True)
    params, mesh = quantize(random_params(0, config)), device_mesh(2, 2, 2)
    shardings = partitioning.param_shardings(params, mesh)
    place = leaves(shardings)
    up = place["layers/mlp/up/kernel"]
    assert (up.values.spec, up.scale.spec) == tuple(
        map(partitioning.spec, (("layers", "embed", "mlp"), ("layers", "mlp")))
    )
    with jax.set_mesh(mesh):
        got = apply(Model(config), {"params": jax.device_put(params, shardings)}, partitioning.put_batch(TOKENS, mesh))
    np.testing.assert_allclose(got, apply(Model(config), {"params": params}, TOKENS), atol=2e-5)


def test_shapes_alone_are_enough_to_plan_with() -> None:
    config = tiny_config()
    planned = jax.eval_shape(quantize, abstract_params(config))
    made = quantize(random_params(0, config))
    assert jax.tree.map(lambda x: (x.shape, x.dtype), planned) == jax.tree.map(lambda x: (x.shape, x.dtype), made)
