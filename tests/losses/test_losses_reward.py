"""The loss of reward models: its laws, and numbers by hand in float64."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tisdpo_jax import losses

RANDOM = np.random.default_rng(0)
REWARDS = RANDOM.normal(0, 2, (5, 2))
TARGET = RANDOM.uniform(0.5, 1, 5)


def by_hand(rewards: np.ndarray, p: np.ndarray, center: float) -> np.ndarray:
    q = 1 / (1 + np.exp(rewards[:, 1] - rewards[:, 0]))
    return -p * np.log(q) - (1 - p) * np.log1p(-q) + center * (rewards[:, 0] + rewards[:, 1]) ** 2


def loss_of(rewards, target=1.0, center_coef=0.0):
    return losses.reward_loss(jnp.asarray(rewards, jnp.float32), target=target, center_coef=center_coef)


@pytest.mark.parametrize("center", [0.0, 0.3])
def test_values_and_gradients_are_those_by_hand(center: float) -> None:
    target = jnp.asarray(TARGET, jnp.float32)
    result = loss_of(REWARDS, target, center)
    np.testing.assert_allclose(result.loss, by_hand(REWARDS, TARGET, center), rtol=1e-5)
    np.testing.assert_allclose(np.stack(result[1:], 1), REWARDS, rtol=1e-6)
    gradient = jax.grad(lambda rewards: loss_of(rewards, target, center).loss.sum())(jnp.asarray(REWARDS, jnp.float32))
    slope = 1 / (1 + np.exp(REWARDS[:, 1] - REWARDS[:, 0])) - TARGET
    pull = 2 * center * REWARDS.sum(1)
    np.testing.assert_allclose(gradient, np.stack([slope + pull, pull - slope], 1), rtol=1e-5, atol=1e-6)


def test_its_laws() -> None:
    target = jnp.asarray(TARGET, jnp.float32)
    np.testing.assert_allclose(loss_of(np.zeros((5, 2)), target).loss, np.log(2), rtol=1e-6)
    swapped = loss_of(REWARDS[:, ::-1], 1 - target).loss
    np.testing.assert_allclose(swapped, loss_of(REWARDS, target).loss, rtol=1e-5)
    for p, margin in ((0.65, 0.619), (0.95, 2.944)):  # the smallest loss lies at logit(p)
        slope = jax.grad(lambda d, p=p: loss_of(jnp.stack([d, 0.0]), p).loss)
        assert slope(margin - 0.01) < 0 < slope(margin + 0.01)
    assert np.isfinite(loss_of([[1e4, -1e4], [-1e4, 1e4]]).loss).all()
    assert not np.asarray(jax.grad(lambda t: loss_of(REWARDS, t).loss.sum())(target)).any()  # labels are constants
    rewards = jax.grad(lambda r: sum(x.sum() for x in loss_of(r)[1:]))(jnp.asarray(REWARDS, jnp.float32))
    assert not np.asarray(rewards).any()


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (((5,),), r"rewards has shape \(5,\); it must be \[\.\.\., 2\]"),
        (((2, 5),), r"rewards has shape \(2, 5\)"),
        (((5, 2), {"target": jnp.ones((5, 1))}), r"target has shape \(5, 1\)"),
        (((5, 2), {"target": 1.2}), "target is 1.2; it must be .*between 0 and 1"),
        (((5, 2), {"target": jnp.ones(5, jnp.int32)}), "target has dtype int32"),
        (((5, 2), {"center_coef": -1.0}), "center_coef is -1.0"),
    ],
)
def test_what_does_not_fit_is_named(arguments, told: str) -> None:
    shape, options = (*arguments, {})[:2]
    with pytest.raises(ValueError, match=told):
        losses.reward_loss(jnp.zeros(shape), **options)
