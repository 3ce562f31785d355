"""Every loss under jit, vmap, pmap, shard_map and grad gives what it gives without."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec
from loss_cases import ALL

from tisdpo_jax import losses
from tisdpo_jax.testing import Pairs, device_mesh, random_pairs

GROUPS = 2  # a leading axis of two batches; each transformation deals them out in its way
OTHERS: dict[str, Callable[[Pairs], jax.Array]] = {
    "sft": lambda p: losses.sft_loss(p.policy_logps, p.mask)[0],
    "top-1": lambda p: losses.top1_distillation(p.policy_logps, p.reference_logps, p.mask),
    "reference KL": lambda p: losses.reference_kl(p.policy_logps, p.reference_logps, p.mask),
    "sampler": lambda p: losses.sampler_weights(p.policy_logps, p.reference_logps, p.mask, level="sequence"),
    "reward": lambda p: losses.reward_loss(p.policy_logps[..., 0], target=0.85, margin=0.1, center_coef=0.01).loss,
    "grades": lambda p: losses.grade_loss(
        jnp.stack([p.policy_logps, p.reference_logps], -1), jnp.where(p.mask > 0, 1, -1)
    ),
}
NAMES = (*ALL, *OTHERS)
Result = dict[str, tuple[Any, Any]]  # name -> losses of the pairs, gradient of their sum


def loss_of(name: str, policy: jax.Array, p: Pairs) -> jax.Array:
    p = p._replace(policy_logps=policy)
    return OTHERS[name](p) if name in OTHERS else ALL[name](p).loss


def values_and_gradients(p: Pairs) -> Result:
    """Of every loss, in one program: per-pair losses of a batch, and the gradient with respect to the policy."""

    def of(name: str) -> tuple[jax.Array, jax.Array]:
        def total(policy: jax.Array) -> tuple[jax.Array, jax.Array]:
            loss = loss_of(name, policy, p)
            return loss.sum(), loss

        (_, loss), grad = jax.value_and_grad(total, has_aux=True)(p.policy_logps)
        return loss, grad

    return {name: of(name) for name in NAMES}


@functools.cache
def pairs() -> Pairs:
    return random_pairs(0, (GROUPS, 4, 2, 7))


def in_turn(function: Callable[[Pairs], Result]) -> Result:
    groups = [function(Pairs(*(x[i] for x in pairs()))) for i in range(GROUPS)]
    return jax.tree.map(lambda *parts: np.stack(parts), *groups)


@functools.cache
def expected() -> Result:
    """One batch after the other, not compiled."""
    return in_turn(values_and_gradients)


def check(got: Result) -> None:
    assert got.keys() == expected().keys() == set(NAMES)
    for name, (loss, grad) in expected().items():
        np.testing.assert_allclose(got[name][0], loss, rtol=1e-6, err_msg=name)
        np.testing.assert_allclose(got[name][1], grad, rtol=1e-5, atol=1e-8, err_msg=name)


def test_jit() -> None:
    check(in_turn(jax.jit(values_and_gradients)))


def test_vmap() -> None:
    check(jax.jit(jax.vmap(values_and_gradients))(pairs()))


def test_pmap() -> None:
    check(jax.pmap(values_and_gradients, devices=jax.devices()[:GROUPS])(pairs()))


def test_shard_map() -> None:
    def local(p: Pairs) -> Result:
        return jax.tree.map(lambda x: x[None], values_and_gradients(Pairs(*(x[0] for x in p))))

    rows = PartitionSpec("data")
    check(jax.jit(jax.shard_map(local, mesh=device_mesh(data=GROUPS), in_specs=rows, out_specs=rows))(pairs()))


def test_gradient_of_a_shard_map() -> None:
    """The same, differentiated from outside, with the mean over all devices taken inside."""
    rows, whole = PartitionSpec("data"), PartitionSpec()

    def of(name: str, p: Pairs) -> tuple[jax.Array, jax.Array]:
        def local(policy: jax.Array, p: Pairs) -> jax.Array:
            return jax.lax.psum(loss_of(name, policy[0], Pairs(*(x[0] for x in p))).sum(), "data")

        mapped = jax.shard_map(local, mesh=device_mesh(data=GROUPS), in_specs=rows, out_specs=whole)
        return jax.value_and_grad(mapped)(p.policy_logps, p)

    found = jax.jit(lambda p: {name: of(name, p) for name in NAMES})(pairs())
    for name, (loss, grad) in expected().items():
        np.testing.assert_allclose(found[name][0], loss.sum(), rtol=1e-6, err_msg=name)
        np.testing.assert_allclose(found[name][1], grad, rtol=1e-5, atol=1e-8, err_msg=name)
