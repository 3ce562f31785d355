"""Token log-likelihoods and KL from logits: definitions, both directions, and logits at the end of the range."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from tisdpo_jax import scoring
from tisdpo_jax.testing import device_mesh

DIRECTIONS = ("policy||reference", "reference||policy")
INF = np.inf
VOCABULARY = 11

logps_from_logits = jax.jit(scoring.logps_from_logits)
kl_from_logits = jax.jit(scoring.kl_from_logits, static_argnames="direction")


def random_logits(seed: int, *shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).normal(0.0, 2.0, (*shape, VOCABULARY)), jnp.float32)


@pytest.fixture(scope="module")
def targets() -> jax.Array:
    return jnp.asarray(np.random.default_rng(9).integers(0, VOCABULARY, (3, 2, 5)), jnp.int32)


def test_log_likelihoods_are_those_of_a_distribution(targets: jax.Array) -> None:
    logits = random_logits(0, 3, 2, 5)
    every = jnp.stack([logps_from_logits(logits, jnp.full_like(targets, v)) for v in range(VOCABULARY)], -1)
    np.testing.assert_allclose(jnp.exp(every).sum(-1), 1.0, rtol=1e-5)
    picked = np.take_along_axis(np.asarray(every), np.asarray(targets)[..., None], -1)[..., 0]
    np.testing.assert_array_equal(logps_from_logits(logits, targets), picked)
    np.testing.assert_allclose(logps_from_logits(logits + 50.0, targets), logps_from_logits(logits, targets), atol=1e-5)


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_kl_of_equal_logits_is_exactly_zero_and_so_is_its_gradient(direction: Any) -> None:
    logits = random_logits(1, 3, 2, 5)
    np.testing.assert_array_equal(kl_from_logits(logits, logits, direction=direction), 0.0)
    grad = jax.jit(jax.grad(lambda z: kl_from_logits(z, logits, direction=direction).sum()))(logits)
    np.testing.assert_allclose(grad, 0.0, atol=1e-6)


@pytest.mark.parametrize("seed", range(5))
def test_the_directions_are_each_other_with_the_models_exchanged_and_never_negative(seed: int) -> None:
    one, other = random_logits(seed, 3, 2, 5), random_logits(seed + 10, 3, 2, 5)
    near = one + 1e-4 * other  # where rounding could give a KL below 0
    for second in (other, near):
        forward = kl_from_logits(one, second, direction="policy||reference")
        np.testing.assert_array_equal(forward, kl_from_logits(second, one, direction="reference||policy"))
        assert (np.asarray(forward) >= 0).all()
    assert not np.allclose(kl_from_logits(one, other), kl_from_logits(other, one), rtol=1e-2)


def test_policy_reference_is_the_default_and_the_name_says_which_expectation_is_taken() -> None:
    sure, unsure = jnp.asarray([20.0, 0.0]), jnp.zeros(2)  # KL(sure || unsure) = log 2, the other is about 9.3
    np.testing.assert_allclose(kl_from_logits(sure, unsure), np.log(2.0), rtol=1e-5)
    np.testing.assert_allclose(kl_from_logits(sure, unsure, direction="reference||policy"), 10 - np.log(2.0), rtol=1e-5)
    with pytest.raises(ValueError, match=r"direction is 'forward'; it must be 'policy\|\|reference' or"):
        scoring.kl_from_logits(sure, unsure, direction="forward")  # type: ignore[arg-type]


# Logits at the end of the range.

EXTREMES: dict[str, list[float]] = {
    "an entry at -inf": [1.0, -INF, 0.5, 0.0],
    "all but one at -inf": [-INF, -INF, 0.0, -INF],
    "all at -inf": [-INF, -INF, -INF, -INF],
    "underflowing probabilities": [1000.0, -1000.0, 0.0, 999.0],
    "huge floats": [1e38, -1e38, 0.0, 1e38],
    "ordinary": [0.3, -0.2, 0.1, 0.0],
}


def finite(*values: jax.Array) -> None:
    for value in values:
        assert np.isfinite(value).all(), value


logps_and_gradient = jax.jit(jax.value_and_grad(lambda z, target: scoring.logps_from_logits(z, target).sum()))


@functools.partial(jax.jit, static_argnums=2)
def kl_and_gradients(one: jax.Array, other: jax.Array, direction: Any) -> Any:
    return jax.value_and_grad(lambda *z: scoring.kl_from_logits(*z, direction=direction).sum(), argnums=(0, 1))(
        one, other
    )


@pytest.mark.parametrize("name", EXTREMES)
@pytest.mark.parametrize("target", range(4))
def test_log_likelihood_at_extremes(name: str, target: int) -> None:
    value, grad = logps_and_gradient(np.float32([EXTREMES[name]]), np.asarray([target]))
    assert not np.isnan(value)
    assert (value == -INF) == (EXTREMES[name][target] == -INF)
    finite(grad)
    if value == -INF:
        np.testing.assert_array_equal(grad, 0.0)


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("policy", EXTREMES)
@pytest.mark.parametrize("reference", EXTREMES)
def test_kl_at_extremes(policy: str, reference: str, direction: Any) -> None:
    one, other = np.float32([EXTREMES[policy]]), np.float32([EXTREMES[reference]])
    value, grads = kl_and_gradients(one, other, direction)
    assert not np.isnan(value) and value >= 0
    finite(*grads)
    # infinite exactly where the second distribution excludes what the first allows
    first, second = (one, other) if direction == "policy||reference" else (other, one)
    first = np.where(first == -INF, np.float32(-1e38), first)
    allowed, excluded = np.exp(first - first.max()) > 0, second == -INF
    assert (value == INF) == bool((allowed & (first > -1e38) & excluded).any())


def test_kl_of_underflowing_logits_is_what_it_is_in_float64() -> None:
    """Where the public code's softmax().log() says NaN."""
    policy, reference = np.asarray([200.0, 0.0, -300.0]), np.asarray([0.0, 200.0, -300.0])
    np.testing.assert_allclose(kl_from_logits(jnp.asarray(policy), jnp.asarray(reference)), 200.0, rtol=1e-6)


