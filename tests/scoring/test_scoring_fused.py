"""The fused head against the plain one: same values, same gradients, and no logits of all elements in the program."""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from programs import arrays, compiled_shapes, equations, largest

from tisdpo_jax.scoring import fused_logps, fused_logps_and_kl, kl_from_logits, logps_from_logits
from tisdpo_jax.testing import device_mesh

DIRECTIONS = ("policy||reference", "reference||policy")
PAIRS, ELEMENTS, VOCABULARY = 4, 13, 37


class Heads(NamedTuple):
    hidden: jax.Array  # [B, 2, N, D]
    head: jax.Array  # [D, V]
    reference_hidden: jax.Array  # [B, 2, N, D'], D' another width
    reference_head: jax.Array
    targets: jax.Array


def heads(dtype: str = "float32", *, pairs: int = PAIRS, elements: int = ELEMENTS, width: int = 16) -> Heads:
    random = np.random.default_rng(0)

    def array(*shape: int, scale: float) -> jax.Array:
        return jnp.asarray(random.normal(0, scale, shape), dtype)

    return Heads(
        array(pairs, 2, elements, width, scale=1.0),
        array(width, VOCABULARY, scale=0.6),
        array(pairs, 2, elements, 10, scale=1.0),
        array(10, VOCABULARY, scale=0.6),
        jnp.asarray(random.integers(0, VOCABULARY, (pairs, 2, elements)), jnp.int32),
    )


def matmul(hidden: jax.Array, head: jax.Array) -> jax.Array:
    return jnp.matmul(hidden, head.astype(hidden.dtype), preferred_element_type=jnp.float32)


def plain(h: Heads, direction: Any, caps: tuple[float, float] | None = None) -> tuple[jax.Array, ...]:
    ours, theirs = matmul(h.hidden, h.head), matmul(h.reference_hidden, h.reference_head)
    if caps:
        ours, theirs = (cap * jnp.tanh(z / cap) for cap, z in zip(caps, (ours, theirs), strict=True))
    theirs = jax.lax.stop_gradient(theirs)
    kl = kl_from_logits(ours, theirs, direction=direction)
    return logps_from_logits(ours, h.targets), logps_from_logits(theirs, h.targets), kl


def fused(h: Heads, direction: Any, chunk: int) -> tuple[jax.Array, ...]:
    return fused_logps_and_kl(*h, direction=direction, chunk=chunk)


def compiled(function: Callable[..., Any]) -> Any:
    """jit, with whole outputs on a mesh: jax 0.7 has no name for how it would split what does not divide."""
    return jax.jit(function, out_shardings=None if jax.sharding.get_abstract_mesh().empty else PartitionSpec())


def pull(function: Callable[[Heads], tuple[jax.Array, ...]], h: Heads) -> tuple[Any, Heads]:
    """Outputs, and the gradient of a sum in which every element of every output has a weight of its own."""

    def total(floats: Heads) -> tuple[jax.Array, Any]:
        out = function(floats._replace(targets=h.targets))
        weights = [jnp.cos(jnp.arange(x.size, dtype=jnp.float32) + i).reshape(x.shape) for i, x in enumerate(out)]
        return sum((w * x).sum() for w, x in zip(weights, out, strict=True)), out

    grad, out = compiled(jax.grad(total, has_aux=True))(h._replace(targets=jnp.zeros(())))
    return out, grad


def near(one: Any, other: Any, tolerance: float) -> None:
    """Relative to the largest entry."""
    one, other = (np.asarray(x, np.float32) for x in (one, other))
    np.testing.assert_allclose(one, other, rtol=tolerance, atol=tolerance * np.abs(other).max())


@functools.cache
def of_plain(direction: Any) -> tuple[Any, Heads]:
    return pull(lambda h: plain(h, direction), heads())


# Of the 104 tokens, 30 at a time leave padding, 1 is the least, and 1000 is more than there are.
@pytest.mark.parametrize(("direction", "chunk"), [(DIRECTIONS[1], 30), (DIRECTIONS[0], 1), (DIRECTIONS[1], 1000)])
def test_fused_is_plain(direction: Any, chunk: int) -> None:
    got, got_grad = pull(lambda h: fused(h, direction, chunk), heads())
    expected, expected_grad = of_plain(direction)
    for one, other in zip((*got, *got_grad[:2]), (*expected, *expected_grad[:2]), strict=True):
        near(one, other, 1e-5)
    np.testing.assert_array_equal(got_grad.reference_hidden, 0.0)
    np.testing.assert_array_equal(got_grad.reference_head, 0.0)


