"""Every weight function under jit, vmap, pmap, shard_map and grad gives what it gives without."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import PartitionSpec
from weight_cases import WEIGHTS

from tisdpo_jax.testing import device_mesh, random_pairs

GROUPS = 2
Weights = dict[str, Any]


@functools.cache
def arrays() -> tuple[jax.Array, ...]:
    p = random_pairs(0, (GROUPS, 4, 2, 7))
    return p.positive_logps, p.negative_logps, p.mask


def every(*args: jax.Array) -> Weights:
    """Every kind of weight, in one program."""
    return {name: function(*args) for name, function in WEIGHTS.items()}


def in_turn(function: Callable[..., Weights]) -> Weights:
    return jax.tree.map(lambda *x: np.stack(x), *(function(*(x[i] for x in arrays())) for i in range(GROUPS)))


@functools.cache
def expected() -> Weights:
    """Not compiled."""
    return in_turn(every)


def check(got: Weights) -> None:
    assert got.keys() == WEIGHTS.keys()
    for name, values in expected().items():
        np.testing.assert_allclose(got[name], values, rtol=1e-6, err_msg=name)


def test_jit() -> None:
    check(in_turn(jax.jit(every)))


def test_vmap() -> None:
    check(jax.jit(jax.vmap(every))(*arrays()))


def test_pmap() -> None:
    check(jax.pmap(every, devices=jax.devices()[:GROUPS])(*arrays()))


def test_shard_map() -> None:
    def local(*args: jax.Array) -> Weights:
        return jax.tree.map(lambda x: x[None], every(*(x[0] for x in args)))

    rows = PartitionSpec("data")
    check(jax.jit(jax.shard_map(local, mesh=device_mesh(data=GROUPS), in_specs=rows, out_specs=rows))(*arrays()))


def test_grad() -> None:
    """Of something that uses the weights: what it is differentiated by gets the weights, the models nothing."""
    positive, negative, mask = (x[0] for x in arrays())

    def gradients(name: str, *args: jax.Array) -> tuple[jax.Array, ...]:
        def weighted(x: jax.Array, positive: jax.Array, negative: jax.Array) -> jax.Array:
            return (WEIGHTS[name](positive, negative, mask) * x).sum()

        return jax.grad(weighted, argnums=(0, 1, 2))(*args)

    found = jax.jit(lambda *args: {name: gradients(name, *args) for name in WEIGHTS})(mask, positive, negative)
    for name, (of_values, *of_models) in found.items():
        np.testing.assert_allclose(of_values, expected()[name][0], rtol=1e-6, err_msg=name)
        for grad in of_models:
            np.testing.assert_array_equal(grad, 0.0, err_msg=name)
