"""Numbers of Tunix (google-tunix 0.1.7), kept in `tunix_numbers.npz` with what they were made of.

They are what its functions `compute_rloo_advantages`, `compute_advantages`, `compute_drgrpo_advantages`, `grpo_loss_fn`
(beta 0.3, bounds 0.2 and 0.28, dual 1.3, aggregated in four ways) and `ppo_policy_loss_fn` (bounds 0.2, dual 1.5)
gave for these arrays, in float32, with stand-ins for the model that return the log-likelihoods.
"""

from __future__ import annotations

from pathlib import Path

import jax
import numpy as np
import pytest

from tisdpo_jax import advantages, losses

NUMBERS = dict(np.load(Path(__file__).with_name("tunix_numbers.npz")))


def near(ours: jax.Array, name: str) -> None:
    expected = NUMBERS[name]
    np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())


def test_advantages() -> None:
    near(advantages.leave_one_out(NUMBERS["rewards"]), "rloo")
    near(advantages.group_normalised(NUMBERS["rewards"]), "grpo")
    near(advantages.group_mean(NUMBERS["rewards"]), "dr. grpo")


@pytest.mark.parametrize("reduction", losses.REDUCE)
def test_grpo(reduction: str) -> None:
    behaviour, reference, mask = (NUMBERS[name] for name in ("behaviour", "reference", "mask"))

    def loss(policy: jax.Array) -> jax.Array:
        out = losses.clipped_loss(policy, behaviour, mask, advantages=NUMBERS["advantages"], high=0.28, dual=1.3).loss
        kl = losses.reference_kl(policy, reference, mask)
        numerator, denominator = losses.REDUCE[reduction](out + 0.3 * kl, mask)
        return numerator / denominator

    value, gradient = jax.jit(jax.value_and_grad(loss))(NUMBERS["policy"])
    near(value, f"grpo_loss_fn {reduction}")
    near(gradient, f"grpo_loss_fn {reduction} gradient")


def test_ppo() -> None:
    behaviour, mask = NUMBERS["behaviour"], NUMBERS["mask"]

    def loss(policy: jax.Array) -> jax.Array:
        out = losses.clipped_loss(policy, behaviour, mask, advantages=NUMBERS["dense"], dual=1.5).loss
        numerator, denominator = losses.REDUCE["token"](out, mask)
        return numerator / denominator

    value, gradient = jax.jit(jax.value_and_grad(loss))(NUMBERS["policy"])
    near(value, "ppo_policy_loss_fn")
    near(gradient, "ppo_policy_loss_fn gradient")