@pytest.mark.parametrize("chunk", [30, 1000])
def test_fused_logps_is_plain(chunk: int) -> None:
    h = heads()
    got, got_grad = pull(lambda h: (fused_logps(h.hidden, h.head, h.targets, chunk=chunk),), h)
    expected, expected_grad = pull(lambda h: (logps_from_logits(matmul(h.hidden, h.head), h.targets),), h)
    for one, other in zip((*got, *got_grad[:2]), (*expected, *expected_grad[:2]), strict=True):
        near(one, other, 1e-5)


def test_the_shape_before_the_elements_is_free() -> None:
    h = heads()
    logps = jax.jit(functools.partial(fused_logps, chunk=30))
    whole = logps(h.hidden, h.head, h.targets)
    np.testing.assert_allclose(logps(h.hidden[1, 0], h.head, h.targets[1, 0]), whole[1, 0], rtol=1e-5)
    assert logps(h.hidden[:, :, :0], h.head, h.targets[:, :, :0]).shape == (PAIRS, 2, 0)


def test_tokens_are_cut_evenly() -> None:
    """104 tokens, 60 at a time: two blocks of 52, not 60 and 60 of which 16 are padding."""
    h = heads()
    rows = {
        aval.shape[-2]
        for aval in arrays(jax.make_jaxpr(lambda h: fused(h, DIRECTIONS[0], 60))(h).jaxpr)
        if aval.shape[-1:] == (VOCABULARY,) and aval.ndim == 2
    }
    assert max(rows) == 52


# On meshes: the vocabulary is split, and so are the tokens.

MESHES = [(1, 8, 1), (2, 2, 2), (2, 4, 1), (1, 1, 8)]
# The direction is in the formula, where tokens lie is not: each has its turn.
SPREAD = [*zip(MESHES, DIRECTIONS * 2, strict=True)]
# Without a mesh, on one: both directions, and all axes.
BOTH = [(None, DIRECTIONS[0]), ((2, 2, 2), DIRECTIONS[1])]


@pytest.mark.parametrize(("shape", "direction"), SPREAD, ids=str)
def test_on_a_mesh_fused_is_plain_on_one_device(shape: tuple[int, int, int], direction: Any) -> None:
    """Nothing divides: 104 tokens in blocks of 5, a vocabulary of 37, widths of 16 and 10."""
    with jax.set_mesh(device_mesh(*shape)):
        got, got_grad = pull(lambda h: fused(h, direction, 5), heads())
    expected, expected_grad = of_plain(direction)
    for one, other in zip((*got, *got_grad[:2]), (*expected, *expected_grad[:2]), strict=True):
        near(one, other, 1e-5)


@pytest.mark.parametrize(("shape", "direction"), BOTH, ids=str)
def test_logits_of_either_model_may_have_a_soft_cap(shape: tuple[int, int, int] | None, direction: Any) -> None:
    caps = 1.5, 2.5
    options: dict[str, Any] = {"direction": direction, "chunk": 5, "softcap": caps[0], "reference_softcap": caps[1]}
    with contextlib.nullcontext() if shape is None else jax.set_mesh(device_mesh(*shape)):
        got, got_grad = pull(lambda h: fused_logps_and_kl(*h, **options), heads())
    expected, expected_grad = pull(lambda h: plain(h, direction, caps), heads())
    assert float(jnp.abs(expected[0] - of_plain(direction)[0][0]).max()) > 1
    for one, other in zip((*got, *got_grad[:2]), (*expected, *expected_grad[:2]), strict=True):
        near(one, other, 1e-5)


@pytest.mark.parametrize(("pairs", "elements", "width"), [(1, 1, 16), (3, 5, 7)])
def test_on_a_mesh_any_number_of_tokens_and_any_width(pairs: int, elements: int, width: int) -> None:
    h = heads(pairs=pairs, elements=elements, width=width)
    with jax.set_mesh(device_mesh(1, 4, 2)):
        got, got_grad = pull(lambda h: (fused_logps(h.hidden, h.head, h.targets, chunk=3),), h)
    expected, expected_grad = pull(lambda h: (logps_from_logits(matmul(h.hidden, h.head), h.targets),), h)
    for one, other in zip((*got, *got_grad[:2]), (*expected, *expected_grad[:2]), strict=True):
        near(one, other, 1e-5)


