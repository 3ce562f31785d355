"""SimPO: by mean log-likelihoods, without a reference."""

from __future__ import annotations

import dataclasses
from typing import ClassVar, Literal

from tisdpo_jax import losses
from tisdpo_jax.objectives.objective import Inputs, Loss, Needs, over_pairs
from tisdpo_jax.options import option


@dataclasses.dataclass(frozen=True)
class SimPo:
    title: ClassVar[str] = "SimPO"
    name: Literal["simpo"] = option("simpo", "mean log-likelihoods with a target margin, no reference")
    beta: float = option(2.0, "scale of the mean log-likelihoods", above=0)
    gamma: float = option(1.0, "margin that the chosen response is to win by", at_least=0)
    label_smoothing: float = option(0.0, "share of labels taken as flipped (cDPO)", at_least=0, at_most=0.5)

    @property
    def needs(self) -> Needs:
        return Needs(reference="none")

    def loss(self, inputs: Inputs) -> Loss:
        options = {"beta": self.beta, "gamma": self.gamma, "label_smoothing": self.label_smoothing}
        return over_pairs(losses.simpo_loss(inputs.logps, inputs.mask, **options), inputs.mask)
