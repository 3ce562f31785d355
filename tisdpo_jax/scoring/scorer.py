"""What a training step asks of a kind of model: log-likelihoods by element, and comparisons of two models.

Losses and weights see `[B, K, N]` alone, so a new kind of model, for text, pictures or anything that has elements, is a
new scorer and nothing else.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Protocol

import jax
import jax.numpy as jnp

from tisdpo_jax.models import Model
from tisdpo_jax.scoring._fused import fused_logps_and_kl
from tisdpo_jax.scoring._logits import Direction
from tisdpo_jax.scoring._text import by_element, read, score, score_pair_of_models
from tisdpo_jax.types import Scores, Variables

Array = jax.Array


class Scorer(Protocol):
    """A scorer; an instance is hashable, a static part of the step.

    Batches have `mask [B, K, N]`, `record [B]` and `columns`; all else in them is between the scorer and its data. The
    `key` of a step is one and the same for all roles: what a scorer draws, as the noise of a diffusion model, is equal
    for policy, reference, pi+ and pi-. SamplingParams by (key, record), so that neither order nor devices matter.
    """

    def logps(self, variables: Variables, batch: Any, key: Array, *, view: str = "main") -> Array:
        """`[B, K, N]` float32: log-likelihood of each element under one model; 0 where the mask is 0."""
        ...

    def compare(
        self, policy: Variables, reference: Variables, batch: Any, key: Array, *, direction: Direction
    ) -> tuple[Scores, Array]:
        """Log-likelihoods and KL of the policy, log-likelihoods of the reference; the gradient reaches the policy."""
        ...

    def entropy(self, variables: Variables, batch: Any, key: Array, *, view: str = "main") -> Array:
        """`[B, K, N]` float32: entropy of the model's distribution of each element, in nats; 0 where the mask is 0."""
        ...

    def compute_dtype(self) -> str:
        """What matrices of the trained layers are read in, in the step."""
        ...


@dataclasses.dataclass(frozen=True)
class Text:
    """Scores response tokens by a decoder; deterministic."""

    model: Model
    chunk: int = 256  # response tokens of a device that reach the vocabulary at a time

    def logps(self, variables: Variables, batch: Any, key: Array, *, view: str = "main") -> Array:
        return score(self.model, variables, batch, view=view, chunk=self.chunk).logps

    def compare(
        self, policy: Variables, reference: Variables, batch: Any, key: Array, *, direction: Direction
    ) -> tuple[Scores, Array]:
        return score_pair_of_models(self.model, policy, reference, batch, direction=direction, chunk=self.chunk)

    def entropy(self, variables: Variables, batch: Any, key: Array, *, view: str = "main") -> Array:
        shown = batch.views[view]
        seen = read(self.model, variables, shown)
        # KL(p || uniform) = log V - H(p), and hidden states of 0 give the uniform distribution
        nothing = jnp.zeros_like(seen.hidden)
        _, _, kl = fused_logps_and_kl(
            seen.hidden,
            seen.head.kernel,
            nothing,
            seen.head.kernel,
            shown.slots.targets,
            softcap=seen.head.softcap,
            chunk=self.chunk,
        )
        entropy = jnp.log(jnp.float32(self.model.config.vocab_size)) - kl
        return jax.lax.stop_gradient(by_element(shown, entropy))

    def compute_dtype(self) -> str:
        return self.model.compute.dtype
