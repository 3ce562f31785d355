"""How long pairs are, also where the data cannot be read, and the flops that a step needs for their real tokens.

`hh_lengths.json` holds 512 of the pairs of Anthropic HH harmless-base (MIT), evenly spaced by their length, as tokens
of SmolLM2's tokenizer in the `hh` template, uncut; `tests/planning/test_lengths.py` makes it again from the data.

Useful flops are what the compiled ones are measured against. A prompt counts once for both responses, padding not at
all, the head on response tokens alone. A multiplication and an addition are 2 flops. The gradient of a matrix product
costs two more products, one where the matrix is frozen.
"""

from __future__ import annotations

import dataclasses
import json
from importlib import resources

import numpy as np
import numpy.typing as npt

from tisdpo_jax.data import EncodedGroup, EncodedSet
from tisdpo_jax.models import TransformerConfig, layer_size

Lengths = npt.NDArray[np.int64]
"""[n, 1 + responses]: tokens of the prompt and of each response that is taken; of pairs, chosen and rejected."""

CHARACTERS = 4  # of a token of English text, where no tokenizer can count them


def hh_lengths() -> Lengths:
    """The histogram that comes with the package, uncut, `[512, 3]`."""
    text = resources.files("tisdpo_jax.planning").joinpath("hh_lengths.json").read_text(encoding="utf-8")
    return np.asarray(json.loads(text)["lengths"], np.int64)


def cut(lengths: Lengths, *, max_length: int, max_response: int) -> Lengths:
    """What encoding would leave: responses lose their end first, then prompts their beginning."""
    responses = np.minimum(lengths[:, 1:], max_response)
    prompts = np.minimum(lengths[:, 0], max_length - responses.max(1))
    return np.column_stack([np.maximum(prompts, 1), responses])


def full_lengths(*, max_length: int, max_response: int) -> Lengths:
    """One pair that is as long as the configuration allows."""
    return np.asarray([[max_length - max_response, max_response, max_response]], np.int64)


def repeat(lengths: Lengths, count: int) -> Lengths:
    """At least `count` pairs: all of them, over and over."""
    return np.tile(lengths, (-(-count // len(lengths)), 1))


def blank_pairs(lengths: Lengths, source: str, *, contrast: tuple[str, str] | None = None) -> EncodedSet:
    """Pairs of these lengths that say nothing: what shapes are made of.

    Args:
        lengths: of the pairs.
        source: where they come from, as an error would name it.
        contrast: with contrastive prompts, their texts; a token is taken to be `CHARACTERS` long.
    """
    longer = {"main": 0}
    for view, text in zip(("plus", "minus"), contrast or (), strict=False):
        longer[view] = -(-len(text) // CHARACTERS)
    groups = []
    for number, (prompt, *responses) in enumerate(lengths.tolist()):
        prompts = {view: np.zeros(prompt + more, np.int32) for view, more in longer.items()}
        blank = tuple(np.zeros(size, np.int32) for size in responses)
        groups.append(EncodedGroup(str(number), source, prompts, blank))
    return EncodedSet(tuple(groups), (), source)


def measure(encoded: EncodedSet) -> Lengths:
    """Lengths of encoded pairs, `[n, 3]`."""
    return np.column_stack([encoded.prompts().sizes, encoded.responses.sizes])


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
    seen = (prompts * (prompts + 1) / 2).sum() + (responses * (prompts[:, None] + (responses + 1) / 2)).sum()
    return Flops(
        matrices=2.0 * config.num_layers * layer_size(config) * lengths.sum(),
        attention=4.0 * config.num_layers * config.num_heads * config.head_dim * seen,
        head=2.0 * config.hidden_size * (1 if config.score_head else config.vocab_size) * responses.sum(),
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
    return sum(frozen, total + Flops(6.0 * adapters * float(policy.sum()), 0.0, 0.0))


def recomputed(config: TransformerConfig, policy: Lengths, remat: str) -> Flops:
    """What `model.remat` makes the backward pass compute again."""
    once = forward(config, policy)
    return {"full": once.times(1, 1, 0), "dots": once.times(0, 1, 0)}.get(remat, once.scaled(0))
