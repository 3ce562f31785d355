"""Supervised fine-tuning on one response of each group."""

from __future__ import annotations

import dataclasses
from typing import ClassVar, Literal

from tisdpo_jax import losses
from tisdpo_jax.objectives.objective import Inputs, Loss, Needs
from tisdpo_jax.options import option


@dataclasses.dataclass(frozen=True)
class Sft:
    title: ClassVar[str] = "SFT of the policy"
    name: Literal["sft"] = option("sft", "negative log-likelihood of the chosen response, a mean over tokens")

    @property
    def needs(self) -> Needs:
        return Needs(reference="none", sides=(0,))

    def loss(self, inputs: Inputs) -> Loss:
        return Loss(*losses.sft_loss(inputs.logps, inputs.mask))
