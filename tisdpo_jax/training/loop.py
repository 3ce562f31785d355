"""Running a training: the one stateful file. Batches by step, metrics, evaluation, checkpoints, stopping, resuming.

The position in the data is the step and nothing else, so a restored state goes on exactly where it stopped.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from tisdpo_jax.checkpoint import Checkpoints
from tisdpo_jax.config import StageSection
from tisdpo_jax.data import Batches, Order
from tisdpo_jax.errors import UserError
from tisdpo_jax.roles import Frozen
from tisdpo_jax.training.interrupt import Interrupt, Interrupted
from tisdpo_jax.training.metrics import MetricsLog
from tisdpo_jax.training.objective import StepSpec
from tisdpo_jax.training.passes import ahead, on_devices
from tisdpo_jax.training.step import programs
from tisdpo_jax.types import Params, TrainState

log = logging.getLogger(__name__)

SHOWN = ("objective", "rewards/margins", "rewards/accuracies")  # of the metrics, beside the progress bar


@dataclasses.dataclass(frozen=True)
class Job:
    """One training, from start to end."""

    stage: str
    plan: StepSpec
    section: StageSection
    pairs: Batches
    order: Order
    directory: Path  # of the checkpoints
    identity: dict[str, Any]  # kept with each checkpoint
    checkpoint_every: int = 100
    keep: int = 2
    max_skipped: int = 5
    log_every: int = 1
    eval_every: int | None = None

    def __post_init__(self) -> None:
        steps = self.plan.gradient_accumulation_steps
        if steps != self.pairs.layout.parts:
            raise ValueError(
                f"stage {self.stage}: {steps} micro-batches, but the layout of its batches has "
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
    state, step = start(job, trained, mesh)
    done, compiled = int(state.step), step._cache_size()
    checkpoints = Checkpoints(job.directory, keep=job.keep)
    metrics.begin(job.stage, done=done, total=total)
    late = _Late(job, metrics)

    def prepared(number: int) -> tuple[np.ndarray, Any]:
        indices = job.order.batch(number)
        return indices, on_devices(job.pairs, indices, mesh)

    try:
        with contextlib.closing(ahead(prepared, range(done, total))) as batches:
            began = time.perf_counter()
            for indices, batch in batches:
                state, measured = _take(step, state, frozen, batch)
                done += 1
                late.add(_Taken(done, indices, measured, began))
                last = done == total
                stop = not last and interrupt.asked_late()
                evaluated = evaluate is not None and (last or (job.eval_every and done % job.eval_every == 0))
                if last or stop or evaluated or done % job.checkpoint_every == 0:
                    late.settle()  # nothing is measured or saved behind an update that stops the run
                if evaluate is not None and evaluated:
                    metrics.write(job.stage, done, "eval", evaluate(state.trained))
                if last or stop:
                    checkpoints.save_now(done, state, job.identity)
                elif done % job.checkpoint_every == 0:
                    checkpoints.save(done, state, job.identity)
                if stop:
                    raise Interrupted(f"stage {job.stage}: stopped on request at step {done} of {total}, saved")
                began = time.perf_counter()
    finally:
        metrics.end()
        checkpoints.wait()
    log.info("stage %s: %d steps, the step was compiled %d time(s)", job.stage, total, step._cache_size() - compiled)
    return state.trained


def start(job: Job, trained: Params, mesh: Mesh) -> tuple[TrainState, Any]:
    """The state to begin with (new, or restored) and the compiled step, with pinned shardings."""
    like, begin, step = programs(job.plan, job.section.optimizer, job.order.steps, trained, mesh)
    restored = Checkpoints(job.directory, keep=job.keep).restore(like, job.identity)
    if restored is None:
        return begin(trained), step
    number, state = restored
    log.info("stage %s: resumed at step %d", job.stage, number)
    return state, step


def _take(step: Any, state: TrainState, frozen: Frozen, batch: Any) -> tuple[TrainState, dict[str, Any]]:
    try:
        return step(state, frozen, batch)
    except jax.errors.JaxRuntimeError as error:
        if "compile option" in str(error):
            raise UserError(f"mesh.compiler_options: {str(error).splitlines()[0]}") from None
        raise


class _Taken(NamedTuple):
    """A step that devices may still be at."""

    step: int
    indices: np.ndarray
    measured: dict[str, Any]
    began: float  # when its batch was asked for


class _Late:
    """Metrics of the newest step, fetched once the next one is on its way, so that devices do not wait for the host."""

    def __init__(self, job: Job, metrics: MetricsLog) -> None:
        self._job, self._metrics = job, metrics
        self._waiting: _Taken | None = None
        self._settled = 0.0  # when the step before the waiting one was done

    def add(self, taken: _Taken) -> None:
        self.settle()
        self._waiting = taken

    def settle(self) -> None:
        """Waits for the newest step and writes its metrics.

        Raises: UserError when it is one skipped update too many, or a skipped one at the end.
        """
        taken, self._waiting, job = self._waiting, None, self._job
        if taken is None:
            return
        values = {name: float(value) for name, value in jax.device_get(taken.measured).items()}
        before, self._settled = max(taken.began, self._settled), time.perf_counter()
        values["tokens_per_second"] = job.pairs.tokens(taken.indices) / (self._settled - before)
        last = taken.step == job.order.steps
        if taken.step % job.log_every == 0 or last:
            self._metrics.write(job.stage, taken.step, "train", values)
        self._metrics.advance({name: values[name] for name in SHOWN if name in values})
        if values["skipped"] >= job.max_skipped or (last and values["skipped"]):
            raise UserError(_not_finite(job, taken.indices, int(values["skipped"]), taken.step))


def _not_finite(job: Job, indices: np.ndarray, skipped: int, step: int) -> str:
    names = [job.pairs.encoded.groups[i].id for i in indices if i >= 0]
    return (
        f"stage {job.stage}: {skipped} updates in a row were not finite, up to step {step} of {job.order.steps}, so "
        "nothing of this stage is kept beyond its checkpoints; last batch: "
        f"{', '.join(names[:8])}{', ...' if len(names) > 8 else ''}; lower the learning rate, or look at these pairs"
    )