def test_nan_is_not_hidden() -> None:
    logits = jnp.asarray([[0.0, jnp.nan, 1.0]])
    assert np.isnan(logps_from_logits(logits, jnp.asarray([0]))).all()
    for direction in DIRECTIONS:
        assert np.isnan(kl_from_logits(logits, jnp.zeros((1, 3)), direction=direction)).all()  # type: ignore[arg-type]
        assert np.isnan(kl_from_logits(jnp.zeros((1, 3)), logits, direction=direction)).all()  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_low_precision_in_float32_inside_and_out(dtype: str, targets: jax.Array) -> None:
    low, other = random_logits(2, 3, 2, 5).astype(dtype), random_logits(3, 3, 2, 5).astype(dtype)
    wide = low.astype("float32"), other.astype("float32")
    for got, expected in [
        (logps_from_logits(low, targets), logps_from_logits(wide[0], targets)),
        (kl_from_logits(low, other), kl_from_logits(*wide)),
    ]:
        assert got.dtype == jnp.float32
        np.testing.assert_array_equal(got, expected)


# Transformations.

FUNCTIONS: list[Callable[..., jax.Array]] = [
    lambda policy, reference, targets: scoring.logps_from_logits(policy, targets),
    *(lambda policy, reference, _, d=d: scoring.kl_from_logits(policy, reference, direction=d) for d in DIRECTIONS),
]


@pytest.mark.parametrize("transformation", ["none", "vmap", "pmap", "shard_map"])
def test_transformations(transformation: str, targets: jax.Array) -> None:
    """Under jit as without, and mapped over rows: all functions and the gradient of each."""

    def function(policy: jax.Array, reference: jax.Array, targets: jax.Array) -> list[Any]:
        def total(policy: jax.Array, of: Any) -> tuple[jax.Array, jax.Array]:
            out = of(policy, reference, targets)
            return out.sum(), out

        return [jax.grad(total, has_aux=True)(policy, of) for of in FUNCTIONS]

    args = random_logits(4, 2, 2, 5), random_logits(5, 2, 2, 5), targets[:2]
    rows = PartitionSpec("data")
    transformed = {
        "none": function,
        "vmap": jax.jit(jax.vmap(function)),
        "pmap": jax.pmap(function, devices=jax.devices()[:2]),
        "shard_map": jax.jit(jax.shard_map(function, mesh=device_mesh(data=2), in_specs=rows, out_specs=rows)),
    }[transformation]
    outputs = map(jax.tree.leaves, (transformed(*args), jax.jit(function)(*args)))
    for got, expected in zip(*outputs, strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)