@pytest.mark.parametrize("shape", [None, (2, 2, 2)], ids=str)
def test_a_tied_head_gets_both_gradients(shape: tuple[int, int, int] | None) -> None:
    """The table that tokens were looked up in is the head: its gradient is that of both uses."""
    h = heads()
    table = h.head.T

    def total(table: jax.Array, function: Any) -> jax.Array:
        hidden = table[h.targets[:, ::-1]] * h.hidden
        return sum(x.sum() for x in function(h._replace(hidden=hidden, head=table.T)))

    expected = jax.jit(jax.grad(functools.partial(total, function=lambda h: plain(h, DIRECTIONS[0]))))(table)
    with contextlib.nullcontext() if shape is None else jax.set_mesh(device_mesh(*shape)):
        got = jax.jit(jax.grad(functools.partial(total, function=lambda h: fused(h, DIRECTIONS[0], 6))))(table)
    near(got, expected, 1e-5)


@pytest.mark.parametrize("shape", [None, (2, 2, 2)], ids=str)
def test_a_token_that_is_not_a_number_spoils_itself_alone(shape: tuple[int, int, int] | None) -> None:
    h = heads()
    bad = h._replace(hidden=h.hidden.at[1, 0, 3, 2].set(jnp.nan))
    with contextlib.nullcontext() if shape is None else jax.set_mesh(device_mesh(*shape)):
        logps, reference_logps, kl = compiled(lambda h: fused(h, DIRECTIONS[0], 6))(bad)
    expected = of_plain(DIRECTIONS[0])[0]
    where = np.isnan(bad.hidden).any(-1)
    for one, other in zip((logps, kl), expected[::2], strict=True):
        np.testing.assert_array_equal(np.isnan(one), where)
        near(one[~where], other[~where], 1e-5)
    near(reference_logps, expected[1], 1e-5)


@pytest.mark.parametrize(("shape", "direction"), BOTH, ids=str)
def test_a_model_is_at_distance_zero_from_itself(shape: tuple[int, int, int] | None, direction: Any) -> None:
    h = heads()
    same = h._replace(reference_hidden=h.hidden, reference_head=h.head)
    with contextlib.nullcontext() if shape is None else jax.set_mesh(device_mesh(*shape)):
        (logps, reference_logps, kl), grad = pull(lambda h: fused(h, direction, 6), same)
    np.testing.assert_array_equal(kl, 0.0)
    np.testing.assert_array_equal(logps, reference_logps)
    assert np.isfinite(grad.head).all()


# bfloat16.


@pytest.mark.parametrize("chunk", [8, 1000])
def test_the_gradient_of_a_bfloat16_head_is_summed_in_float32(chunk: int) -> None:
    h = heads("bfloat16", pairs=16)
    _, grad = pull(lambda h: fused(h, DIRECTIONS[0], chunk), h)
    assert grad.head.dtype == grad.hidden.dtype == jnp.bfloat16
    # the same bfloat16 numbers, everything in float32
    exact = Heads(*(x.astype("float32") for x in h[:4]), h.targets)
    _, expected = pull(lambda h: plain(h, DIRECTIONS[0]), exact)
    # what bfloat16 itself costs, whatever the sums are taken in: 8 bits of each entry of the logits' gradient
    near(grad.head, expected.head, 1e-2)
    near(grad.hidden, expected.hidden, 2e-2)


def test_summing_in_bfloat16_would_be_worse() -> None:
    h = heads("bfloat16", pairs=64)
    exact = Heads(*(x.astype("float32") for x in h[:4]), h.targets)

    def naive(h: Heads) -> tuple[jax.Array, ...]:
        """A scan over elements that automatic differentiation turns round: its cotangent of the head is bfloat16."""

        def block(_: None, inputs: tuple[jax.Array, jax.Array]) -> tuple[None, jax.Array]:
            hidden, targets = inputs
            return None, logps_from_logits(matmul(hidden, h.head), targets)

        _, out = jax.lax.scan(block, None, (jnp.moveaxis(h.hidden, 2, 0), jnp.moveaxis(h.targets, 2, 0)))
        return (jnp.moveaxis(out, 0, 2),)

    _, expected = pull(lambda h: (logps_from_logits(matmul(h.hidden, h.head), h.targets),), exact)
    errors = []
    for function in (naive, lambda h: (fused_logps(h.hidden, h.head, h.targets, chunk=2 * 64),)):
        _, grad = pull(function, h)
        errors.append(float(jnp.abs(grad.head.astype(jnp.float32) - expected.head).mean()))
    assert errors[1] < 0.7 * errors[0], f"naive {errors[0]:.2e}, fused {errors[1]:.2e}"


