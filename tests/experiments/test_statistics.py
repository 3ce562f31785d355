"""Areas under curves of key tokens, paired differences, rewards at equal KL: against their definitions."""

from __future__ import annotations

import numpy as np
import pytest

from experiments.testbed.statistics import at_kl, paired, quality


def test_quality_of_the_truth_of_its_opposite_and_of_nothing():
    random = np.random.default_rng(0)
    rewards = random.choice([-1.0, 0.0, 0.0, 2.0], (20, 2, 7))
    mask = (random.random(rewards.shape) < 0.7).astype(float)
    noise = np.where(mask > 0, rewards, 1e6 * random.normal(size=rewards.shape))  # what is no token does not count
    assert quality(noise, rewards, mask) == pytest.approx((1.0, 1.0, 1.0))
    assert quality(-noise, rewards, mask) == pytest.approx((0.0, 0.0, -1.0))
    assert quality(np.zeros_like(rewards), rewards, mask) == (0.5, 0.5, 0.0)
    assert quality(rewards, rewards, mask).keys == 1.0
    # good ones found, bad ones not
    assert quality(np.maximum(rewards, 0), rewards, mask).good == 1.0
    assert quality(np.maximum(rewards, 0), rewards, mask).bad < 0.75


def test_paired_differences_are_those_of_pairs():
    random = np.random.default_rng(0)
    seeds = 100 * random.normal(size=8)  # what seeds differ by drops out
    found = paired(seeds + 1 + 0.1 * random.normal(size=8), seeds)
    assert found.mean == pytest.approx(1, abs=0.15) and found.error < 0.1 and found.p < 1e-5
    assert paired(seeds, seeds) == (0.0, 0.0, 1.0)


def test_reward_at_a_kl_lies_between_the_points_of_the_grid():
    rewards, kls = np.asarray([[0.0, 2.0, 1.0], [0.0, 1.0, 3.0]]), np.asarray([[0.0, 1.0, 3.0], [0.0, 1.0, 2.0]])
    np.testing.assert_allclose(at_kl(rewards, kls, 0.5), [1.0, 0.5])
    np.testing.assert_allclose(at_kl(rewards, kls, 2.0), [2.0, 3.0])  # spends less, earns more
    np.testing.assert_allclose(at_kl(rewards[:, ::-1], kls[:, ::-1], 0.5), [1.0, 0.5])
