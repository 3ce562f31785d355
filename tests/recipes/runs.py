"""Runs of the command on a tiny model, in this process or as programs of their own."""

from __future__ import annotations

import contextlib
import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import numpy as np

from tisdpo_jax import partitioning
from tisdpo_jax.config import RECIPES, Experiment, build, idle, leaves, nest
from tisdpo_jax.config.recipes import PLAIN
from tisdpo_jax.errors import ConfigError

ROOT = Path(__file__).resolve().parents[2]
BASE = {
    "model.dtype": "float32",
    "model.frozen_dtype": "float32",
    "data.max_length": 48,
    "data.max_response": 24,
    "data.eval_fraction": 0.2,
    "mesh.data": 1,
    "contrast.training.batch_size": 8,
    "contrast.training.optimizer.learning_rate": 3e-3,
    "train.batch_size": 8,
    "train.optimizer.name": "adamw",
    "train.optimizer.learning_rate": 1e-3,
    "train.optimizer.warmup_steps": 1,
    "evaluation.batch_size": 8,
    "evaluation.generate": 1,
    "evaluation.max_new_tokens": 4,
    "evaluation.heat_maps": 1,
}


def arguments(verb: str, **options: object) -> list[str]:
    """Command line for a verb; option names have `__` for the dot. Of BASE, what does something beside them.

    Without the option `recipe` it is the one that the verb, or the loss of the options, is of.
    """
    given = {name.replace("__", "."): value for name, value in options.items()}
    loss = given.get("loss.name", "tisdpo")
    given = {"recipe": "dpo" if loss in PLAIN else "tisdpo"} | given | ({"recipe": verb} if verb == "generate" else {})
    there = {name for name, *_ in leaves(RECIPES[str(given["recipe"])]())}
    asked = {name: value for name, value in (BASE | given).items() if name in there or name in given}
    if verb == "generate":  # takes what it can use
        given, asked = {}, {name: value for name, value in asked.items() if name in there}
    texts, idle_here = {name: str(value) for name, value in asked.items()}, dict[str, str]()
    with contextlib.suppress(ConfigError):  # a mistake that the test is about
        idle_here = idle(build(Experiment, nest(texts, where="test"), where="test"))
    merged = {name: value for name, value in asked.items() if name in given or name not in idle_here}
    return [verb, *(f"--{name}={value}" for name, value in merged.items())]


def command(verb: str, **options: object) -> tuple[int, str]:
    """(exit code, what went to stdout and stderr) of a run in this process."""
    from tisdpo_jax.cli import main

    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out), fewer_devices():
        code = main(arguments(verb, **options))
    return code, out.getvalue()


@contextlib.contextmanager
def fewer_devices() -> Iterator[None]:
    """A mesh takes as many of the eight devices as it asks for: programs for one compile in a fraction of the time."""
    make = partitioning.make_mesh

    def of_the_first(data: int = 1, fsdp: int = -1, tensor: int = 1, **options: Any) -> Any:
        if fsdp != -1:
            options.setdefault("devices", jax.devices()[: data * fsdp * tensor])
        return make(data, fsdp, tensor, **options)

    with mock.patch.object(partitioning, "make_mesh", of_the_first):
        yield


def program(verb: str, *, cwd: Path | None = None, **options: object) -> subprocess.Popen[str]:
    """The same as a process of its own, with one CPU device, started in `cwd` as a user would."""
    env = {**os.environ, "XLA_FLAGS": os.environ["XLA_FLAGS"].replace("device_count=8", "device_count=1")}
    line = [sys.executable, "-m", "tisdpo_jax.cli", *arguments(verb, **options)]
    env["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), env.get("PYTHONPATH")]))
    return subprocess.Popen(line, cwd=cwd, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def rows(run_dir: Path, *, timeless: bool = True) -> list[dict[str, object]]:
    """Lines of metrics.jsonl; without what depends on the clock."""
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        if timeless:
            line.pop("tokens_per_second", None)
    return lines


def exported(run_dir: Path) -> dict[str, np.ndarray]:
    """Tensors of the exported model."""
    from safetensors.numpy import load_file

    return load_file(run_dir / "export" / "model.safetensors")
