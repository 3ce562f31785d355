"""Two trainings that are alike compile one step; another start of a run finds its programs on disk."""

from __future__ import annotations

import dataclasses
import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import pytest

from tisdpo_jax import partitioning
from tisdpo_jax.config import LoggingSection, OptimizerSection, StageSection
from tisdpo_jax.data import Batches, EncodedSet, Order, fit
from tisdpo_jax.models import Model
from tisdpo_jax.objectives import Dpo
from tisdpo_jax.roles import Frozen, Role, Roles, policy_role
from tisdpo_jax.scoring import Text
from tisdpo_jax.testing import device_mesh, random_encoded, random_params, tiny_config
from tisdpo_jax.training import step as programs
from tisdpo_jax.training.interrupt import Interrupt
from tisdpo_jax.training.loop import Job, train
from tisdpo_jax.training.metrics import MetricsLog
from tisdpo_jax.training.objective import StepSpec

MODEL = Model(tiny_config(num_layers=1))
PLAN = StepSpec(Text(MODEL), Roles(policy_role(lora=False), Role("base")), Dpo())
MESH = (1, 4, 2)


def run(directory: Path, encoded: EncodedSet, *, sides: tuple[int, int] = (0, 1), **fields: Any) -> Any:
    mesh = device_mesh(*MESH)
    directory.mkdir()
    order = Order(encoded.lengths(), 4, 0, 1.0)
    layout = fit(encoded, order.batches(), elements=6, shards=4, sides=sides)
    section = StageSection(optimizer=OptimizerSection(**fields))
    job = Job("plus", PLAN, section, Batches(encoded, layout), order, directory, {})
    place = lambda seed: jax.device_put(random_params(seed, MODEL.config), shardings)  # noqa: E731 (one line says it)
    shardings = partitioning.param_shardings(random_params(0, MODEL.config), mesh)
    frozen: Frozen = {"params": {"base": place(0)}, "lora": {}}
    with jax.set_mesh(mesh), MetricsLog(directory, LoggingSection(progress=False)) as metrics:
        return train(job, place(1), frozen, mesh=mesh, metrics=metrics, interrupt=Interrupt())


def compiled(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What XLA compiled since the log was cleared."""
    return [message for message in caplog.messages if message.startswith("Finished XLA compilation")]


def test_the_second_of_two_alike_compiles_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """As pi+ and pi- of (D), which train on the same pairs with their responses swapped."""
    encoded = random_encoded(0, pairs=8)
    programs._programs.cache_clear()
    with jax.log_compiles(), caplog.at_level(logging.WARNING):
        one = run(tmp_path / "plus", encoded)
        assert any("train_step" in message for message in compiled(caplog))
        caplog.clear()
        other = run(tmp_path / "minus", encoded, sides=(1, 0))
        assert not compiled(caplog)
        assert any((x != y).any() for x, y in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True))
        run(tmp_path / "faster", encoded, learning_rate=1.0)
        assert any("train_step" in message for message in compiled(caplog)), "another rate is another program"


def test_what_a_program_depends_on() -> None:
    params, mesh, section = random_params(0, MODEL.config), device_mesh(*MESH), OptimizerSection()
    made = programs.programs(PLAN, section, 7, params, mesh)
    assert programs.programs(PLAN, section, 7, random_params(1, MODEL.config), mesh) is made
    others = [
        (dataclasses.replace(PLAN, scorer=Text(MODEL, 8)), section, 7, params, mesh),
        (PLAN, OptimizerSection(b2=0.5), 7, params, mesh),
        (PLAN, section, 8, params, mesh),
        (PLAN, section, 7, {"final_norm": params["final_norm"]}, mesh),
        (PLAN, section, 7, params, device_mesh(4, 1, 2)),
    ]
    assert all(programs.programs(*other) is not made for other in others)


def test_a_directory_that_jax_was_given_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, Any] = {}
    monkeypatch.setattr(jax.config, "update", given.__setitem__)
    for before, field, expected in (("", str(tmp_path), str(tmp_path)), ("/mine", str(tmp_path), None), ("", "", None)):
        monkeypatch.setattr(programs, "_configured", lambda before=before: before)
        given.clear()
        programs.keep_on_disk(field)
        assert given.get("jax_compilation_cache_dir") == expected


PROGRAM = """
import sys
import jax
from tisdpo_jax.training.step import keep_on_disk

events = []
jax.monitoring.register_event_listener(lambda name, **_: events.append(name))
keep_on_disk(sys.argv[1])
jax.jit(lambda x: (x @ x).sum())(jax.numpy.ones((8, 8))).block_until_ready()
print(*(sum(name.endswith(kind) for name in events) for kind in ("cache_hits", "cache_misses")))
"""


@pytest.mark.slow
def test_another_process_finds_what_the_first_compiled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
    monkeypatch.delenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS")

    def start() -> tuple[int, int]:
        command = [sys.executable, "-c", PROGRAM, str(tmp_path / "xla")]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
        hits, misses = map(int, done.stdout.split())
        return hits, misses

    (hits, misses), again = start(), start()
    assert hits == 0 and misses > 0 and again == (misses, 0)
