"""An estimator from the reference alone: the entropy of its next-token distributions. No pi+ and pi- are made."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import ClassVar, Literal

import jax

from tisdpo_jax.estimators.estimator import Read
from tisdpo_jax.options import option
from tisdpo_jax.weights import entropy_weights

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class Entropy:
    reads: ClassVar[tuple[Read, ...]] = (Read("reference", "entropy"),)
    method: Literal["entropy"] = option("entropy", "uncertainty of the reference, without pi+ and pi-")
    power: float = option(1.0, "exponent of the entropy, relative to the mean of the response")

    def weights(self, values: Mapping[str, Array], mask: Array, record: Array) -> Array:
        return entropy_weights(values["reference_entropy"], mask, power=self.power)
