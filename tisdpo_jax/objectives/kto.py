"""KTO on pairs."""

from __future__ import annotations

import dataclasses
from typing import ClassVar, Literal

from tisdpo_jax import losses
from tisdpo_jax.objectives.objective import Inputs, Loss, Needs, given, over_pairs
from tisdpo_jax.options import option


@dataclasses.dataclass(frozen=True)
class Kto:
    title: ClassVar[str] = "KTO"
    name: Literal["kto"] = option("kto", "KTO on pairs: chosen desirable, rejected undesirable")
    beta: float = option(0.1, "strength of the reference", above=0)
    desirable_weight: float = option(1.0, "weight of chosen responses", at_least=0)
    undesirable_weight: float = option(1.0, "weight of rejected responses", at_least=0)

    @property
    def needs(self) -> Needs:
        return Needs()

    def loss(self, inputs: Inputs) -> Loss:
        reference = given(inputs.reference_logps, "reference_logps")
        result = losses.kto_loss(
            inputs.logps,
            reference,
            inputs.mask,
            beta=self.beta,
            desirable_weight=self.desirable_weight,
            undesirable_weight=self.undesirable_weight,
        )
        return over_pairs(result, inputs.mask)
