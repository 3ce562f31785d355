"""Attention: the definition in numpy, the back ends against each other, and their refusals."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from tisdpo_jax.models import ComputeConfig, Mask, Model, attention, hidden_states
from tisdpo_jax.models.block import readers_of_first
from tisdpo_jax.testing import FAMILIES, device_mesh, random_batch, random_params
from tisdpo_jax.types import Copies, Tree

LENGTH = 128  # what splash needs


def queries_keys_values(
    length: int, *, rows: int = 2, heads: int = 4, kv_heads: int = 2, head_dim: int = 8
) -> tuple[jax.Array, jax.Array, jax.Array]:
    random = np.random.default_rng(0)
    shapes = ((rows, length, count, head_dim) for count in (heads, kv_heads, kv_heads))
    q, k, v = (jnp.asarray(random.normal(0, 1.0, shape), jnp.float32) for shape in shapes)
    return q, k, v


def packed(length: int) -> jax.Array:
    """Two rows of three segments each, of different lengths."""
    ends = np.asarray([[length // 5, length // 2], [length // 3, 4 * length // 5]])
    return jnp.asarray((np.arange(length) >= ends[..., None]).sum(1), jnp.int32)


# Two rows: two pairs, the second without a second side, and padding; one pair with a prompt of one token.
TREE = Tree(
    jnp.asarray([[1] * 8 + [2] * 5 + [0] * 3, [1] * 16], jnp.int32),
    jnp.asarray(
        [[0, 0, 0, 1, 1, 1, 2, 2] + [0, 0, 1, 1, 1] + [0] * 3, [0] + [1] * 7 + [2] * 8],
        jnp.int32,
    ),
)
PLACES = jnp.asarray([[0, 1, 2, 3, 4, 5, 3, 4] + [0, 1, 2, 3, 4] + [0] * 3, [0, *range(1, 8), *range(1, 9)]], jnp.int32)


def seen_in_the_tree(window: int | None) -> np.ndarray:
    """A token sees its pair's prompt and its own side up to itself, as if nothing else stood in the row."""
    pair, branch = np.asarray(TREE.pair), np.asarray(TREE.branch)
    seen = np.zeros((2, 16, 16), bool)
    for row, query in np.ndindex(2, 16):
        path = [
            key
            for key in range(query + 1)
            if pair[row, key] == pair[row, query] and branch[row, key] in (0, branch[row, query])
        ]
        seen[row, query, path[-window:] if window else path] = True
    return seen


def definition(
    q: jax.Array, k: jax.Array, v: jax.Array, seen: np.ndarray, scale: float | None = None, cap: float | None = None
) -> np.ndarray:
    """softmax(q k^T / sqrt(d)) v in float64, one head at a time; `seen [R, Tq, Tk]`."""
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    out = np.zeros(q.shape)
    for head in range(q.shape[2]):
        other = head // (q.shape[2] // k.shape[2])  # neighbouring query heads share keys
        scores = np.einsum("rqd,rkd->rqk", q[:, :, head], k[:, :, other]) * (scale or q.shape[-1] ** -0.5)
        scores = scores if cap is None else cap * np.tanh(scores / cap)
        scores = np.where(seen, scores, -np.inf)
        share = np.exp(scores - scores.max(-1, keepdims=True))
        out[:, :, head] = np.einsum("rqk,rkd->rqd", share / share.sum(-1, keepdims=True), v[:, :, other])
    return out


def seen_by(length: int, window: int | None, segments: Any) -> np.ndarray:
    seen = np.zeros((2, length, length), bool)
    for row, query, key in np.ndindex(seen.shape):
        seen[row, query, key] = (
            key <= query
            and (window is None or query - key < window)
            and (segments is None or segments[row, query] == segments[row, key])
        )
    return seen


@pytest.mark.parametrize(
    ("window", "segmented", "kv_heads"),
    [(None, False, 4), (None, True, 2), (1, True, 4), (4, False, 1), (4, True, 2), (50, False, 2)],
)
def test_xla_is_the_definition(window: int | None, segmented: bool, kv_heads: int) -> None:
    q, k, v = queries_keys_values(16, kv_heads=kv_heads)
    segments = packed(16) if segmented else None
    got = attention(q, k, v, mask=Mask(window, segments), backend="xla")
    seen = seen_by(16, window, None if segments is None else np.asarray(segments))
    np.testing.assert_allclose(got, definition(q, k, v, seen), atol=2e-6)


@pytest.mark.parametrize("backend", ["xla", "splash"])
def test_scores_may_have_another_scale_and_a_soft_cap(backend: str) -> None:
    q, k, v = queries_keys_values(LENGTH)
    got = attention(q, k, v, mask=Mask(20), backend=backend, scale=0.7, softcap=1.5)
    np.testing.assert_allclose(got, definition(q, k, v, seen_by(LENGTH, 20, None), 0.7, 1.5), atol=5e-6)


