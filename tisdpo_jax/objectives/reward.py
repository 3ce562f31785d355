"""A reward model: Bradley-Terry with soft labels."""

from __future__ import annotations

import dataclasses
from typing import ClassVar, Literal

from tisdpo_jax import losses
from tisdpo_jax.objectives.objective import Inputs, Loss, Needs, given, over_pairs
from tisdpo_jax.options import option


@dataclasses.dataclass(frozen=True)
class Reward:
    title: ClassVar[str] = "Reward model"
    name: Literal["reward"] = option("reward", "a number for each response, by Bradley-Terry with soft labels")
    center_coef: float = option(0.0, "draws the two rewards of a pair towards a sum of 0", at_least=0)

    @property
    def needs(self) -> Needs:
        return Needs(reference="none", columns=("target",), reads="rewards")

    def loss(self, inputs: Inputs) -> Loss:
        result = losses.reward_loss(
            given(inputs.rewards, "rewards"),
            target=given(inputs.columns.get("target"), "the column 'target'"),
            center_coef=self.center_coef,
        )
        return over_pairs(result, inputs.mask)