def test_a_head_may_be_stored_in_another_dtype_than_the_hidden_states() -> None:
    h = heads()
    stored = h._replace(head=h.head.astype("bfloat16"))
    out, grad = pull(lambda h: fused(h, DIRECTIONS[0], 30), stored)
    assert grad.head.dtype == jnp.bfloat16 and grad.hidden.dtype == jnp.float32
    expected, _ = pull(lambda h: plain(h, DIRECTIONS[0]), stored)
    for one, other in zip(out, expected, strict=True):
        near(one, other, 1e-5)


# The program.


def largest_over_the_vocabulary(function: Callable[[Heads], Any], h: Heads) -> int:
    """Elements in the largest array whose last axis is the vocabulary, of value and gradient."""

    def both(floats: Heads) -> Any:
        return jax.value_and_grad(lambda f: sum(x.sum() for x in function(f._replace(targets=h.targets))))(floats)

    program = jax.make_jaxpr(both)(h._replace(targets=jnp.zeros(()))).jaxpr
    return max(a.size for a in arrays(program) if a.shape[-1:] == (VOCABULARY,))


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_no_logits_of_all_tokens_in_value_and_gradient(direction: Any) -> None:
    h, chunk = heads(elements=24), 32
    block = chunk * VOCABULARY
    assert largest_over_the_vocabulary(lambda h: fused(h, direction, chunk), h) == block
    assert largest_over_the_vocabulary(lambda h: (fused_logps(h.hidden, h.head, h.targets, chunk=chunk),), h) == block
    assert largest_over_the_vocabulary(lambda h: plain(h, direction), h) == 6 * block, "the walk does find them"


