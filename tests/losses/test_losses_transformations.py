"""Every loss under jit, vmap, pmap, shard_map and grad gives what it gives without."""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec
from loss_cases import LOSSES

from tisdpo_jax import losses
from tisdpo_jax.testing import Pairs, device_mesh, random_pairs

SFT = "sft"
GROUPS = 2  # a leading axis of two batches; each transformation deals them out in its way


def value_and_gradient(name: str) -> Callable[[Pairs], tuple[jax.Array, jax.Array]]:
    """Per-pair losses of a batch, and the gradient of their sum with respect to the policy."""

    def total(policy: jax.Array, p: Pairs) -> tuple[jax.Array, jax.Array]:
        p = p._replace(policy_logps=policy)
        loss = losses.sft_loss(p.policy_logps, p.mask)[0] if name == SFT else LOSSES[name](p).loss
        return loss.sum(), loss

    def call(p: Pairs) -> tuple[jax.Array, jax.Array]:
        (_, loss), grad = jax.value_and_grad(total, has_aux=True)(p.policy_logps, p)
        return loss, grad

    return call


@functools.cache
def pairs() -> Pairs:
    return random_pairs(0, (GROUPS, 4, 2, 7))


@functools.cache
def expected(name: str) -> tuple[np.ndarray, np.ndarray]:
    """One batch after the other, not compiled."""
    groups = [value_and_gradient(name)(Pairs(*(x[i] for x in pairs()))) for i in range(GROUPS)]
    loss, grad = (np.stack(parts) for parts in zip(*groups, strict=True))
    return loss, grad


def check(name: str, got: tuple[jax.Array, jax.Array]) -> None:
    loss, grad = expected(name)
    np.testing.assert_allclose(got[0], loss, rtol=1e-6)
    np.testing.assert_allclose(got[1], grad, rtol=1e-5, atol=1e-8)


EVERY = pytest.mark.parametrize("name", [*LOSSES, SFT])


@EVERY
def test_jit(name: str) -> None:
    function = jax.jit(value_and_gradient(name))
    groups = [function(Pairs(*(x[i] for x in pairs()))) for i in range(GROUPS)]
    check(name, tuple(jnp.stack(parts) for parts in zip(*groups, strict=True)))  # type: ignore[arg-type]  # lists of arrays


@EVERY
def test_vmap(name: str) -> None:
    check(name, jax.jit(jax.vmap(value_and_gradient(name)))(pairs()))


@EVERY
def test_pmap(name: str) -> None:
    check(name, jax.pmap(value_and_gradient(name), devices=jax.devices()[:GROUPS])(pairs()))


@EVERY
def test_shard_map(name: str) -> None:
    def local(p: Pairs) -> tuple[jax.Array, jax.Array]:
        loss, grad = value_and_gradient(name)(Pairs(*(x[0] for x in p)))
        return loss[None], grad[None]

    rows = PartitionSpec("data")
    mapped = jax.shard_map(local, mesh=device_mesh(data=GROUPS), in_specs=rows, out_specs=rows)
    check(name, jax.jit(mapped)(pairs()))


@EVERY
def test_gradient_of_a_shard_map(name: str) -> None:
    """The same, differentiated from outside, with the mean over all devices taken inside."""

    def local(policy: jax.Array, p: Pairs) -> jax.Array:
        p = Pairs(*(x[0] for x in p._replace(policy_logps=policy)))
        loss = losses.sft_loss(p.policy_logps, p.mask)[0] if name == SFT else LOSSES[name](p).loss
        return jax.lax.psum(loss.sum(), "data")

    rows, whole = PartitionSpec("data"), PartitionSpec()
    mapped = jax.shard_map(local, mesh=device_mesh(data=GROUPS), in_specs=rows, out_specs=whole)
    value, grad = jax.jit(jax.value_and_grad(mapped))(pairs().policy_logps, pairs())
    loss, expected_grad = expected(name)
    np.testing.assert_allclose(value, loss.sum(), rtol=1e-6)
    np.testing.assert_allclose(grad, expected_grad, rtol=1e-5, atol=1e-8)
