"""Flops that a step needs for its real tokens: what the compiled ones are measured against.

A prompt counts once for both responses, padding not at all, the head on response tokens alone. A multiplication and
an addition are 2 flops. The gradient of a matrix product costs two more products, one where the matrix is frozen.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import numpy.typing as npt

from tisdpo_jax.models import TransformerConfig, layer_size

Lengths = npt.NDArray[np.int64]
"""[n, 1 + sides]: tokens of the prompt and of each response that is taken."""


@dataclasses.dataclass(frozen=True)
class Flops:
    """Of all devices together, a step."""

    matrices: float  # of the layers
    attention: float
    head: float

    @property
    def total(self) -> float:
        return self.matrices + self.attention + self.head

    def scaled(self, factor: float) -> Flops:
        return self.times(factor, factor, factor)

    def times(self, matrices: float, attention: float, head: float) -> Flops:
        return Flops(matrices * self.matrices, attention * self.attention, head * self.head)

    def __add__(self, other: Flops) -> Flops:
        return Flops(self.matrices + other.matrices, self.attention + other.attention, self.head + other.head)


def forward(config: TransformerConfig, lengths: Lengths) -> Flops:
    """One model, forward, over all pairs of `lengths`."""
    prompts, responses = lengths[:, 0].astype(np.float64), lengths[:, 1:].astype(np.float64)
    tokens = lengths.sum()
    seen = (prompts * (prompts + 1) / 2).sum() + (responses * (prompts[:, None] + (responses + 1) / 2)).sum()
    return Flops(
        matrices=2.0 * config.num_layers * layer_size(config) * tokens,
        attention=4.0 * config.num_layers * config.num_heads * config.head_dim * seen,
        head=2.0 * config.hidden_size * config.vocab_size * responses.sum(),
    )


def training(config: TransformerConfig, policy: Lengths, frozen: list[Flops], *, adapters: int) -> Flops:
    """A step: the policy forward and backward, frozen models forward.

    Args:
        policy: lengths of the pairs as the policy sees them.
        frozen: of each frozen model that is run in the step, what it costs over the pairs.
        adapters: parameters of the adapter that is trained; 0 where all parameters are.
    """
    once = forward(config, policy)
    total = once.times(2, 3, 2) if adapters else once.scaled(3)
    total += Flops(6.0 * adapters * float(policy.sum()), 0.0, 0.0)
    for model in frozen:
        total += model
    return total


def recomputed(config: TransformerConfig, policy: Lengths, remat: str) -> Flops:
    """What `model.remat` makes the backward pass compute again."""
    once = forward(config, policy)
    return {"full": once.times(1, 1, 0), "dots": once.times(0, 1, 0)}.get(remat, once.scaled(0))
