"""DPO, with conservative labels."""

from __future__ import annotations

import dataclasses
from typing import ClassVar, Literal

from tisdpo_jax import losses
from tisdpo_jax.objectives.objective import Inputs, Loss, Needs, given, over_pairs
from tisdpo_jax.options import option


@dataclasses.dataclass(frozen=True)
class Dpo:
    title: ClassVar[str] = "DPO"
    name: Literal["dpo"] = option("dpo", "direct preference optimisation")
    beta: float = option(0.1, "strength of the reference", above=0)
    label_smoothing: float = option(0.0, "share of labels taken as flipped (cDPO)", at_least=0, at_most=0.5)

    @property
    def needs(self) -> Needs:
        return Needs()

    def loss(self, inputs: Inputs) -> Loss:
        reference = given(inputs.reference_logps, "reference_logps")
        options = {"beta": self.beta, "label_smoothing": self.label_smoothing}
        return over_pairs(losses.dpo_loss(inputs.logps, reference, inputs.mask, **options), inputs.mask)
