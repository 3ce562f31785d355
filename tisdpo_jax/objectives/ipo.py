"""IPO."""

from __future__ import annotations

import dataclasses
from typing import ClassVar, Literal

from tisdpo_jax import losses
from tisdpo_jax.objectives.objective import Inputs, Loss, Needs, given, over_pairs
from tisdpo_jax.options import option


@dataclasses.dataclass(frozen=True)
class Ipo:
    title: ClassVar[str] = "IPO"
    name: Literal["ipo"] = option("ipo", "identity preference optimisation")
    beta: float = option(0.1, "strength of the reference, the paper's tau", above=0)
    average: bool = option(False, "average log-ratios over tokens, as TRL does")

    @property
    def needs(self) -> Needs:
        return Needs()

    def loss(self, inputs: Inputs) -> Loss:
        reference = given(inputs.reference_logps, "reference_logps")
        result = losses.ipo_loss(inputs.logps, reference, inputs.mask, beta=self.beta, average=self.average)
        return over_pairs(result, inputs.mask)
