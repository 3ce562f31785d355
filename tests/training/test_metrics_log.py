"""One W&B run and one TensorBoard writer a run, closed however it ends, gone on with when it resumes."""

from __future__ import annotations

import dataclasses
import json
import sys
import types
from pathlib import Path
from typing import Any

import pytest

from tisdpo_jax.artifacts import read_jsonl
from tisdpo_jax.config import LoggingSection
from tisdpo_jax.errors import UserError
from tisdpo_jax.training.interrupt import Interrupted
from tisdpo_jax.training.metrics import MetricsLog

SECTION = LoggingSection(wandb="project", tensorboard=True, progress=False)


@dataclasses.dataclass
class Run:
    """What a W&B run is told, and what a TensorBoard writer is."""

    options: dict[str, Any]
    lines: list[Any] = dataclasses.field(default_factory=list)
    ends: list[dict[str, Any]] = dataclasses.field(default_factory=list)

    def log(self, values: dict[str, Any]) -> None:
        self.lines.append(values)

    def add_scalar(self, *values: Any) -> None:
        self.lines.append(values)

    def finish(self, **options: Any) -> None:
        self.ends.append(options)

    close = finish


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[Run]]:
    runs: dict[str, list[Run]] = {"wandb": [], "tensorboardX": []}

    def opener(name: str) -> Any:
        def start(*arguments: Any, **options: Any) -> Run:
            runs[name].append(Run(options))
            return runs[name][-1]

        return start

    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=opener("wandb")))
    monkeypatch.setitem(sys.modules, "tensorboardX", types.SimpleNamespace(SummaryWriter=opener("tensorboardX")))
    return runs


def test_a_run_of_many_parts_is_one_run(tmp_path: Path, opened: dict[str, list[Run]]) -> None:
    with MetricsLog(tmp_path, SECTION, config={"seed": 3}) as log:
        assert not opened["wandb"] and not opened["tensorboardX"]  # nothing is trained yet
        for number in (1, 2):
            (tmp_path / f"round-{number}").mkdir()
            with log.within(tmp_path / f"round-{number}", f"round-{number}") as part:
                part.begin("policy", done=0, total=1)
                part.write("policy", 1, "train", {"loss": 0.5})
        log.begin("policy", done=0, total=1)
        log.write("policy", 1, "train", {"loss": 0.25})
        ((run,), (writer,)) = opened.values()
        assert not run.ends and not writer.ends
    assert run.ends == [{}] and writer.ends == [{}]
    log.close()
    assert len(run.ends) == len(writer.ends) == 1
    assert run.options["project"] == "project" and run.options["config"] == {"seed": 3}
    assert [next(iter(line)) for line in run.lines] == [
        "round-1/policy/train/loss",
        "round-2/policy/train/loss",
        "policy/train/loss",
    ]
    assert writer.lines[0] == ("round-1/policy/train/loss", 0.5, 1)
    assert json.loads((tmp_path / "round-1" / "metrics.jsonl").read_text())["stage"] == "policy"


def test_a_resumed_stage_drops_what_is_done_again_and_a_line_that_was_torn(tmp_path: Path) -> None:
    section = LoggingSection(progress=False)
    with MetricsLog(tmp_path, section) as log:
        for stage, step in (("plus", 2), ("policy", 1), ("policy", 2)):
            log.write(stage, step, "train", {"loss": float("nan")})
        with (tmp_path / "metrics.jsonl").open("a") as file:
            file.write('{"stage": "pol')
        log.begin("policy", done=1, total=3)
        log.write("policy", 2, "train", {"loss": 0.5})
    rows = [row for _, row in read_jsonl(tmp_path / "metrics.jsonl")]
    assert [(row["stage"], row["step"], row["loss"]) for row in rows] == [
        *(("plus", 2, None), ("policy", 1, None), ("policy", 2, 0.5))
    ]


@pytest.mark.parametrize(("error", "end"), [(Interrupted("stop"), {}), (UserError("no"), {"exit_code": 1})])
@pytest.mark.parametrize("how", ["context", "finally"])
def test_it_is_closed_however_the_run_ends(
    tmp_path: Path, opened: dict[str, list[Run]], error: Exception, end: dict[str, Any], how: str
) -> None:
    log = MetricsLog(tmp_path, SECTION)

    def fail() -> None:
        log.begin("policy", done=0, total=1)
        raise error

    with pytest.raises(type(error)):
        if how == "context":
            with log:
                fail()
        else:
            try:
                fail()
            finally:
                log.close()
    assert opened["wandb"][0].ends == [end] and opened["tensorboardX"][0].ends == [{}]


def test_a_resumed_run_goes_on_with_its_id(tmp_path: Path, opened: dict[str, list[Run]]) -> None:
    for project, moved in (("project", "a"), ("project", "b"), ("other", "b")):
        folder = tmp_path / moved
        if moved == "b" and not folder.exists():
            (tmp_path / "a").rename(folder)
        folder.mkdir(exist_ok=True)
        with MetricsLog(folder, dataclasses.replace(SECTION, wandb=project)) as log:
            log.begin("policy", done=0, total=1)
    first, again, other = (run.options for run in opened["wandb"])
    assert first["id"] == again["id"] != other["id"] and first["resume"] == again["resume"] == "allow"
    assert (again["name"], again["dir"]) == ("b", str(tmp_path / "b"))


def test_what_wandb_refuses_is_one_line_and_what_it_breaks_at_the_end_hides_nothing(
    tmp_path: Path, opened: dict[str, list[Run]], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with MetricsLog(tmp_path, SECTION) as log:
        log.begin("policy", done=0, total=1)
        monkeypatch.setattr(Run, "finish", lambda self, **_: 1 / 0)
    assert "logging.wandb: not closed" in caplog.text and opened["tensorboardX"][0].ends

    def refuse(**options: Any) -> None:
        raise RuntimeError("api_key not configured\nmore")

    monkeypatch.setattr(sys.modules["wandb"], "init", refuse)
    with pytest.raises(
        UserError, match=r"logging.wandb project: W&B opens no run: api_key not configured; `wandb login`"
    ):
        MetricsLog(tmp_path, SECTION).begin("policy", done=0, total=1)
