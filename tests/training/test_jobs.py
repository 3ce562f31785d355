"""What a training is told: pairs with the layout of their batches, a plan that agrees with it, tokens it has seen."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tisdpo_jax.config import StageSection
from tisdpo_jax.data import Batches, Order, fit
from tisdpo_jax.models import Model
from tisdpo_jax.objectives import Dpo
from tisdpo_jax.roles import Role, Roles, policy_role
from tisdpo_jax.scoring import Text
from tisdpo_jax.testing import random_encoded, tiny_config
from tisdpo_jax.training.loop import Job
from tisdpo_jax.training.objective import StepSpec

ENCODED = random_encoded(0, pairs=12)
ORDER = Order(ENCODED.lengths(), 4, 0, 1.0)


def test_a_plan_and_a_layout_that_disagree_are_refused() -> None:
    """Places count within a part, so rows dealt out otherwise would be read in the wrong places, in silence."""
    pairs = Batches(ENCODED, fit(ENCODED, ORDER.batches(), elements=6, parts=2))

    def job(gradient_accumulation_steps: int) -> Job:
        roles = Roles(policy_role(lora=False), Role("base"))
        plan = StepSpec(
            Text(Model(tiny_config())), roles, Dpo(), gradient_accumulation_steps=gradient_accumulation_steps
        )
        return Job("policy", plan, StageSection(), pairs, ORDER, Path(), {})

    assert job(2).pairs is pairs
    for gradient_accumulation_steps in (1, 4):
        with pytest.raises(
            ValueError, match=f"stage policy: {gradient_accumulation_steps} micro-batches, .* has 2 parts"
        ):
            job(gradient_accumulation_steps)


@pytest.mark.parametrize("sides", [(0, 1), (1, 0), (0,), (1,)])
@pytest.mark.parametrize("packed", [True, False])
def test_tokens_are_those_that_the_model_reads(packed: bool, sides: tuple[int, ...]) -> None:
    indices = np.asarray([7, -1, 2, 11])
    pairs = Batches(ENCODED, fit(ENCODED, [indices], elements=6, sides=sides, packed=packed))
    rows, slots, *_ = pairs.batch(indices).views["main"]
    if rows.tree is not None:
        read = np.count_nonzero(rows.tree.pair)
    else:  # of every row with a response: all that stands before its last token, and that
        last = np.where(slots.elements >= 0, slots.source + 1, -1).max(1)
        read = int((last + 1).sum())
    assert pairs.tokens(indices) == read
