"""TIS-DPO: DPO in which every token carries an importance weight."""

from __future__ import annotations

import dataclasses
from typing import ClassVar, Literal

from tisdpo_jax import losses
from tisdpo_jax.objectives.objective import Inputs, Loss, Needs, given, over_pairs
from tisdpo_jax.options import option


@dataclasses.dataclass(frozen=True)
class TisDpo:
    title: ClassVar[str] = "TIS-DPO"
    name: Literal["tisdpo"] = option("tisdpo", "DPO with token importance weights")
    beta: float = option(0.1, "strength of the reference", above=0)
    label_smoothing: float = option(0.0, "share of labels taken as flipped (cDPO)", at_least=0, at_most=0.5)
    kl_coef: float = option(1.0, "coefficient of the weighted KL term eta; 0 leaves it out", at_least=0)

    @property
    def needs(self) -> Needs:
        return Needs(reference="policy||reference" if self.kl_coef else "logps", columns=("token_weights",))

    def loss(self, inputs: Inputs) -> Loss:
        result = losses.tisdpo_loss(
            inputs.logps,
            given(inputs.reference_logps, "reference_logps"),
            inputs.mask,
            weights=given(inputs.columns.get("token_weights"), "the column 'token_weights'"),
            beta=self.beta,
            token_kl=inputs.kl,
            kl_coef=self.kl_coef,
            label_smoothing=self.label_smoothing,
        )
        return over_pairs(result, inputs.mask)