def test_the_gradient_through_a_soft_cap_is_that_of_numerical_differences() -> None:
    q, k, v = queries_keys_values(9)
    mask, weights = Mask(4), jnp.cos(jnp.arange(q.size, dtype=jnp.float32)).reshape(q.shape)

    def total(q: jax.Array, k: jax.Array) -> jax.Array:
        return (weights * attention(q, k, v, mask=mask, backend="xla", scale=0.7, softcap=1.5)).sum()

    check_grads(total, (q, k), order=1, modes=["rev"], atol=2e-2, rtol=2e-2)


@pytest.mark.parametrize("window", [None, 1, 4])
def test_a_tree_is_its_branches_each_alone_behind_the_trunk(window: int | None) -> None:
    """The prompt sees no response, responses do not see each other, and a window counts along the branch."""
    q, k, v = queries_keys_values(16)
    got = attention(q, k, v, mask=Mask(window, tree=TREE, places=PLACES), backend="xla")
    real = np.asarray(TREE.pair) > 0
    expected = definition(q, k, v, seen_in_the_tree(window))
    np.testing.assert_allclose(np.asarray(got)[real], expected[real], atol=2e-6)
    # who is seen, read from the gradient: of each query, with respect to all values
    weights = jax.jacobian(lambda v: attention(q, k, v, mask=Mask(window, tree=TREE, places=PLACES), backend="xla"))(v)
    reached = np.abs(np.asarray(weights)).sum((2, 3, 6, 7)) > 0  # [R, Tq, R, Tk]
    np.testing.assert_array_equal(reached[[0, 1], :, [0, 1]][real], seen_in_the_tree(window)[real])
    assert not reached[0, :, 1].any() and not reached[1, :, 0].any()


def test_the_first_copy_of_a_token_is_the_one_that_is_read() -> None:
    """Its reader is the token; of the other copies nothing is read, and nothing flows back into them."""
    source = jnp.asarray([[0, 1, 2, 0, 1, 3, -1, -1]])
    back = jnp.asarray([[[0, 3], [1, 4], [2, -1], [5, -1], [-1, -1]]])
    readers = readers_of_first(Copies(source, jnp.asarray([[1, 1, 1, 2, 2, 2, 0, 0]]), back))
    assert readers.tolist() == [[[0], [1], [2], [-1], [-1], [3], [-1], [-1]]]


def test_explicit_positions_are_what_counts() -> None:
    """Keys may lie in any order, and slots without a token have a negative position."""
    q, k, v = queries_keys_values(9)
    order = np.asarray([4, 1, 7, 0, 8, 3, 2, 6, 5])
    positions = np.broadcast_to(order, (2, 9)).copy()
    positions[1, [0, 3]] = -1
    query_positions = np.asarray([[6, 8], [2, 7]])
    mask = Mask(3, query_positions=jnp.asarray(query_positions), key_positions=jnp.asarray(positions))
    got = attention(q[:, :2], k, v, mask=mask, backend="xla")
    key, query = positions[:, None], query_positions[..., None]
    seen = (key >= 0) & (key <= query) & (query - key < 3)
    np.testing.assert_allclose(got, definition(q[:, :2], k, v, seen), atol=2e-6)


