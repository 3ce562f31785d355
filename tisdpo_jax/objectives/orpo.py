"""ORPO: fine-tuning on the chosen response with an odds ratio, without a reference."""

from __future__ import annotations

import dataclasses
from typing import ClassVar, Literal

from tisdpo_jax import losses
from tisdpo_jax.objectives.objective import Inputs, Loss, Needs, over_pairs
from tisdpo_jax.options import option


@dataclasses.dataclass(frozen=True)
class Orpo:
    title: ClassVar[str] = "ORPO"
    name: Literal["orpo"] = option("orpo", "SFT with an odds ratio of chosen and rejected, no reference")
    coef: float = option(0.1, "coefficient of the odds ratio, the paper's lambda", at_least=0)

    @property
    def needs(self) -> Needs:
        return Needs(reference="none")

    def loss(self, inputs: Inputs) -> Loss:
        return over_pairs(losses.orpo_loss(inputs.logps, inputs.mask, coef=self.coef), inputs.mask)
