"""Passes over pairs: the rows and batches that hold them, and the compiled steps that go through them."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable
from typing import Any

import jax
import numpy as np

from tisdpo_jax import partitioning
from tisdpo_jax.data import Batches, EncodedSet, Layout, States, balanced_batches, fit
from tisdpo_jax.errors import DataError
from tisdpo_jax.roles import Frozen
from tisdpo_jax.scoring import Text
from tisdpo_jax.scoring import read as read_states
from tisdpo_jax.stages.frozen import Columns
from tisdpo_jax.stages.pairs import Splits
from tisdpo_jax.stages.session import Session
from tisdpo_jax.training import StepSpec, evaluate_step, means, one_pass
from tisdpo_jax.types import Params


def fit_layout(
    session: Session, encoded: EncodedSet, batches: Iterable[np.ndarray], elements: int, **options: Any
) -> Layout:
    """One shape for `batches` of these pairs; `options` are those of `data.fit`: parts, sides, views."""
    splash, packed = session.model.compute.attention == "splash", session.config.data.packing == "shared"
    transformer = session.model.config
    return fit(
        encoded,
        batches,
        elements=elements,
        shards=partitioning.batch_shards(session.mesh),
        packed=packed,
        copies=splash and packed,
        multiple=128 if splash else 8,
        width=transformer.hidden_size,
        head=transformer.vocab_size / (12 * transformer.num_layers * transformer.hidden_size),
        **options,
    )


def passing(
    session: Session, encoded: EncodedSet, elements: int, *views: str, sides: tuple[int, ...] = (0, 1)
) -> tuple[Batches, list[np.ndarray]]:
    """All of these pairs once, in batches for evaluation and scoring: the pairs, and the batches' indices."""
    size = partitioning.places(session.config.evaluation.batch_size, session.mesh)
    batches = balanced_batches(encoded.lengths(views[0]), size)
    return Batches(encoded, fit_layout(session, encoded, batches, elements, sides=sides, views=views)), batches


def check_finite(what: str, values: np.ndarray, encoded: EncodedSet) -> None:
    """Raises: DataError that names the records whose `values [n, ...]` are not finite."""
    bad = np.flatnonzero(~np.isfinite(values).all(axis=tuple(range(1, values.ndim))))
    if len(bad):
        names = ", ".join(f"{encoded.groups[i].id} ({encoded.groups[i].origin})" for i in bad[:4])
        raise DataError(
            f"{what}: not finite for {len(bad)} of {len(values)} pairs: {names}{', ...' if len(bad) > 4 else ''}; "
            "nothing is kept. A model with NaN in its parameters gives this for all pairs; else look at these records, "
            "or set model.dtype float32"
        )


@functools.lru_cache(maxsize=8)
def scorer(model: Any, view: str, chunk: int, kind: str = "logps") -> Any:
    """The jitted step `(variables, batch) -> [B, 2, N]`, log-likelihoods or another method of the scorer."""
    score = getattr(Text(model, chunk), kind)
    return jax.jit(lambda variables, batch: score(variables, batch, jax.random.key(0), view=view))


@functools.lru_cache(maxsize=2)
def hidden_reader(model: Any, view: str) -> Any:
    """The jitted step `(variables, batch) -> [rows, tokens, width]`, last hidden states."""
    return jax.jit(lambda variables, batch: read_states(model, variables, batch.views[view]).hidden)


def evaluate_held_out(
    session: Session,
    plan: StepSpec,
    frozen: Frozen,
    pairs: Splits,
    columns: Columns,
    states: States | None,
    trained: Params,
) -> dict[str, float]:
    """The metrics of training, over all held-out pairs: sums and counts added, divided once."""
    step = _evaluator(dataclasses.replace(plan, gradient_accumulation_steps=1))
    rows, batches = passing(session, pairs.split("eval"), pairs.elements, *plan.roles.views())
    rows = dataclasses.replace(rows, columns=columns, states=states)
    totals: dict[str, Any] = {}
    for _, batch in one_pass(rows, batches, session.mesh, label="eval", shown=False):
        sums = jax.device_get(step(trained, frozen, batch))
        totals = jax.tree.map(np.add, totals, sums) if totals else sums
    return {name: float(value) for name, value in means(totals).items()}


@functools.lru_cache(maxsize=4)
def _evaluator(plan: StepSpec) -> Any:
    return jax.jit(functools.partial(evaluate_step, plan=plan))
