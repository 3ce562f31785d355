"""The fused head on meshes with other axis names: told what lies where, it sends no logits; untold, it says so."""

from __future__ import annotations

import functools
import math
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from tisdpo_jax.scoring import fused_logps, fused_logps_and_kl

PAIRS, ELEMENTS, WIDTH, VOCABULARY, CHUNK = 8, 16, 12, 1024, 8
TOKENS = PAIRS * 2 * ELEMENTS

# sizes by name, axes of the tokens, of rows and columns of the head, and what a caller says of them
MESHES: dict[str, tuple[dict[str, int], tuple[Any, Any, Any], dict[str, Any]]] = {
    "dp, tp": ({"dp": 4, "tp": 2}, ("dp", None, "tp"), {"data": "dp", "tensor": ["tp"]}),
    "columns over two": ({"a": 2, "b": 2, "c": 2}, ("a", None, ("b", "c")), {"data": "a", "tensor": ("b", "c")}),
    "rows over two": ({"a": 2, "b": 2, "c": 2}, (("a", "b"), ("a", "b"), "c"), {"fsdp": ("a", "b"), "tensor": "c"}),
}


def mesh_of(name: str, kind: AxisType = AxisType.Auto) -> Any:
    sizes = MESHES[name][0]
    return jax.make_mesh(tuple(sizes.values()), tuple(sizes), axis_types=(kind,) * len(sizes))


def inputs() -> tuple[jax.Array, jax.Array, jax.Array]:
    random = np.random.default_rng(0)
    hidden = random.normal(0, 1, (PAIRS, 2, ELEMENTS, WIDTH)).astype(np.float32)
    head = random.normal(0, 0.5, (WIDTH, VOCABULARY)).astype(np.float32)
    return jnp.asarray(hidden), jnp.asarray(head), jnp.asarray(random.integers(0, VOCABULARY, hidden.shape[:-1]))


def placed(name: str, mesh: Any) -> tuple[jax.Array, ...]:
    tokens, rows, columns = MESHES[name][1]
    layouts = PartitionSpec(tokens), PartitionSpec(rows, columns), PartitionSpec(tokens)
    return tuple(jax.device_put(x, NamedSharding(mesh, spec)) for x, spec in zip(inputs(), layouts, strict=True))


def step(axes: Any) -> Any:
    """Value and gradients of something in which every token has a weight of its own."""

    def total(hidden: jax.Array, head: jax.Array, targets: jax.Array) -> jax.Array:
        logps = fused_logps(hidden, head, targets, axes=axes, chunk=CHUNK)
        return (jnp.cos(jnp.arange(TOKENS, dtype=jnp.float32)).reshape(logps.shape) * logps).sum()

    return jax.value_and_grad(total, argnums=(0, 1))


@functools.cache
def expected() -> Any:
    return jax.jit(step(None))(*inputs())


def check(got: Any) -> None:
    for one, other in zip(jax.tree.leaves(got), jax.tree.leaves(expected()), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5 * np.abs(other).max())


def travels(text: str) -> list[tuple[str, tuple[int, ...]]]:
    """(collective, shape) of all that moves between devices in a compiled program; the largest of several."""
    kinds = "all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter"
    out = []
    for result, kind in re.findall(rf"= (.*?) ({kinds})(?:-start)?\(", text):
        shapes = [tuple(int(n) for n in dims.split(",") if n) for dims in re.findall(r"\w+\[([0-9,]*)\]", result)]
        out.append((kind, max(shapes, key=math.prod)))
    return out