@pytest.mark.parametrize("shape", [None, (1, 8, 1)], ids=str)
def test_a_head_that_is_not_trained_costs_no_gradient(shape: tuple[int, int, int] | None) -> None:
    """With adapters the head is frozen: no product has its shape, and nothing that is carried has."""
    h = heads()
    share = (16, VOCABULARY) if shape is None else (16, -(-VOCABULARY // 8))

    def made(argnums: Any) -> set[tuple[int, ...]]:
        def total(hidden: jax.Array, head: jax.Array) -> jax.Array:
            return sum(x.sum() for x in fused(h._replace(hidden=hidden, head=head), DIRECTIONS[0], 5))

        with contextlib.nullcontext() if shape is None else jax.set_mesh(device_mesh(*shape)):
            program = jax.make_jaxpr(jax.grad(total, argnums=argnums))(h.hidden, h.head).jaxpr
        return {
            variable.aval.shape
            for equation in equations(program)
            if equation.primitive.name in ("dot_general", "scan", "add_any", "add")
            for variable in equation.outvars
        }

    assert share in made((0, 1)), "the walk does find it"
    assert share not in made(0) and (16, VOCABULARY) not in made(0)


@pytest.mark.parametrize("shape", [(1, 8, 1), (2, 4, 1), (2, 2, 2)], ids=str)
def test_no_device_ever_holds_a_whole_head(shape: tuple[int, int, int]) -> None:
    """Of the compiled program of a device, nothing is larger than a block of tokens times a slice of the vocabulary."""
    vocabulary, width, tokens, chunk = 1024, 32, 1024, 8
    mesh = device_mesh(*shape)
    table = NamedSharding(mesh, PartitionSpec("fsdp", "tensor"))
    rows, whole = NamedSharding(mesh, PartitionSpec(("data", "fsdp"))), NamedSharding(mesh, PartitionSpec())

    def total(hidden: jax.Array, head: jax.Array, reference: jax.Array, other: jax.Array, targets: jax.Array) -> Any:
        out = fused_logps_and_kl(hidden, head, reference, other, targets, chunk=chunk)
        return sum(x.sum() for x in out)

    def struct(shape: tuple[int, ...], sharding: Any, dtype: Any = "float32") -> Any:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)

    hidden, head = struct((tokens, width), rows), struct((width, vocabulary), table)
    targets = struct((tokens,), rows, "int32")
    with jax.set_mesh(mesh):
        step = jax.jit(jax.value_and_grad(total, argnums=(0, 1)), out_shardings=(whole, (rows, table)))
        text = step.lower(hidden, head, hidden, head, targets).compile().as_text()
    shapes = compiled_shapes(text)
    _, fsdp, tensor = shape
    block = math.ceil(tokens / (shape[0] * fsdp) / math.ceil(tokens / (shape[0] * fsdp) / chunk))
    slice_of = vocabulary // (fsdp * tensor)
    logits, a_slice = block * fsdp * slice_of, width * slice_of
    assert (block * fsdp, slice_of) in shapes and (width, slice_of) in shapes, "what is looked for has these names"
    assert largest(shapes) == max(logits, a_slice, tokens // (shape[0] * fsdp) * width)
    assert largest(shapes) < vocabulary * width


# Logits that are not finite, and transformations.


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_impossible_tokens(direction: Any) -> None:
    """A vocabulary entry that one model, or both, never give: values as the plain definitions say, no NaN."""
    h = heads()
    big = jnp.zeros((16,)).at[0].set(1.0)
    hidden = h.hidden.at[..., 0].set(1e30)
    h = h._replace(
        hidden=hidden, head=h.head.at[:, 5].set(-1e30 * big).at[0, 6].set(-1e9), targets=h.targets.at[0].set(5)
    )
    out, grad = pull(lambda h: fused(h, direction, 30), h)
    expected, _ = pull(lambda h: plain(h, direction), h)
    assert (np.asarray(out[0])[0] == -np.inf).all()
    for one, other in zip(out, expected, strict=True):
        assert not np.isnan(one).any()
        np.testing.assert_allclose(one, other, rtol=1e-5)
    assert np.isfinite(grad.hidden).all() and np.isfinite(grad.head).all()


@pytest.mark.parametrize("transformation", ["vmap", "pmap", "shard_map"])
def test_transformations(transformation: str) -> None:
    h = heads()
    rows, whole = PartitionSpec("data"), PartitionSpec()
    in_specs = Heads(rows, whole, rows, whole, rows)

    def function(h: Heads) -> Any:
        """What each device says of its own rows."""

        def total(hidden: jax.Array, head: jax.Array) -> tuple[jax.Array, Any]:
            out = fused(h._replace(hidden=hidden, head=head), DIRECTIONS[0], 30)
            return sum(x.sum() for x in out), out

        grads, out = jax.grad(total, argnums=(0, 1), has_aux=True)(h.hidden, h.head)
        return out, grads

    expected_out, (expected_hidden, expected_head) = jax.jit(function)(h)
    axes = Heads(0, None, 0, None, 0)  # type: ignore[arg-type]
    split = Heads(*(x if i in (1, 3) else x.reshape(2, PAIRS // 2, *x.shape[1:]) for i, x in enumerate(h)))
    if transformation == "shard_map":

        def local(h: Heads) -> Any:
            out, (hidden_grad, head_grad) = function(h)
            return out, hidden_grad, head_grad

        mapped = jax.shard_map(local, mesh=device_mesh(data=2), in_specs=(in_specs,), out_specs=(rows, rows, whole))
        out, hidden_grad, head_grad = jax.jit(mapped)(h)
    else:
        if transformation == "pmap":  # compiles by itself
            mapped = jax.pmap(function, in_axes=(axes,), devices=jax.devices()[:2])
        else:
            mapped = jax.jit(jax.vmap(function, in_axes=(axes,)))
        out, (hidden_grad, head_grad) = mapped(split)
        out, hidden_grad = jax.tree.map(lambda x: x.reshape(PAIRS, *x.shape[2:]), (out, hidden_grad))
        head_grad = head_grad.sum(0)
    for one, other in zip((*out, hidden_grad, head_grad), (*expected_out, expected_hidden, expected_head), strict=True):
        near(one, other, 1e-5)


@functools.cache
def _sharded_loss() -> Any:
    mesh = device_mesh(data=2)
    rows, whole = PartitionSpec("data"), PartitionSpec()

    def local(h: Heads) -> jax.Array:
        return jax.lax.psum(sum(x.sum() for x in fused(h, DIRECTIONS[0], 30)), "data")

    return jax.shard_map(local, mesh=mesh, in_specs=(Heads(rows, whole, rows, whole, rows),), out_specs=whole)


def test_gradient_of_a_shard_map() -> None:
    h = heads()

    def total(function: Callable[[Heads], jax.Array], hidden: jax.Array, head: jax.Array) -> jax.Array:
        return function(h._replace(hidden=hidden, head=head))

    got = jax.jit(jax.grad(functools.partial(total, _sharded_loss()), argnums=(0, 1)))(h.hidden, h.head)
    one_device = functools.partial(total, lambda h: sum(x.sum() for x in fused(h, DIRECTIONS[0], 30)))
    expected = jax.jit(jax.grad(one_device, argnums=(0, 1)))(h.hidden, h.head)
    for one, other in zip(got, expected, strict=True):
        near(one, other, 1e-5)
