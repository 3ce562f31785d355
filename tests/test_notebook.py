"""The notebook: its cells parse, what they name is there, and, slowly, they run from top to bottom."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tisdpo_jax.testing import write_tiny_model

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOK = json.loads((ROOT / "notebooks" / "colab_tpu.ipynb").read_text(encoding="utf-8"))
CELLS = NOTEBOOK["cells"]
SOURCES = {cell["id"]: "".join(cell["source"]) for cell in CELLS if cell["cell_type"] == "code"}

# IPython is no dependency: a stand-in takes what a notebook would show.
DISPLAY = """
import sys, types
shown = types.ModuleType("IPython.display")
shown.display = lambda value: print("DISPLAYED", len(value._repr_html_()))
sys.modules["IPython"] = types.ModuleType("IPython")
sys.modules["IPython.display"] = shown
"""


def execute(directory: Path, *sources: str) -> subprocess.CompletedProcess[str]:
    """Cells one after another in one fresh Python, as a kernel does it, in a directory."""
    script = directory / "cells.py"
    script.write_text("\n\n".join(sources), encoding="utf-8")
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    line = [sys.executable, str(script)]
    return subprocess.run(line, cwd=directory, env=env, capture_output=True, text=True, timeout=900, check=False)


def test_cells_are_plain_python_and_keep_no_output() -> None:
    assert (NOTEBOOK["nbformat"], NOTEBOOK["nbformat_minor"]) == (4, 5)
    assert len({cell["id"] for cell in CELLS}) == len(CELLS)
    for cell in CELLS:
        if cell["cell_type"] == "code":
            ast.parse("".join(cell["source"]))  # no lines for a shell: what fails in those, fails unseen
            assert cell["outputs"] == [] and cell["execution_count"] is None
    assert 'CONFIG = "configs/quickstart.yaml"' in SOURCES["recipe"]
    assert list(SOURCES) == ["clone", "install", "recipe", "answers", "weights", "report", "losses"]


def test_the_text_names_the_construction_that_the_configuration_has() -> None:
    text = "".join("".join(cell["source"]) for cell in CELLS)
    assert "construction: sft" in (ROOT / "configs" / "quickstart.yaml").read_text(encoding="utf-8")
    assert "SFT on chosen and SFT on rejected" in text and "forward and reverse" not in text


def test_the_first_cells_find_the_clone_that_they_are_in(tmp_path: Path) -> None:
    folder = tmp_path / "clone" / "notebooks"
    folder.mkdir(parents=True)
    (tmp_path / "clone" / "configs").mkdir()
    (tmp_path / "clone" / "configs" / "quickstart.yaml").write_text("", encoding="utf-8")
    fake = "from importlib import metadata\nmetadata.version = lambda name: '1.0'"
    done = execute(folder, fake, SOURCES["clone"], SOURCES["install"])
    assert done.returncode == 0, done.stderr
    assert f"working in {tmp_path / 'clone'}" in done.stdout and "tisdpo_jax 1.0" in done.stdout


def test_outside_a_clone_the_first_cell_says_what_to_set(tmp_path: Path) -> None:
    done = execute(tmp_path, SOURCES["clone"])
    assert done.returncode == 1 and "set REPOSITORY to its address" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.slow
def test_the_notebook_runs_from_top_to_bottom(tmp_path: Path) -> None:
    """All cells with a tiny model, in a clone that is this one."""
    small = {
        "model.path": write_tiny_model(tmp_path / "model", max_positions=128),
        "model.dtype": "float32",
        "data.limit": 16,
        "data.eval_limit": 8,
        "evaluation.max_new_tokens": 4,
        "run_dir": tmp_path / "run",
    }
    overrides = f"OVERRIDES = {[f'--{name}={value}' for name, value in small.items()]}"
    changed = SOURCES | {"recipe": SOURCES["recipe"].replace("OVERRIDES = []", overrides)}
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    done = execute(tmp_path, DISPLAY, *changed.values())
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert done.stdout.count("DISPLAYED") == 3 and "after TIS-DPO" in done.stdout
    assert "stage policy" in done.stdout, "the program's own progress is shown"
    assert "reward accuracy" in done.stdout.splitlines()[-1]
