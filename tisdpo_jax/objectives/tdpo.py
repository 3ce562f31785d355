"""Token-level DPO."""

from __future__ import annotations

import dataclasses
from typing import ClassVar, Literal

from tisdpo_jax import losses
from tisdpo_jax.objectives.objective import Inputs, Loss, Needs, given, over_pairs
from tisdpo_jax.options import option


@dataclasses.dataclass(frozen=True)
class Tdpo:
    title: ClassVar[str] = "TDPO"
    name: Literal["tdpo"] = option("tdpo", "token-level DPO, with the difference of sequential KLs")
    beta: float = option(0.1, "strength of the reference", above=0)
    alpha: float = option(0.5, "coefficient of the KL difference in variant 2", at_least=0)
    variant: Literal[1, 2] = option(2, "which of the two")

    @property
    def needs(self) -> Needs:
        return Needs(reference="reference||policy")

    def loss(self, inputs: Inputs) -> Loss:
        result = losses.tdpo_loss(
            inputs.logps,
            given(inputs.reference_logps, "reference_logps"),
            inputs.mask,
            token_kl=given(inputs.kl, "the full-vocabulary KL"),
            beta=self.beta,
            alpha=self.alpha,
            variant=self.variant,
        )
        return over_pairs(result, inputs.mask)
