"""Two real processes do what one does."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
from runs import arguments, command, exported, rows

ROOT = Path(__file__).resolve().parents[2]
OPTIONS = {
    "contrast__construction": "dpo",
    "lora__rank": 2,
    "train__epochs": 1,
    "data__limit": 20,
    "mesh__fsdp": 2,
    "evaluation__generate": 0,
    "evaluation__heat_maps": 0,
    "logging__progress": "false",
}


def launch(count: int, *extra: str, **options: object) -> subprocess.CompletedProcess[str]:
    line = [
        sys.executable,
        str(ROOT / "launch" / "localhost_processes.py"),
        "--processes",
        str(count),
        "--devices",
        "1",
    ]
    line += [*extra, "--", sys.executable, "-m", "tisdpo_jax.cli", *arguments("run", **options)]
    return subprocess.run(line, env=os.environ, capture_output=True, text=True, timeout=400, check=False)


def test_two_processes_equal_one(tiny, tmp_path):
    done = launch(2, **{**tiny, **OPTIONS, "run_dir": tmp_path / "two"})
    assert done.returncode == 0, done.stdout + done.stderr
    code, output = command("run", **{**tiny, **OPTIONS, "run_dir": tmp_path / "one", "mesh__fsdp": 1})
    assert code == 0, output
    mine, theirs = rows(tmp_path / "one"), rows(tmp_path / "two")
    assert [(row["stage"], row["step"], row["split"]) for row in mine] == [
        (row["stage"], row["step"], row["split"]) for row in theirs
    ]
    for first, second in zip(mine, theirs, strict=True):
        np.testing.assert_allclose(first["objective"], second["objective"], rtol=1e-4)
        np.testing.assert_allclose(first.get("grad_norm", 0), second.get("grad_norm", 0), rtol=1e-3)
    tensors, others = exported(tmp_path / "one"), exported(tmp_path / "two")
    for name, value in tensors.items():
        np.testing.assert_allclose(value, others[name], atol=2e-4)


def test_processes_that_disagree_do_not_start(tiny, tmp_path):
    """Each process gets its own seed through a shell."""
    shell = 'exec "$0" -m tisdpo_jax.cli "$@" --data.seed=$TISDPO_PROCESS_ID'
    line = [sys.executable, str(ROOT / "launch" / "localhost_processes.py"), "--processes", "2", "--devices", "1", "--"]
    line += ["sh", "-c", shell, sys.executable, *arguments("run", **{**tiny, **OPTIONS, "run_dir": tmp_path})]
    done = subprocess.run(line, env=os.environ, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 2, done.stdout + done.stderr
    assert "started with another configuration" in done.stdout + done.stderr
