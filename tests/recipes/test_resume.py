"""Stopping and going on: the result is that of a run that was never stopped, bit for bit."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from runs import command, exported, program, rows

from tisdpo_jax.artifacts import lease

OPTIONS = {
    "contrast__construction": "sft",
    "data__eval_fraction": 0,
    "train__epochs": 4,
    "train__checkpoint_every": 3,
    "train__keep_checkpoints": 2,
    "mesh__fsdp": 1,
    "logging__progress": "false",
}


RUN_DIR = "runs/mine"  # relative, as in every configuration that is shipped


@pytest.fixture(scope="module")
def uninterrupted(tiny, tmp_path_factory):
    place = tmp_path_factory.mktemp("uninterrupted")
    process = program("train", cwd=place, **{**tiny, **OPTIONS, "run_dir": RUN_DIR})
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    return place / RUN_DIR


def assert_equal_runs(tiny, *run_dirs):
    for run_dir in run_dirs:
        code, output = command("export", **{**tiny, **OPTIONS, "run_dir": run_dir})
        assert code == 0, output
    mine, theirs = map(exported, run_dirs)
    assert rows(run_dirs[0]) == rows(run_dirs[1])
    for name in mine:
        np.testing.assert_array_equal(mine[name].view(np.uint32), theirs[name].view(np.uint32))


def wait_for_step(run_dir, stage, step, process):
    until = time.monotonic() + 240
    while time.monotonic() < until and process.poll() is None:
        if (run_dir / "metrics.jsonl").exists():
            lines = (run_dir / "metrics.jsonl").read_text().splitlines()
            if any(f'"stage": "{stage}", "step": {step},' in line for line in lines):
                return
        time.sleep(0.02)
    raise AssertionError(process.communicate()[0])


@pytest.mark.parametrize(
    ("how", "stage", "step"),
    [(signal.SIGKILL, "policy", 8), pytest.param(signal.SIGTERM, "minus", 2, marks=pytest.mark.slow)],
)
def test_resume_equals_uninterrupted(uninterrupted, tiny, tmp_path, how, stage, step):
    options, run_dir = {**tiny, **OPTIONS, "run_dir": RUN_DIR}, tmp_path / RUN_DIR
    process = program("train", cwd=tmp_path, **options)
    wait_for_step(run_dir, stage, step, process)
    process.send_signal(how)
    output, _ = process.communicate(timeout=120)
    if process.returncode == 0:
        pytest.fail("the run ended before it was stopped; give it more steps")
    assert process.returncode == (42 if how == signal.SIGTERM else -signal.SIGKILL), output
    if how == signal.SIGTERM:
        assert "saved" in output
    moved = tmp_path / "another day"  # the working directory is another one the next time, the relative path the same
    moved.mkdir()
    (tmp_path / "runs").rename(moved / "runs")
    again = program("train", cwd=moved, **options)
    output, _ = again.communicate(timeout=300)
    assert again.returncode == 0, output
    assert "resumed at step" in output
    assert_equal_runs(tiny, uninterrupted, moved / RUN_DIR)


def test_a_damaged_checkpoint_is_set_aside_and_the_one_before_is_used(uninterrupted, tiny, tmp_path):
    """A flipped byte in the newest, and a foreign directory that looks newer still."""
    run_dir = tmp_path / RUN_DIR
    shutil.copytree(uninterrupted, run_dir)
    shutil.rmtree(run_dir / "models" / "policy")
    steps = sorted(int(path.name) for path in (run_dir / "checkpoints" / "policy").iterdir())
    newest = run_dir / "checkpoints" / "policy" / str(steps[-1])
    biggest = max((path for path in newest.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
    content = bytearray(biggest.read_bytes())
    content[len(content) // 2] ^= 0x10
    biggest.write_bytes(bytes(content))
    (run_dir / "checkpoints" / "policy" / str(steps[-1] + 5)).mkdir()
    process = program("train", cwd=tmp_path, **{**tiny, **OPTIONS, "run_dir": RUN_DIR})
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    assert output.count("set aside") == 2 and f"resumed at step {steps[0]}" in output
    assert_equal_runs(tiny, uninterrupted, run_dir)


def test_no_trustworthy_checkpoint_is_an_error(tiny, tmp_path):
    options = {**tiny, "run_dir": tmp_path, "recipe": "sft", "mesh__fsdp": 1}
    (tmp_path / "checkpoints" / "policy" / "3").mkdir(parents=True)
    for _ in range(2):
        code, output = command("train", **options)
        assert code == 2 and "there are checkpoints (3), but none that can be restored" in output
        assert (tmp_path / "checkpoints" / "policy" / "3").is_dir()


HOLD = """
import pathlib, sys
from tisdpo_jax.artifacts import lease
with lease(pathlib.Path(sys.argv[1])):
    print("held", flush=True)
    input()
"""


def test_two_runs_on_one_directory(tiny, tmp_path):
    held = [sys.executable, "-c", HOLD, str(tmp_path)]
    with subprocess.Popen(held, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        other.stdout.readline()
        code, output = command("run", **{**tiny, **OPTIONS, "run_dir": tmp_path})
        assert code == 2 and f"is in use by process {other.pid}" in output
        other.kill()
    assert (tmp_path / ".lock").exists()  # left behind, and no obstacle
    with lease(tmp_path):
        assert json.loads((tmp_path / ".lock").read_text())["pid"] == os.getpid()
