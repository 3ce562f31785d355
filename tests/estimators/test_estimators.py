"""Estimators of token weights: each option changes them, and nothing is read that is not asked for."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tisdpo_jax import weights
from tisdpo_jax.estimators import CONTRAST, ESTIMATORS, Entropy, Importance, LogUniform, Read, Uniform, reads_of
from tisdpo_jax.testing import random_pairs

PAIRS = random_pairs(0, (6, 2, 9))
VALUES = {"plus_logps": PAIRS.positive_logps, "minus_logps": PAIRS.negative_logps, "reference_entropy": PAIRS.token_kl}
RECORD = jnp.arange(6)
OTHER = {"lower": -0.1, "upper": 0.2, "seed": 7, "gamma": 0.5, "top_percent": 20.0}


def made(estimator: Any) -> np.ndarray:
    values = {read.column: VALUES[read.column] for read in estimator.reads}
    return np.asarray(estimator.weights(values, PAIRS.mask, RECORD))


@pytest.mark.parametrize("method", ESTIMATORS)
def test_weights_stand_on_real_tokens_only(method: str) -> None:
    found = made(ESTIMATORS[method]())
    assert found.shape == PAIRS.mask.shape and np.isfinite(found).all() and found.any()
    assert (found[np.asarray(PAIRS.mask) == 0] == 0).all()


@pytest.mark.parametrize(
    ("method", "option"),
    [(name, f.name) for name, kind in ESTIMATORS.items() for f in dataclasses.fields(kind) if f.name != "method"],
)
def test_every_option_changes_the_weights(method: str, option: str) -> None:
    estimator = ESTIMATORS[method]()
    changed = dataclasses.replace(estimator, **{option: OTHER.get(option, getattr(estimator, option) * 0.5)})
    assert (made(estimator) != made(changed)).any()


@pytest.mark.parametrize("method", ESTIMATORS)
def test_everything_that_is_read_matters(method: str) -> None:
    estimator = ESTIMATORS[method]()
    before = made(estimator)
    for read in estimator.reads:
        values = {other.column: VALUES[other.column] for other in estimator.reads}
        values[read.column] = values[read.column][::-1]
        assert (np.asarray(estimator.weights(values, PAIRS.mask, RECORD)) != before).any(), read


def test_the_paper_is_the_default_and_reads_are_made_once() -> None:
    expected = weights.importance_weights(PAIRS.positive_logps, PAIRS.negative_logps, PAIRS.mask)
    np.testing.assert_array_equal(made(Importance()), expected)
    assert reads_of(("self_reward", "token_weights"), Importance()) == CONTRAST == (Read("plus"), Read("minus"))
    assert reads_of(("token_weights",), Uniform()) == reads_of((), Importance()) == ()
    assert reads_of(("self_reward",), LogUniform()) == CONTRAST


def test_the_entropy_weighs_by_the_reference_alone() -> None:
    """Weights are relative to the response, so their mean is 1; equal entropies and power 0 weigh alike."""
    entropy, mask = PAIRS.token_kl + 0.1, PAIRS.mask
    found = np.asarray(weights.entropy_weights(entropy, mask))
    np.testing.assert_allclose(found.sum(-1), mask.sum(-1), rtol=1e-5)
    np.testing.assert_allclose(weights.entropy_weights(entropy * 7, mask), found, rtol=1e-5)
    for flat in (weights.entropy_weights(jnp.ones_like(mask), mask), weights.entropy_weights(entropy, mask, power=0.0)):
        np.testing.assert_allclose(flat, mask, rtol=1e-6)
    assert {read.role for read in Entropy().reads} == {"reference"}


@pytest.mark.parametrize("method", ["log_uniform", "shuffled", "random"])
def test_what_is_drawn_belongs_to_the_record(method: str) -> None:
    """Pairs that are alike draw differently, and a pair draws the same wherever it stands."""
    estimator, mask = ESTIMATORS[method](), jnp.ones((3, 2, 40))
    ratios = jax.random.normal(jax.random.key(0), (1, 2, 40)).repeat(3, axis=0)
    values = {"plus_logps": ratios, "minus_logps": jnp.zeros_like(ratios)}
    found = np.asarray(estimator.weights(values, mask, jnp.asarray([4, 7, 4])))
    np.testing.assert_array_equal(found[0], found[2])
    assert (found[0] != found[1]).mean() > 0.5
