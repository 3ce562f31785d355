"""Scoring text: what a model says about the responses of a batch. The shift by one happens here and nowhere else."""

from __future__ import annotations

from typing import NamedTuple

import jax

from tisdpo_jax import partitioning
from tisdpo_jax.models import Head, Model, head_of, hidden_states
from tisdpo_jax.routing import take
from tisdpo_jax.scoring._fused import fused_logps, fused_logps_and_kl
from tisdpo_jax.scoring._logits import Direction
from tisdpo_jax.types import Batch, Scores, Variables, View

Array = jax.Array


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
    seen = read(model, variables, shown)
    head = seen.head
    logps = fused_logps(seen.hidden, head.kernel, shown.slots.targets, softcap=head.softcap, chunk=chunk)
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


def contrast(
    model: Model, plus: tuple[Variables, str], minus: tuple[Variables, str], batch: Batch, *, chunk: int = 256
) -> tuple[Array, Array]:
    """Log-likelihoods under pi+ and pi-: each a model behind a view, `(variables, view name)`.

    Returns: `[B, S, N]` twice, aligned by response token whatever stands before. No gradient.
    """
    with jax.named_scope("contrast"):
        both = (score(model, variables, batch, view=view, chunk=chunk).logps for variables, view in (plus, minus))
        positive, negative = jax.lax.stop_gradient(tuple(both))
    return positive, negative
