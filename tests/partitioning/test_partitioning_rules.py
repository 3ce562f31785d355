"""The table of axes: it covers every parameter, and what it cannot place is refused by name."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, PartitionSpec

from tisdpo_jax import partitioning
from tisdpo_jax.errors import ConfigError
from tisdpo_jax.models import PARAM_AXES, abstract_params, init_adapters
from tisdpo_jax.partitioning import AxisRules
from tisdpo_jax.testing import FAMILIES, device_mesh, random_batch, tiny_config

EVERY_OPTION = tiny_config(qkv_bias=True, output_bias=True, mlp_bias=True, qk_norm=True, post_norms=True)


@pytest.fixture(scope="module")
def mesh() -> Mesh:
    return device_mesh(2, 2, 2)


def leaves(tree: Any) -> dict[str, Any]:
    found: dict[str, Any] = {}
    partitioning.map_with_path(lambda path, leaf: found.update({path: leaf}), tree)
    return found


# Parameters.


@pytest.mark.parametrize("name", [*FAMILIES, "every option"])
def test_every_parameter_and_adapter_of_every_family_is_covered(name: str) -> None:
    config = EVERY_OPTION if name == "every option" else FAMILIES[name]
    params = abstract_params(config)
    lora = jax.eval_shape(lambda key: init_adapters(key, params, rank=4, targets=".*"), jax.random.key(0))
    whole = device_mesh(1, 1, 1)
    assert leaves(partitioning.param_shardings(params, whole)).keys() == leaves(params).keys()
    assert len(leaves(partitioning.param_shardings(lora, whole))) == 2 * 7


def test_no_entry_of_the_table_is_for_a_parameter_that_does_not_exist() -> None:
    params = abstract_params(EVERY_OPTION)
    lora = jax.eval_shape(lambda key: init_adapters(key, params, rank=4, targets=".*"), jax.random.key(0))
    reward = abstract_params(EVERY_OPTION.scoring)
    assert set(PARAM_AXES) == set(leaves(params)) | set(leaves(lora)) | set(leaves(reward))
    assert leaves(reward).keys() ^ leaves(params).keys() == {"score/kernel", "head/kernel"}


def test_where_parameters_lie(mesh: Mesh) -> None:
    got = {
        path: s.spec for path, s in leaves(partitioning.param_shardings(abstract_params(EVERY_OPTION), mesh)).items()
    }
    P = PartitionSpec
    assert got["embed/embedding"] == P("tensor", "fsdp")
    assert got["head/kernel"] == P("fsdp", "tensor")
    assert got["layers/attention/q/kernel"] == got["layers/attention/k/kernel"] == P(None, "fsdp", "tensor")
    assert got["layers/attention/o/kernel"] == got["layers/mlp/down/kernel"] == P(None, "tensor", "fsdp")
    assert got["layers/mlp/gate/kernel"] == got["layers/mlp/up/kernel"] == P(None, "fsdp", "tensor")
    assert got["layers/attention/q/bias"] == got["layers/mlp/up/bias"] == P(None, "tensor")
    assert got["layers/mlp/down/bias"] == P(None, "fsdp")
    assert got["final_norm/scale"] == P(None) and got["layers/attention/q_norm/scale"] == P(None, None)


def test_a_parameter_without_an_entry_raises_and_names_it(mesh: Mesh) -> None:
    params = abstract_params(tiny_config())
    params["layers"]["attention"]["gate"] = {"kernel": jax.ShapeDtypeStruct((2, 32, 32), "float32")}
    with pytest.raises(ValueError, match=r"'layers/attention/gate/kernel' has no entry in models\.PARAM_AXES"):
        partitioning.param_shardings(params, mesh)


def test_a_parameter_of_another_rank_raises(mesh: Mesh) -> None:
    params = {"final_norm": {"scale": jax.ShapeDtypeStruct((2, 32), "float32")}}
    with pytest.raises(ValueError, match=r"'final_norm/scale' has shape \(2, 32\), but PARAM_AXES names 1 axes"):
        partitioning.param_shardings(params, mesh)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"vocab_size": 63}, r"'embed/embedding': its axis 'vocab' of size 63 .* mesh tensor = 2; change mesh\.tensor"),
        ({"hidden_size": 31}, r"'embed/embedding': its axis 'embed' of size 31 .* mesh fsdp = 2; change mesh\.fsdp"),
        ({"intermediate_size": 47}, r"'layers/mlp/down/kernel': its axis 'mlp' of size 47 .*change mesh\.tensor"),
    ],
)
def test_a_dimension_that_does_not_divide_raises_and_is_never_replicated(
    mesh: Mesh, overrides: dict[str, int], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        partitioning.param_shardings(abstract_params(tiny_config(**overrides)), mesh)


@pytest.mark.parametrize(("heads", "kv_heads", "field"), [(3, 3, "num_heads 3"), (2, 1, "num_kv_heads 1")])
def test_heads_are_dealt_out_whole(mesh: Mesh, heads: int, kv_heads: int, field: str) -> None:
    """A kernel can divide by the mesh where its heads do not: 3 heads of width 8 are 24 columns."""
    partitioning.check_heads(4, 2, mesh)
    with pytest.raises(ConfigError, match=rf"{field} does not divide by mesh\.tensor 2; change mesh\.tensor"):
        partitioning.check_heads(heads, kv_heads, mesh)


# Axes.


def test_an_unknown_axis_raises() -> None:
    with pytest.raises(ValueError, match=r"unknown logical axis 'emebd' in \('emebd', 'mlp'\); known: .*batch, embed"):
        partitioning.spec(("emebd", "mlp"))


def test_two_dimensions_on_one_mesh_axis_raise() -> None:
    for axes in (("heads", "vocab"), ("batch", "embed")):
        with pytest.raises(ValueError, match=r"put mesh axis \['(tensor|fsdp)'\] on two dimensions"):
            partitioning.spec(axes)


def test_axes_become_mesh_axes_by_the_rules_given() -> None:
    P = PartitionSpec
    assert partitioning.spec(("batch", None, "heads", None)) == P(("data", "fsdp"), None, "tensor", None)
    assert partitioning.spec(("layers", "norm")) == P(None, None)
    rules = dataclasses.replace(AxisRules(), batch=("data",), vocab=("fsdp", "tensor"), embed=())
    assert partitioning.spec(("vocab", "embed"), rules) == P(("fsdp", "tensor"), None)
    assert partitioning.spec(("batch", "vocab"), rules) == P("data", ("fsdp", "tensor"))


def test_other_rules_reach_the_parameters(mesh: Mesh) -> None:
    rules = dataclasses.replace(AxisRules(), mlp=(), embed=("data", "fsdp"))
    got = leaves(partitioning.param_shardings(abstract_params(tiny_config()), mesh, rules=rules))
    assert got["layers/mlp/up/kernel"].spec == PartitionSpec(None, ("data", "fsdp"), None)


# Meshes.


@pytest.mark.parametrize(
    ("sizes", "shape"),
    [((1, -1, 1), (1, 8, 1)), ((2, -1, 2), (2, 2, 2)), ((-1, 4, 1), (2, 4, 1)), ((1, 1, 8), (1, 1, 8))],
)
def test_one_size_may_be_the_rest(sizes: tuple[int, int, int], shape: tuple[int, int, int]) -> None:
    mesh = partitioning.make_mesh(*sizes)
    assert mesh.axis_names == ("data", "fsdp", "tensor")
    assert mesh.devices.shape == shape
    assert set(mesh.axis_types) == {AxisType.Auto}


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ((1, 3, 1), r"data=1 fsdp=3 tensor=1 needs 3 devices, but there are 8; change mesh\.data"),
        ((1, -1, 3), "data=1 fsdp=2 tensor=3 needs 6 devices, but there are 8"),
        ((2, -1, 8), "data=2 fsdp=1 tensor=8 needs 16 devices, but there are 8"),
        ((0, 8, 1), "data=0 fsdp=8 tensor=1: each is at least 1"),
        ((-1, -1, 1), "at most one is -1"),
        ((1, -2, 1), "each is at least 1"),
    ],
)
def test_meshes_that_do_not_fit_the_devices_raise(sizes: tuple[int, int, int], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        partitioning.make_mesh(*sizes)


def test_a_mesh_of_some_devices() -> None:
    mesh = partitioning.make_mesh(1, -1, 2, devices=jax.devices()[4:8])
    assert mesh.devices.ravel().tolist() == jax.devices()[4:8]
    assert mesh.devices.shape == (1, 2, 2)


# Batches.


def test_every_row_lies_on_the_device_that_the_mesh_says(mesh: Mesh) -> None:
    batch = random_batch(0, pairs=8, layout={"shards": 8, "copies": True})
    placed = partitioning.put_batch(batch, mesh)
    for host, device in zip(jax.tree.leaves(batch), jax.tree.leaves(placed), strict=True):
        np.testing.assert_array_equal(device, host)
        rows = {shard.device: shard.data for shard in device.addressable_shards}
        for (data, fsdp, tensor), where in np.ndenumerate(mesh.devices):
            count = len(host) // 4
            first = count * (2 * data + fsdp)
            np.testing.assert_array_equal(rows[where], host[first : first + count], err_msg=f"{data, fsdp, tensor}")
    expected = partitioning.batch_shardings(batch, mesh)
    assert all(x.sharding == s for x, s in zip(jax.tree.leaves(placed), jax.tree.leaves(expected), strict=True))


@pytest.mark.parametrize(
    ("size", "parts", "expected"), [(8, 2, 8), (6, 1, 8), (1, 1, 4), (12, 2, 16), (8, 1, 8), (9, 2, 16)]
)
def test_a_batch_has_as_many_places_as_divide_by_the_mesh(mesh: Mesh, size: int, parts: int, expected: int) -> None:
    assert partitioning.batch_shards(mesh) == 4
    assert partitioning.places(size, mesh, parts=parts) == expected


def test_gradient_accumulation_steps_that_leave_devices_idle_raise_and_say_how_many_to_take(mesh: Mesh) -> None:
    with pytest.raises(
        ConfigError, match=r"train\.batch_size 9 in 3 micro-batches .* set train\.gradient_accumulation_steps to 2"
    ):
        partitioning.places(9, mesh, parts=3, field="train.batch_size")


def test_a_batch_that_does_not_divide_is_never_replicated(mesh: Mesh) -> None:
    with pytest.raises(ValueError, match=r"should evenly divide|divisible"):
        partitioning.put_batch(random_batch(0, pairs=6), mesh)


def test_replicated_is_whole_everywhere(mesh: Mesh) -> None:
    x = jax.device_put(np.arange(3), partitioning.replicated(mesh))
    assert len(x.addressable_shards) == 8
    assert all(shard.data.shape == (3,) for shard in x.addressable_shards)


# Constraints.


def test_constrain_pins_a_layout_under_a_mesh(mesh: Mesh) -> None:
    function = jax.jit(lambda x: partitioning.constrain(2 * x, ("batch", "heads")))
    with jax.set_mesh(mesh):
        assert partitioning.active_mesh() is not None
        x = function(jnp.ones((8, 4)))
    assert x.sharding.is_equivalent_to(jax.NamedSharding(mesh, PartitionSpec(("data", "fsdp"), "tensor")), 2)


def test_constrain_does_nothing_where_there_is_nothing_to_pin(mesh: Mesh) -> None:
    x = jnp.ones((8, 4))
    assert partitioning.active_mesh() is None
    assert partitioning.constrain(x, ("batch", "heads")) is x
    with jax.set_mesh(jax.make_mesh((8,), ("model",), axis_types=(AxisType.Auto,))):  # a mesh of somebody else's
        assert partitioning.active_mesh() is None

    def local(x: jax.Array) -> jax.Array:
        assert partitioning.active_mesh() is None
        return partitioning.constrain(x, ("batch", "heads"))

    with jax.set_mesh(mesh):
        rows = PartitionSpec(("data", "fsdp"))
        np.testing.assert_array_equal(jax.jit(jax.shard_map(local, in_specs=rows, out_specs=rows))(x), x)


def test_map_with_path_gives_the_public_path_names() -> None:
    tree = {"a": {"b": 1, "c": {"d": 2}}, "e": 3}
    assert partitioning.map_with_path(lambda path, leaf: (path, leaf), tree) == {
        "a": {"b": ("a/b", 1), "c": {"d": ("a/c/d", 2)}},
        "e": ("e", 3),
    }