def value_and_gradients(backend: str, mask: Mask, arrays: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
    def total(q: jax.Array, k: jax.Array, v: jax.Array) -> tuple[jax.Array, jax.Array]:
        out = attention(q, k, v, mask=mask, backend=backend)
        return (out * jnp.cos(jnp.arange(out.size).reshape(out.shape))).sum(), out

    grads, out = jax.jit(jax.grad(total, argnums=(0, 1, 2), has_aux=True))(*arrays)
    return out, *grads


@functools.cache
def of_xla(window: int | None, segmented: bool) -> tuple[jax.Array, ...]:
    mask = Mask(window, packed(LENGTH) if segmented else None)
    return value_and_gradients("xla", mask, queries_keys_values(LENGTH))


@pytest.mark.parametrize(("window", "segmented"), [(None, True), (20, False)])
def test_splash_is_xla(window: int | None, segmented: bool) -> None:
    mask = Mask(window, packed(LENGTH) if segmented else None)
    got = value_and_gradients("splash", mask, queries_keys_values(LENGTH))
    for one, other in zip(got, of_xla(window, segmented), strict=True):
        np.testing.assert_allclose(one, other, atol=5e-6)


def test_splash_on_a_mesh_is_xla_on_one_device() -> None:
    """Each device calls the kernel on its own rows and heads."""
    arrays = queries_keys_values(LENGTH)
    with jax.set_mesh(device_mesh(data=2, tensor=2)):
        got = value_and_gradients("splash", Mask(20, packed(LENGTH)), arrays)
    for one, other in zip(got, of_xla(20, True), strict=True):
        np.testing.assert_allclose(one, other, atol=5e-6)


def test_bfloat16_softmax_is_taken_in_float32() -> None:
    arrays = tuple(4.0 * x for x in queries_keys_values(64))
    low = tuple(x.astype("bfloat16") for x in arrays)
    got = attention(*low, mask=Mask(), backend="xla")
    assert got.dtype == jnp.bfloat16
    exact = attention(*(x.astype("float32") for x in low), mask=Mask(), backend="xla")
    # in bfloat16 throughout, scores of some 16 nats would be off by 0.06 and the softmax by as much
    np.testing.assert_allclose(got.astype(jnp.float32), exact, rtol=0.01, atol=0.015 * float(jnp.abs(exact).max()))


# Refusals: never a mask that is not honoured.

POSITIONS = jnp.zeros((2, LENGTH), jnp.int32)
DECODING = Mask(query_positions=POSITIONS, key_positions=POSITIONS)


@pytest.mark.parametrize(
    ("backend", "mask", "message"),
    [
        ("splash", DECODING, "'splash' cannot honour explicit positions"),
        ("cudnn", DECODING, "'cudnn' cannot honour explicit positions"),
        ("splash", Mask(tree=Tree(POSITIONS, POSITIONS)), "'splash' cannot honour trees; repeat the prompts, or use"),
        ("cudnn", Mask(tree=Tree(POSITIONS, POSITIONS)), "'cudnn' cannot honour trees; repeat the prompts, or use"),
        ("cudnn", Mask(segments=POSITIONS), "'cudnn' cannot honour segments"),
        ("cudnn", Mask(), "'cudnn' computes in bfloat16 or float16, not float32"),
        ("xla", Mask(query_positions=POSITIONS), "query_positions and key_positions go together"),
        ("xla", Mask(key_positions=POSITIONS), "query_positions and key_positions go together"),
        ("flash", Mask(), "unknown attention back end 'flash'; one of xla, splash, cudnn"),
    ],
)
def test_a_back_end_that_cannot_honour_its_mask_raises(backend: str, mask: Mask, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        attention(*queries_keys_values(LENGTH), mask=mask, backend=backend)


def test_splash_asks_for_rows_of_128() -> None:
    with pytest.raises(ValueError, match=r"multiple of 128 tokens, not 100; pad them, or use"):
        attention(*queries_keys_values(100), mask=Mask(), backend="splash")


@pytest.mark.parametrize("backend", ["xla", "splash"])
def test_more_keys_than_queries_need_positions(backend: str) -> None:
    q, k, v = queries_keys_values(2 * LENGTH)
    with pytest.raises(ValueError, match="128 queries against 256 keys need explicit positions"):
        attention(q[:, :LENGTH], k, v, mask=Mask(), backend=backend)


@pytest.mark.parametrize("backend", ["xla", "splash"])
def test_segments_of_another_shape_raise(backend: str) -> None:
    q, k, v = queries_keys_values(LENGTH)
    with pytest.raises(ValueError, match=r"segments have shape \(2, 1\), queries \(2, 128\), keys \(2, 128\)"):
        attention(q, k, v, mask=Mask(segments=jnp.zeros((2, 1), jnp.int32)), backend=backend)


@pytest.mark.parametrize("backend", ["xla", "splash"])
def test_a_window_of_nothing_raises(backend: str) -> None:
    with pytest.raises(ValueError, match="the window is 0; it holds the query itself"):
        attention(*queries_keys_values(LENGTH), mask=Mask(window=0), backend=backend)


# In the decoder.


@functools.cache
def decoder(backend: Any) -> tuple[Any, Any]:
    """Hidden states of a batch of packed pairs and a gradient of them; a sliding window, which counts by positions."""
    model = Model(FAMILIES["mistral"], ComputeConfig(attention=backend))
    layout = {"copies": backend == "splash", "multiple": LENGTH, "shards": 2}
    rows = random_batch(0, pairs=5, prompt=12, elements=11, layout=layout).views["main"].rows
    assert rows.tree is not None
    real = jnp.asarray(rows.tree.pair > 0)[..., None]

    def total(params: Any) -> tuple[jax.Array, jax.Array]:
        out = jnp.where(real, hidden_states(model, {"params": params}, jax.tree.map(jnp.asarray, rows)), 0.0)
        return (out * jnp.cos(jnp.arange(out.size).reshape(out.shape))).sum(), out

    grad, out = jax.jit(jax.grad(total, has_aux=True))(random_params(0, model.config))
    return jax.device_get((out, grad))


def test_splash_in_the_decoder_is_xla() -> None:
    expected, expected_grad = decoder("xla")
    with jax.set_mesh(device_mesh(2, 1, 2)):
        out, grad = decoder.__wrapped__("splash")
    np.testing.assert_allclose(out, expected, atol=5e-5)
    for one, other in zip(jax.tree.leaves(grad), jax.tree.leaves(expected_grad), strict=True):
        np.testing.assert_allclose(one, other, atol=2e-5 * np.abs(other).max())
