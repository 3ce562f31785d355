"""What the loop does around its step: updates that are not finite, saves that fail, a stop. The step is a fake."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tisdpo_jax import checkpoint, partitioning
from tisdpo_jax.checkpoint import Checkpoints
from tisdpo_jax.config import LoggingSection, StageSection
from tisdpo_jax.data import Batches, Order, fit
from tisdpo_jax.errors import CheckpointError, UserError
from tisdpo_jax.models import Model
from tisdpo_jax.objectives import Dpo
from tisdpo_jax.roles import Role, Roles, policy_role
from tisdpo_jax.scoring import Text
from tisdpo_jax.testing import random_encoded, tiny_config
from tisdpo_jax.training import loop
from tisdpo_jax.training.interrupt import Interrupt, Interrupted
from tisdpo_jax.training.loop import Job
from tisdpo_jax.training.metrics import MetricsLog
from tisdpo_jax.training.objective import StepSpec
from tisdpo_jax.types import TrainState

ENCODED = random_encoded(0, pairs=24)
ORDER = Order(ENCODED.lengths(), 4, 0, 1.0)  # six steps


class Step:
    """Adds one to what is trained where the update is finite, and counts in a row where it is not, as the step does."""

    def __init__(self, finite: str) -> None:
        self.finite = finite

    def __call__(self, state: TrainState, frozen: Any, batch: Any) -> tuple[TrainState, dict[str, Any]]:
        good = self.finite[int(state.step)] == "+"
        skipped = jnp.int32(0) if good else state.skipped + 1
        trained = jax.tree.map(lambda x: x + 1 if good else x, state.trained)
        return TrainState(state.step + 1, trained, state.opt_state, skipped), {"loss": 0.7, "skipped": skipped}

    def _cache_size(self) -> int:
        return 1


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Trains with a fake step; `finite` has a + or a - for each update."""
    job = Job(
        "policy",
        StepSpec(Text(Model(tiny_config())), Roles(policy_role(lora=False), Role("base")), Dpo()),
        StageSection(),
        Batches(ENCODED, fit(ENCODED, ORDER.batches(), elements=6)),
        ORDER,
        tmp_path / "checkpoints",
        {"seed": 0},
        checkpoint_every=2,
        max_skipped=4,
    )
    zero = TrainState(jnp.int32(0), {"w": jnp.zeros(3)}, (), jnp.int32(0))

    def train(finite: str, interrupt: Interrupt | None = None, evaluate: Any = None, **fields: Any) -> np.ndarray:
        mine = dataclasses.replace(job, **fields)

        def start(*_: Any) -> tuple[TrainState, Step]:
            restored = Checkpoints(job.directory, keep=2).restore(checkpoint.abstract(zero), job.identity)
            return (restored[1] if restored else zero), Step(finite)

        monkeypatch.setattr(loop, "start", start)
        metrics = MetricsLog(tmp_path, LoggingSection(progress=False))
        found = loop.train(
            mine,
            zero.trained,
            {"params": {}, "lora": {}},
            mesh=partitioning.make_mesh(1, 1, 8),
            metrics=metrics,
            interrupt=interrupt or Interrupt(),
            evaluate=evaluate,
        )
        return np.asarray(found["w"])

    train.steps = Checkpoints(job.directory, keep=2).steps  # type: ignore[attr-defined]
    return train


@pytest.fixture(autouse=True)
def batches_stay_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(partitioning, "put_batch", lambda batch, mesh: batch)


@pytest.mark.parametrize("finite", ["++----", "+++++-", "+++-+-"])
def test_a_stage_that_ends_in_an_update_that_was_skipped_fails(run: Any, finite: str) -> None:
    """Also where fewer were skipped than would stop it on the way: else it ends as if it had been trained."""
    for _ in range(2):  # and again, when the same command is given again
        with pytest.raises(UserError, match=r"not finite, up to step 6 of 6.* last batch: .*lower the learning rate"):
            run(finite)
    assert 6 not in run.steps()


