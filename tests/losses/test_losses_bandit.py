"""Where the losses of online reinforcement learning stop: a bandit, whose best policy is known.

Six arms, a response is one token. The best policy under a KL to the reference is `pi_ref exp(r / beta) / Z`; distances
are in total variation. Each run is one compiled scan.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tisdpo_jax import advantages, losses

RANDOM = np.random.default_rng(0)
REWARD, REFERENCE = (jnp.asarray(RANDOM.normal(size=6), jnp.float32) for _ in range(2))
BETA = 0.5
PAIRS = np.stack(np.meshgrid(*[np.arange(6)] * 2, indexing="ij"), -1).reshape(-1, 2)  # all groups of two
Loss = Callable[..., jax.Array]  # (log pi, log pi_k, log pi_ref, arms [B, K], rewards) -> [B, K]


def best() -> np.ndarray:
    p = np.exp(np.asarray(REFERENCE, np.float64) + np.asarray(REWARD, np.float64) / BETA)
    out: np.ndarray = p / p.sum()
    return out


def distance(theta: jax.Array) -> float:
    return 0.5 * float(np.abs(np.asarray(jax.nn.softmax(theta)) - best()).sum())


def taken(logps: jax.Array, arms: jax.Array) -> jax.Array:
    """`[B, K, 1]`, log-likelihoods of responses of one token."""
    return logps[arms][..., None]


def centred(rewards: jax.Array, behaviour: jax.Array, reference: jax.Array, arms: jax.Array) -> jax.Array:
    """Leave-one-out advantages of penalised rewards."""
    ones = jnp.ones((*arms.shape, 1))
    penalised = advantages.penalised(rewards[arms], taken(behaviour, arms), taken(reference, arms), ones, beta=BETA)
    return advantages.leave_one_out(penalised)


def mdloo(gamma: float, exact: bool = False, level: str = "sequence") -> Loss:
    def loss(policy: jax.Array, behaviour: jax.Array, reference: jax.Array, arms: jax.Array) -> jax.Array:
        kl = jnp.broadcast_to((jnp.exp(policy) * (policy - behaviour)).sum(), (*arms.shape, 1)) if exact else None
        a = centred(REWARD, behaviour, reference, arms)
        arrays = taken(policy, arms), taken(behaviour, arms), jnp.ones((*arms.shape, 1))
        return losses.mdloo_loss(*arrays, advantages=a, gamma=gamma, level=level, token_kl=kl).loss

    return loss


def rloo(policy: jax.Array, behaviour: jax.Array, reference: jax.Array, arms: jax.Array) -> jax.Array:
    a = centred(REWARD, behaviour, reference, arms)
    arrays = taken(policy, arms), taken(behaviour, arms), jnp.ones((*arms.shape, 1))
    return losses.clipped_loss(*arrays, advantages=a, level="sequence").loss


def grpo(normalise: Callable[[jax.Array], jax.Array]) -> Loss:
    """The reference as a term of the loss; as published with `group_normalised`, Dr. GRPO with `group_mean`."""

    def loss(policy: jax.Array, behaviour: jax.Array, reference: jax.Array, arms: jax.Array) -> jax.Array:
        ones = jnp.ones((*arms.shape, 1))
        arrays = taken(policy, arms), taken(behaviour, arms), ones
        out = losses.clipped_loss(*arrays, advantages=normalise(REWARD[arms])).loss
        return out + BETA * losses.reference_kl(arrays[0], taken(reference, arms), ones)

    return loss


def inner(loss: Loss, theta: jax.Array, arms: jax.Array, share: Any, steps: int, rate: Any) -> jax.Array:
    """Gradient steps from the policy that sampled, on groups of the given shares."""
    behaviour, reference = jax.nn.log_softmax(theta), jax.nn.log_softmax(REFERENCE)

    def total(theta: jax.Array) -> jax.Array:
        return (share * loss(jax.nn.log_softmax(theta), behaviour, reference, arms).mean(-1)).sum()

    def step(theta: jax.Array, _: None) -> tuple[jax.Array, None]:
        return theta - rate * jax.grad(total)(theta), None

    return jax.lax.scan(step, theta, None, length=steps)[0]


def sampled(loss: Loss, iterations: int, steps: int, rate: float = 0.3) -> jax.Array:
    """64 groups of four an iteration."""

    def iteration(theta: jax.Array, key: jax.Array) -> tuple[jax.Array, None]:
        arms = jax.random.categorical(key, theta, shape=(64, 4))
        return inner(loss, theta, arms, 1 / 64, steps, rate), None

    def run(keys: jax.Array) -> jax.Array:
        return jax.lax.scan(iteration, REFERENCE, keys)[0]

    out: jax.Array = jax.jit(run)(jax.random.split(jax.random.key(0), iterations))
    return out


def enumerated(loss: Loss, iterations: int, steps: int, rate: float) -> jax.Array:
    """Exact expectations: all groups of two, each by its probability."""

    def iteration(theta: jax.Array, _: None) -> tuple[jax.Array, None]:
        share = jax.nn.softmax(theta)[PAIRS].prod(-1)
        return inner(loss, theta, jnp.asarray(PAIRS), share, steps, rate), None

    out: jax.Array = jax.jit(lambda theta: jax.lax.scan(iteration, theta, None, length=iterations)[0])(REFERENCE)
    return out


@pytest.mark.parametrize("gamma", [0.5, 2.0])
@pytest.mark.parametrize("exact", [False, True])
def test_the_inner_optimum_is_the_step_of_mirror_descent(gamma: float, exact: bool) -> None:
    """`pi_k exp(A / gamma) / Z`, from both forms of the KL."""
    theta = enumerated(mdloo(gamma, exact), 1, 2000, 0.5 / gamma)
    # at pi_k = pi_ref the penalty is 0
    expected = jax.nn.softmax(REFERENCE + REWARD / gamma)
    np.testing.assert_allclose(jax.nn.softmax(theta), expected, atol=1e-3)


@pytest.mark.parametrize(("gamma", "level"), [(0.3, "sequence"), (1.0, "token"), (5.0, "sequence")])
def test_in_expectation_mdloo_reaches_the_best_policy_for_every_gamma(gamma: float, level: str) -> None:
    assert distance(enumerated(mdloo(gamma, True, level), 60, 150, 0.5 / gamma)) < 1e-3


@pytest.mark.parametrize(
    ("loss", "iterations", "steps"),
    [
        pytest.param(mdloo(1.0), 300, 10, id="mdloo"),
        pytest.param(mdloo(1.0, True, "token"), 300, 10, id="mdloo by token, exact KL"),
        pytest.param(mdloo(50.0), 1500, 1, id="mdloo of one step is REINFORCE, whatever gamma"),
        pytest.param(rloo, 300, 10, id="rloo"),
    ],
)
def test_sampled_they_reach_the_best_policy(loss: Loss, iterations: int, steps: int) -> None:
    """With a constant rate: there is no noise where all advantages are 0."""
    assert distance(REFERENCE) > 0.15
    assert distance(sampled(loss, iterations, steps)) < 1e-3


@pytest.mark.parametrize(
    ("normalise", "least"),
    [
        pytest.param(advantages.group_normalised, 0.1, id="as published"),
        pytest.param(advantages.group_mean, 0.03, id="Dr."),
    ],
)
def test_grpo_stops_elsewhere(normalise: Callable[[jax.Array], jax.Array], least: float) -> None:
    assert distance(sampled(grpo(normalise), 2000, 1)) > least


def test_at_the_best_policy_no_sample_has_an_advantage() -> None:
    reference = jax.nn.log_softmax(REFERENCE)
    arms = jax.random.categorical(jax.random.key(1), jnp.zeros(6), shape=(64, 4))
    a = centred(REWARD, jax.nn.log_softmax(REFERENCE + REWARD / BETA), reference, arms)
    np.testing.assert_allclose(a, 0.0, atol=1e-6)
    assert float(jnp.abs(centred(REWARD, reference, reference, arms)).max()) > 0.5


def spent(scale: float, step_kl: float) -> float:
    """KL of one iteration to the policy that it began with, at the inner optimum of 512 sampled groups of four."""

    def run(key: jax.Array) -> jax.Array:
        arms = jax.random.categorical(key, REFERENCE, shape=(512, 4))
        rewards = scale * REWARD[arms]
        a, gamma = advantages.leave_one_out(rewards), advantages.trust_gamma(rewards, step_kl=step_kl)

        def loss(policy: jax.Array, behaviour: jax.Array, _reference: jax.Array, arms: jax.Array) -> jax.Array:
            arrays = taken(policy, arms), taken(behaviour, arms), jnp.ones((*arms.shape, 1))
            return losses.mdloo_loss(*arrays, advantages=a, gamma=gamma).loss

        theta = inner(loss, REFERENCE, arms, 1 / 512, 600, 0.5 / gamma)
        policy, behaviour = jax.nn.log_softmax(theta), jax.nn.log_softmax(REFERENCE)
        return (jnp.exp(policy) * (policy - behaviour)).sum()

    return float(jax.jit(run)(jax.random.key(2)))


@pytest.mark.parametrize("scale", [0.1, 1.0, 10.0])
def test_gamma_from_the_trust_radius_spends_the_radius(scale: float) -> None:
    assert abs(spent(scale, 0.1) / 0.1 - 1) < 0.25
