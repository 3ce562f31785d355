"""DLMA: DPO with the model's own contrast of the pair as a margin; and the same with token weights."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar, Literal

from tisdpo_jax import losses
from tisdpo_jax.objectives.objective import Inputs, Loss, Needs, Reference, given, over_pairs
from tisdpo_jax.options import option


@dataclasses.dataclass(frozen=True)
class Margin:
    """Options of both: those of DPO, and of the self-reward as a margin."""

    beta: float = option(0.1, "strength of the reference", above=0)
    label_smoothing: float = option(0.0, "share of labels taken as flipped (cDPO)", at_least=0, at_most=0.5)
    margin_coef: float = option(0.2, "beta1 / beta, the coefficient of the self-reward as a margin", at_least=0)
    margin_lower: float = option(-40.0, "lower clamp of the self-reward")
    margin_upper: float = option(40.0, "upper clamp of the self-reward")


@dataclasses.dataclass(frozen=True)
class Dlma(Margin):
    title: ClassVar[str] = "DLMA"
    name: Literal["dlma"] = option("dlma", "DPO with the self-reward of the pair as a margin")

    @property
    def needs(self) -> Needs:
        return Needs(columns=("self_reward",))

    def loss(self, inputs: Inputs) -> Loss:
        return _loss(self, inputs)


@dataclasses.dataclass(frozen=True)
class DlmaTisDpo(Margin):
    title: ClassVar[str] = "DLMA + TIS-DPO"
    name: Literal["dlma+tisdpo"] = option("dlma+tisdpo", "TIS-DPO with the self-reward of the pair as a margin")
    kl_coef: float = option(1.0, "coefficient of the weighted KL term eta; 0 leaves it out", at_least=0)

    @property
    def needs(self) -> Needs:
        reference: Reference = "policy||reference" if self.kl_coef else "logps"
        return Needs(reference=reference, columns=("token_weights", "self_reward"))

    def loss(self, inputs: Inputs) -> Loss:
        weights = given(inputs.columns.get("token_weights"), "the column 'token_weights'")
        return _loss(self, inputs, weights=weights, token_kl=inputs.kl, kl_coef=self.kl_coef)


def _loss(options: Margin, inputs: Inputs, **weighted: Any) -> Loss:
    result = losses.dlma_loss(
        inputs.logps,
        given(inputs.reference_logps, "reference_logps"),
        inputs.mask,
        self_reward=given(inputs.columns.get("self_reward"), "the column 'self_reward'"),
        beta=options.beta,
        margin_coef=options.margin_coef,
        lower=options.margin_lower,
        upper=options.margin_upper,
        label_smoothing=options.label_smoothing,
        **weighted,
    )
    return over_pairs(result, inputs.mask)