def test_a_stage_that_applied_nothing_fails(run: Any) -> None:
    with pytest.raises(UserError, match="4 updates in a row were not finite, up to step 4"):
        run("------")


def test_an_update_that_was_skipped_on_the_way_is_no_failure(run: Any) -> None:
    assert run("+--+-+").tolist() == [3, 3, 3]


def test_training_bears_saves_that_fail_and_goes_on_from_what_is_there(
    run: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    write, calls = checkpoint._writer, []

    def sometimes(path: Path, *arguments: Any) -> Any:
        calls.append(path.name)
        if len(calls) == 1:
            raise OSError(28, "No space left on device")
        return write(path, *arguments)

    monkeypatch.setattr(checkpoint, "_writer", sometimes)
    assert run("++++++").tolist() == [6, 6, 6]
    assert calls == ["2", "4", "6"] and run.steps() == [4, 6]
    assert "checkpoint 2 could not be written: OSError: [Errno 28] No space left on device" in caplog.text


def test_a_result_that_cannot_be_saved_is_an_error(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> Any:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(checkpoint, "_writer", full)
    monkeypatch.setattr(checkpoint.time, "sleep", lambda _: None)
    with pytest.raises(CheckpointError, match=r"6: cannot be written: .*Permission denied"):
        run("++++++")


def test_a_stop_saves_and_the_next_start_goes_on(run: Any) -> None:
    interrupt = Interrupt()
    interrupt.ask()
    with pytest.raises(Interrupted, match="at step 1 of 6, saved"):
        run("++++++", interrupt)
    assert run.steps() == [1] and run("++++++").tolist() == [6, 6, 6]


@pytest.mark.parametrize(
    ("fields", "trained", "evaluated"),
    [({}, [1, 2, 3, 4, 5, 6], [6]), ({"log_every": 4, "eval_every": 2}, [4, 6], [2, 4, 6])],
)
def test_lines_and_evaluations_are_as_far_apart_as_is_said(
    run: Any, tmp_path: Path, fields: dict[str, int], trained: list[int], evaluated: list[int]
) -> None:
    run("++++++", evaluate=lambda _: {"loss": 0.5}, **fields)
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    steps = {split: [row["step"] for row in rows if row["split"] == split] for split in ("train", "eval")}
    assert steps == {"train": trained, "eval": evaluated}


def test_metrics_come_one_step_late_and_are_complete(run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Metrics of a step are fetched once the next is on its way, and before anything is saved behind them."""
    events: list[str] = []
    take, save, write = loop._take, Checkpoints.save, MetricsLog.write

    def noted(step: Any, state: TrainState, *rest: Any) -> Any:
        events.append(f"step {int(state.step) + 1}")
        return take(step, state, *rest)

    def wrote(self: MetricsLog, stage: str, step: int, split: str, values: Any) -> None:
        events.append(f"write {step}")
        assert values["tokens_per_second"] > 0
        write(self, stage, step, split, values)

    monkeypatch.setattr(loop, "_take", noted)
    monkeypatch.setattr(MetricsLog, "write", wrote)
    monkeypatch.setattr(
        Checkpoints, "save", lambda self, step, *a: (events.append(f"save {step}"), save(self, step, *a))
    )
    run("++++++")
    assert events == [
        *("step 1", "step 2", "write 1", "write 2", "save 2"),
        *("step 3", "step 4", "write 3", "write 4", "save 4"),
        *("step 5", "step 6", "write 5", "write 6"),
    ]
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6] and {row["loss"] for row in rows} == {0.7}


def test_batches_are_those_of_the_order_though_they_are_made_ahead(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[list[int]] = []
    take = loop._take
    monkeypatch.setattr(
        loop,
        "_take",
        lambda step, state, frozen, batch: (taken.append(batch.record.tolist()), take(step, state, frozen, batch))[1],
    )
    interrupt = Interrupt()
    interrupt.ask()
    with pytest.raises(Interrupted):
        run("++++++", interrupt)
    run("++++++")
    assert taken == [indices.tolist() for indices in ORDER.batches()]
