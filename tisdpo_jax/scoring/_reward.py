"""What a reward model says of responses: one number where each ends."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from tisdpo_jax import partitioning
from tisdpo_jax.models import Model, hidden_states, score_of
from tisdpo_jax.types import Batch, Variables

Array = jax.Array


def reward_scores(model: Model, variables: Variables, batch: Batch, *, view: str = "main") -> Array:
    """`[B, K]` float32: the head of a reward model at the last token of each response; 0 for one without tokens.

    Every place of a row gets its number, and those of `View.ends` go to their responses: numbers cost nothing to move.
    The same as a `...ForSequenceClassification` of transformers over prompt and response, ended by the same token.
    """
    if view not in batch.views:
        raise ValueError(f"reward_scores: view is {view!r}; the batch has {', '.join(map(repr, batch.views))}")
    shown = batch.views[view]
    rows = shown.rows._replace(tokens=partitioning.constrain(shown.rows.tokens, ("batch", None)))
    by_place = score_of(variables, hidden_states(model, variables, rows)).reshape(-1)
    rewards = jnp.where(shown.ends >= 0, jnp.take(by_place, shown.ends, mode="clip"), 0.0)
    return partitioning.constrain(rewards, ("batch", None))
