"""Running a training: the one stateful file. Batches by step, metrics, evaluation, checkpoints, stopping, resuming.

The position in the data is the step and nothing else, so a restored state goes on exactly where it stopped.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from tisdpo_jax import partitioning
from tisdpo_jax.checkpoint import Checkpoints
from tisdpo_jax.config import StageSection
from tisdpo_jax.data import EncodedSet, Layout, Order, States, make_batch
from tisdpo_jax.errors import UserError
from tisdpo_jax.roles import Frozen
from tisdpo_jax.training import optim
from tisdpo_jax.training.interrupt import Interrupt, Interrupted
from tisdpo_jax.training.metrics import MetricsLog
from tisdpo_jax.training.objective import Plan
from tisdpo_jax.training.step import init_state, train_step
from tisdpo_jax.types import Params, TrainState

log = logging.getLogger(__name__)

SHOWN = ("objective", "rewards/margins", "rewards/accuracies")  # of the metrics, beside the progress bar


@dataclasses.dataclass(frozen=True)
class Pairs:
    """Encoded pairs, how they are laid out in batches, and precomputed columns."""

    encoded: EncodedSet
    layout: Layout
    columns: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
    states: States | None = None  # of the reference

    def batch(self, indices: np.ndarray) -> Any:
        batch = make_batch(self.encoded, indices, layout=self.layout, columns=self.columns)
        if self.states is None:
            return batch
        elements = np.asarray(batch.views["main"].slots.elements)
        states: Any = self.states.by_slot(indices, elements, self.layout)
        return batch._replace(states=states)

    def tokens(self, indices: np.ndarray) -> int:
        """Real tokens that the main view of a batch shows to a model."""
        shared = 1 if self.layout.packed else len(self.layout.sides)
        pairs = [self.encoded.pairs[i] for i in indices if i >= 0]
        responses = [(len(pair.chosen), len(pair.rejected)) for pair in pairs]
        return sum(shared * len(pair.prompt) for pair in pairs) + sum(
            lengths[side] for lengths in responses for side in self.layout.sides
        )


@dataclasses.dataclass(frozen=True)
class Job:
    """One training, from start to end."""

    stage: str
    plan: Plan
    section: StageSection
    pairs: Pairs
    order: Order
    directory: Path  # of the checkpoints
    identity: dict[str, Any]  # kept with each checkpoint
    checkpoint_every: int = 100
    keep: int = 2
    max_skipped: int = 5
    log_every: int = 1
    eval_every: int = 0

    def __post_init__(self) -> None:
        if self.plan.micro_batches != self.pairs.layout.parts:
            raise ValueError(
                f"stage {self.stage}: {self.plan.micro_batches} micro-batches, but the layout of its batches has "
                f"{self.pairs.layout.parts} parts"
            )


def train(
    job: Job,
    trained: Params,
    frozen: Frozen,
    *,
    mesh: Mesh,
    metrics: MetricsLog,
    interrupt: Interrupt,
    evaluate: Callable[[Params], dict[str, float]] | None = None,
) -> Params:
    """Trains from `trained`, or from the newest checkpoint of the job; returns what was trained.

    The buffers of `trained` are given up to the first step.

    Raises: Interrupted after saving, when asked to stop; UserError when updates are not finite `max_skipped` times
      in a row, or up to the last one, naming the pairs of the last batch; CheckpointError when nothing can be saved.
    """
    total = job.order.steps
    optimizer = optim.optimizer(job.section.optimizer, total)
    state, step = start(job, trained, optimizer, mesh)
    done = int(state.step)
    checkpoints = Checkpoints(job.directory, keep=job.keep)
    metrics.begin(job.stage, done=done, total=total)
    try:
        while done < total:
            began = time.perf_counter()
            indices = job.order.batch(done)
            host = job.pairs.batch(indices)
            try:
                state, measured = step(state, frozen, partitioning.put_batch(host, mesh))
            except jax.errors.JaxRuntimeError as error:
                if "compile option" in str(error):
                    raise UserError(f"mesh.compiler_options: {str(error).splitlines()[0]}") from None
                raise
            done += 1
            values = {name: float(value) for name, value in jax.device_get(measured).items()}
            values["tokens_per_second"] = job.pairs.tokens(indices) / (time.perf_counter() - began)
            last = done == total
            if done % job.log_every == 0 or last:
                metrics.write(job.stage, done, "train", values)
            metrics.advance({name: values[name] for name in SHOWN if name in values})
            if values["skipped"] >= job.max_skipped or (last and values["skipped"]):
                raise UserError(_not_finite(job, indices, int(values["skipped"]), done))
            if evaluate is not None and (last or (job.eval_every and done % job.eval_every == 0)):
                metrics.write(job.stage, done, "eval", evaluate(state.trained))
            stop = not last and interrupt.asked()
            if last or stop:
                checkpoints.save_now(done, state, job.identity)
            elif done % job.checkpoint_every == 0:
                checkpoints.save(done, state, job.identity)
            if stop:
                raise Interrupted(f"stage {job.stage}: stopped on request at step {done} of {total}, saved")
    finally:
        metrics.end()
        checkpoints.wait()
    log.info("stage %s: %d steps, the step was compiled %d time(s)", job.stage, total, step._cache_size())
    return state.trained


def start(job: Job, trained: Params, optimizer: Any, mesh: Mesh) -> tuple[TrainState, Any]:
    """The state to begin with (new, or restored) and the compiled step, with pinned shardings."""
    shape = jax.eval_shape(functools.partial(init_state, optimizer=optimizer), trained)
    shardings = state_shardings(shape, mesh)
    like = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shape, shardings)
    restored = Checkpoints(job.directory, keep=job.keep).restore(like, job.identity)
    if restored is None:
        make = jax.jit(functools.partial(init_state, optimizer=optimizer), out_shardings=shardings, donate_argnums=0)
        state = make(trained)
    else:
        number, state = restored
        log.info("stage %s: resumed at step %d", job.stage, number)
    return state, compile_step(job.plan, optimizer, shardings, mesh)


def compile_step(plan: Plan, optimizer: Any, shardings: Any, mesh: Mesh) -> Any:
    """The jitted step. Its output shardings are pinned: left to the compiler, the second call would compile again."""
    step = functools.partial(train_step, plan=plan, optimizer=optimizer)
    layout, options = (shardings, partitioning.replicated(mesh)), dict(plan.compiler_options) or None
    return jax.jit(step, donate_argnums=0, out_shardings=layout, compiler_options=options)


def state_shardings(shape: TrainState, mesh: Mesh) -> Any:
    """A TrainState of shardings."""
    trained = partitioning.param_shardings(shape.trained, mesh)
    whole = partitioning.replicated(mesh)
    arrays: Any = (whole, trained, optim.state_shardings(shape.opt_state, shape.trained, trained, whole), whole)
    return TrainState(*arrays)


def _not_finite(job: Job, indices: np.ndarray, skipped: int, step: int) -> str:
    names = [job.pairs.encoded.pairs[i].id for i in indices if i >= 0]
    return (
        f"stage {job.stage}: {skipped} updates in a row were not finite, up to step {step} of {job.order.steps}, so "
        "nothing of this stage is kept beyond its checkpoints; last batch: "
        f"{', '.join(names[:8])}{', ...' if len(names) > 8 else ''}; lower the learning rate, or look at these pairs"
    )
