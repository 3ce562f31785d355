"""What a training step asks of a kind of model: log-likelihoods by element, and comparisons of two models; for text.

Losses and weights see `[B, K, N]` alone, so a new kind of model, for text, pictures or anything that has elements, is a
new scorer and nothing else. The shift by one of text happens here and nowhere else.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt

from tisdpo_jax import arguments, partitioning
from tisdpo_jax.models import Head, Model, head_of, hidden_states
from tisdpo_jax.routing import take
from tisdpo_jax.scoring._fused import fused_logps, fused_logps_and_kl
from tisdpo_jax.scoring._logits import Direction
from tisdpo_jax.scoring._reward import reward_scores
from tisdpo_jax.types import Batch, Scores, Variables, View

Array = jax.Array


class Scorer(Protocol):
    """A scorer; an instance is hashable, a static part of the step.

    Batches have `mask [B, K, N]`, `record [B]` and `columns`; all else in them is between the scorer and its data. The
    `key` of a step is one and the same for all roles: what a scorer draws, as the noise of a diffusion model, is equal
    for policy, reference, pi+ and pi-. Drawn by (key, record), so that neither order nor devices matter.
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

    def rewards(self, variables: Variables, batch: Any, key: Array, *, view: str = "main") -> Array:
        """`[B, K]` float32: what a reward model says of each response; of other models it is not asked."""
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
        hidden, head = read(self.model, variables, shown)
        # KL(p || uniform) = log V - H(p), and hidden states of 0 give the uniform distribution
        both = hidden, head.kernel, jnp.zeros_like(hidden), head.kernel
        kl = fused_logps_and_kl(*both, shown.slots.targets, softcap=head.softcap, chunk=self.chunk)[2]
        entropy = jnp.log(jnp.float32(self.model.config.vocab_size)) - kl
        return jax.lax.stop_gradient(by_element(shown, entropy))

    def rewards(self, variables: Variables, batch: Any, key: Array, *, view: str = "main") -> Array:
        return reward_scores(self.model, variables, batch, view=view)

    def compute_dtype(self) -> str:
        return self.model.compute.dtype


class Seen(NamedTuple):
    """A model's last hidden states where the response is predicted, and its head."""

    hidden: Array  # [R, M, D], by slot
    head: Head


def read(model: Model, variables: Variables, view: View) -> Seen:
    """Runs the model over a view and keeps the places that predict response tokens: that before each."""
    rows = view.rows._replace(tokens=partitioning.constrain(view.rows.tokens, ("batch", None)))
    hidden = take(hidden_states(model, variables, rows), view.slots.source, view.slots.readers)
    return Seen(partitioning.constrain(hidden, ("batch", None, None)), head_of(model.config, variables))


def by_element(view: View, values: Array) -> Array:
    """Values by slot `[R, M]` as values by element `[B, S, N]`; 0 where there is no element."""
    flat = take(values.reshape(1, -1), view.place.reshape(1, -1), view.slots.elements.reshape(1, -1, 1))
    return partitioning.constrain(flat.reshape(view.place.shape), ("batch", None, None))


def score(model: Model, variables: Variables, batch: Batch, *, view: str = "main", chunk: int = 256) -> Scores:
    """Log-likelihood of every response token under one model: `Scores(logps [B, S, N], None)`."""
    if view not in batch.views:
        raise ValueError(f"score: view is {view!r}; the batch has {', '.join(map(repr, batch.views))}")
    shown = batch.views[view]
    hidden, head = read(model, variables, shown)
    logps = fused_logps(hidden, head.kernel, shown.slots.targets, softcap=head.softcap, chunk=chunk)
    return Scores(by_element(shown, logps))


def score_pair_of_models(
    model: Model,
    policy: Variables,
    reference: Variables,
    batch: Batch,
    *,
    direction: Direction = "policy||reference",
    chunk: int = 256,
    reference_model: Model | None = None,
) -> tuple[Scores, Array]:
    """Policy and reference over the main view, with the full-vocabulary KL between them.

    Where the batch brings the reference's last hidden states, they are taken and only its head is read.
    `reference_model` is the definition of the reference where it is another one, with the same vocabulary.

    Returns: the policy's `Scores(logps, kl)` and the reference's log-likelihoods, each `[B, S, N]`.
    Gradients flow to the policy only.
    """
    view = batch.views["main"]
    ours = read(model, policy, view)
    if batch.states is None:
        theirs = jax.lax.stop_gradient(read(reference_model or model, reference, view))
    else:
        theirs = Seen(batch.states.astype(ours.hidden.dtype), head_of((reference_model or model).config, reference))
    both = fused_logps_and_kl(
        *(ours.hidden, ours.head.kernel, theirs.hidden, theirs.head.kernel, view.slots.targets),
        direction=direction,
        softcap=ours.head.softcap,
        reference_softcap=theirs.head.softcap,
        chunk=chunk,
    )
    logps, reference_logps, kl = (by_element(view, x) for x in both)
    return Scores(logps, kl), reference_logps


def contrast_scores(
    positive_logps: npt.ArrayLike, negative_logps: npt.ArrayLike, mask: npt.ArrayLike, *, average: bool = False
) -> npt.NDArray[np.float64]:
    """`sum_t (log pi+ - log pi-)` of every response: `[..., N]` -> `[...]`, in nats, summed in float64.

    The self-reward of a pair is the score of one side minus that of the other.

    Args:
      positive_logps, negative_logps: log-likelihoods of the response's tokens under pi+ and pi-.
      mask: 1 on real tokens.
      average: nats a token instead; a response without tokens scores 0.

    Source: Liu et al., DLMA, arXiv 2402.11907, eq. 5, which sums.
    """
    positive, negative, mask = (np.asarray(x) for x in (positive_logps, negative_logps, mask))
    shapes = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in (positive, negative, mask)]
    arguments.elements("contrast_scores", shapes[2], positive_logps=shapes[0], negative_logps=shapes[1])
    arguments.flag("contrast_scores", "average", average)
    real = mask > 0
    ratios = positive.astype(np.float64) - negative.astype(np.float64)
    total = np.where(real, ratios, 0.0).sum(-1)
    return np.asarray(total / np.maximum(real.sum(-1), 1) if average else total)
