"""Objectives: each option changes the loss, each need is one, and what is not needed is not read."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from tisdpo_jax import losses
from tisdpo_jax.objectives import OBJECTIVES, Inputs, Objective
from tisdpo_jax.testing import random_pairs

PAIRS = random_pairs(0, (6, 2, 9))
COLUMNS = {
    "token_weights": PAIRS.mask * 1.5,
    "self_reward": jnp.linspace(-3, 3, 6),
    "target": jnp.linspace(0.6, 1, 6),
}
REWARDS = PAIRS.policy_logps[..., 0]
OTHER = {"average": True, "variant": 1}  # values that are no numbers to be doubled


def inputs_of(objective: Objective, **changes: Any) -> Inputs:
    """What the objective needs, and nothing else."""
    needs = objective.needs
    whole = {
        "reference_logps": PAIRS.reference_logps if needs.reference != "none" else None,
        "kl": PAIRS.token_kl if needs.direction else None,
        "columns": {name: COLUMNS[name] for name in needs.columns},
        "rewards": REWARDS if needs.reads == "rewards" else None,
    }
    sides = list(needs.sides)
    logps = PAIRS.policy_logps if needs.reads == "logps" else PAIRS.policy_logps * jnp.nan
    return Inputs(logps[:, sides], PAIRS.mask[:, sides], **{**whole, **changes})


@pytest.mark.parametrize(
    ("name", "option"),
    [(name, f.name) for name, kind in OBJECTIVES.items() for f in dataclasses.fields(kind) if f.name != "name"],
)
def test_every_option_changes_the_loss(name: str, option: str) -> None:
    objective = OBJECTIVES[name]()
    value = OTHER.get(option, getattr(objective, option) * 0.01 or 0.3)
    changed = dataclasses.replace(objective, **{option: value})
    before, after = (one.loss(inputs_of(objective)).total for one in (objective, changed))
    assert np.isfinite(before) and before != after


@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_need_is_one(name: str) -> None:
    objective = OBJECTIVES[name]()
    before = objective.loss(inputs_of(objective)).total
    needs = objective.needs
    if needs.reference != "none":
        assert (
            objective.loss(inputs_of(objective, reference_logps=PAIRS.reference_logps - 0.1 * PAIRS.token_kl)).total
            != before
        )
        with pytest.raises(ValueError, match="needs reference_logps"):
            objective.loss(inputs_of(objective, reference_logps=None))
    if needs.direction:
        assert objective.loss(inputs_of(objective, kl=PAIRS.token_kl * 2)).total != before
    if needs.reads == "rewards":
        assert objective.loss(inputs_of(objective, rewards=REWARDS * 2)).total != before
        with pytest.raises(ValueError, match="needs rewards"):
            objective.loss(inputs_of(objective, rewards=None))
    for column in needs.columns:
        rest = {name: COLUMNS[name] for name in needs.columns if name != column}
        with pytest.raises(ValueError, match=f"needs the column '{column}'"):
            objective.loss(inputs_of(objective, columns=rest))
        columns = {name: COLUMNS[name] for name in needs.columns} | {column: COLUMNS[column] * 0.5}
        assert objective.loss(inputs_of(objective, columns=columns)).total != before


@pytest.mark.parametrize("name", OBJECTIVES)
def test_fillers_count_nowhere_and_the_count_is_of_pairs_or_tokens(name: str) -> None:
    objective = OBJECTIVES[name]()
    inputs = inputs_of(objective)

    def padded(x: Any) -> Any:
        return jnp.concatenate([x, jnp.zeros_like(x[:2])])

    filled = inputs._replace(
        logps=padded(inputs.logps),
        mask=padded(inputs.mask),
        reference_logps=None if inputs.reference_logps is None else padded(inputs.reference_logps),
        kl=None if inputs.kl is None else padded(inputs.kl),
        columns={key: padded(value) for key, value in inputs.columns.items()},
        rewards=None if inputs.rewards is None else padded(inputs.rewards),
    )
    here, there = objective.loss(inputs), objective.loss(filled)
    assert here.denominator == there.denominator == (inputs.mask.sum() if here.pairs is None else len(inputs.mask))
    np.testing.assert_allclose(here.total, there.total, rtol=1e-6)


def test_the_kl_is_asked_for_where_its_coefficient_is_not_zero() -> None:
    for name in ("tisdpo", "dlma+tisdpo"):
        assert OBJECTIVES[name]().needs.direction == "policy||reference"
        assert OBJECTIVES[name](kl_coef=0.0).needs.reference == "logps"
    assert OBJECTIVES["tdpo"]().needs.direction == "reference||policy"
    tisdpo = OBJECTIVES["tisdpo"](kl_coef=0.0)
    inputs = inputs_of(tisdpo)
    expected = losses.tisdpo_loss(*inputs[:1], inputs.reference_logps, inputs.mask, weights=COLUMNS["token_weights"])
    np.testing.assert_array_equal(tisdpo.loss(inputs).total, expected.loss.sum())