def over_the_vocabulary(text: str) -> list[tuple[str, tuple[int, ...]]]:
    """Of what travels, that which reaches over a part of the vocabulary; a number for each token does not."""
    return [move for move in travels(text) if max(move[1], default=0) >= VOCABULARY // 8 and move[1] != (TOKENS,)]


def logits(moves: list[tuple[str, tuple[int, ...]]]) -> list[Any]:
    """Those that are no head, nor its gradient: a head has its own rows."""
    return [move for move in moves if move[1][0] not in (WIDTH, WIDTH // 4)]


@pytest.mark.parametrize(
    ("name", "kind"), [*((name, AxisType.Auto) for name in MESHES), ("rows over two", AxisType.Explicit)]
)
def test_told_what_lies_where_it_sends_no_logits(name: str, kind: AxisType) -> None:
    """The mesh need not be set: it is that on which the arrays lie, be it one of them."""
    arrays = placed(name, mesh_of(name, kind))
    if kind is AxisType.Explicit:
        arrays = (*arrays[:2], np.asarray(arrays[2]))
    compiled = jax.jit(step(MESHES[name][2])).lower(*arrays).compile()
    check(compiled(*arrays))
    moves = over_the_vocabulary(compiled.as_text())
    assert moves and logits(moves) == [] and "all-gather" not in {kind for kind, _ in moves}


def test_untold_it_warns_by_name_and_logits_travel() -> None:
    arrays = placed("rows over two", mesh_of("rows over two"))
    names = r"mesh axis 'a' \(2 devices\) and 'b' \(2 devices\) and 'c' \(2 devices\) has no part here"
    with pytest.warns(UserWarning, match=f"fused_logps: {names}"):
        compiled = jax.jit(step(None)).lower(*arrays).compile()
    check(compiled(*arrays))
    assert logits(over_the_vocabulary(compiled.as_text())), "what the other test looks for is found here"


def test_axes_of_the_package_have_their_parts_on_any_mesh() -> None:
    """A mesh of some of the names; an axis that no name fits is warned of, one of a single device is not."""
    axis_types = (AxisType.Auto,) * 3
    mesh = jax.make_mesh((4, 2, 1), ("data", "tensor", "stage"), axis_types=axis_types)
    with jax.set_mesh(mesh):
        program = jax.make_jaxpr(step(None))(*inputs())
    assert "shard_map" in str(program)
    mesh = jax.make_mesh((4, 2), ("data", "context"), axis_types=axis_types[:2])
    with jax.set_mesh(mesh), pytest.warns(UserWarning, match=r"mesh axis 'context' \(2 devices\) has no part here"):
        jax.make_jaxpr(step(None))(*inputs())
    with jax.set_mesh(jax.make_mesh((1, 1), ("dp", "tp"), axis_types=axis_types[:2], devices=jax.devices()[:1])):
        jax.make_jaxpr(step(None))(*inputs())


def test_policy_and_reference_on_a_foreign_mesh() -> None:
    hidden, head, targets = inputs()
    other = hidden[..., ::-1], head[::-1] * 0.9
    want = jax.jit(functools.partial(fused_logps_and_kl, chunk=64))(hidden, head, *other, targets)
    with jax.set_mesh(mesh_of("dp, tp")):
        told = functools.partial(fused_logps_and_kl, chunk=8, axes=MESHES["dp, tp"][2])
        got = jax.jit(told)(hidden, head, *other, targets)
    for one, other_one in zip(got, want, strict=True):
        np.testing.assert_allclose(one, other_one, rtol=1e-5, atol=1e-5)


@pytest.mark.skipif(
    jax.__version_info__ < (0, 8), reason="jax 0.7 cannot map the other axes inside a shard_map of some"
)
def test_inside_a_shard_map_of_some_axes_the_others_may_be_told() -> None:
    mesh, spec = mesh_of("dp, tp"), PartitionSpec("dp")

    def local(axes: Any) -> Any:
        return jax.shard_map(
            functools.partial(fused_logps, axes=axes, chunk=CHUNK),
            mesh=mesh,
            in_specs=(spec, PartitionSpec(), spec),
            out_specs=spec,
            axis_names={"dp"},
            check_vma=False,
        )

    want = jax.jit(functools.partial(fused_logps, chunk=CHUNK))(*inputs())
    np.testing.assert_allclose(jax.jit(local({"tensor": "tp"}))(*inputs()), want, rtol=1e-5)
    with pytest.raises(ValueError, match="axes names 'dp', which a shard_map around the call has mapped"):
        jax.make_jaxpr(local({"data": "dp", "tensor": "tp"}))(*inputs())


@pytest.mark.parametrize(
    ("axes", "message"),
    [
        ({"data": "batch"}, "axes names 'batch', but the axes of the mesh are 'dp', 'tp'"),
        ({"data": "dp", "tensor": ("tp", "dp")}, "axes names 'dp' twice; an axis has one part"),
        ({"vocabulary": "tp"}, "it must be a dict with keys of data, fsdp, tensor"),
        (("dp", "tp"), "it must be a dict with keys of data, fsdp, tensor"),
    ],
    ids=str,
)
def test_axes_that_cannot_be_are_named(axes: Any, message: str) -> None:
    with jax.set_mesh(mesh_of("dp, tp")), pytest.raises(ValueError, match=f"fused_logps: .*{message}"):
        jax.make_jaxpr(step(axes))(*inputs())


def test_axes_without_a_mesh_are_an_error() -> None:
    with pytest.raises(ValueError, match="axes names 'dp', but no mesh is set"):
        fused_logps(*inputs(), axes={"data": "dp"})
