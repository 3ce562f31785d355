"""What the benchmarks do besides measuring: tables, choosing cases, searching for the largest, naming a failure."""

from __future__ import annotations

import importlib
import json
import os
import runpy
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

BENCHMARKS = Path(__file__).resolve().parent.parent.parent / "benchmarks"


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Imports a script of benchmarks/ the way Python runs one: with its folder first on the path."""
    monkeypatch.syspath_prepend(BENCHMARKS)

    def of(name: str) -> ModuleType:
        return importlib.import_module(name)

    return of


def test_a_table_lines_up_and_leaves_what_is_not_known_empty(load: Any) -> None:
    text = load("reporting").table(["model", "s"], [["tiny", 1.23456], ["large", None], ["x", 12_345.6]])
    assert text.splitlines() == [
        "| model |      s |",
        "| ----- | -----: |",
        "| tiny  |   1.23 |",
        "| large |        |",
        "| x     | 12,346 |",
    ]


def test_a_row_of_another_length_is_refused(load: Any) -> None:
    with pytest.raises(ValueError, match="cells"):
        load("reporting").table(["a", "b"], [[1]])


def test_of_a_failed_process_the_error_is_named(load: Any) -> None:
    failure = load("reporting").failure
    assert failure("Traceback\n  File x\nsome.Error: why\n----\nhint: y\n", 1) == "some.Error: why"
    assert failure("noise\nerror: no such case", 2) == "error: no such case"
    assert failure("only this", 1) == "only this"
    assert failure("", -9) == "exit -9"


def test_cases_are_chosen_by_how_they_begin(load: Any) -> None:
    cases = load("cases")
    names = list(cases.CASES)
    assert cases.chosen(names, "") == names
    assert cases.chosen(names, "dpo live, tisdpo no") == ["dpo live", "tisdpo no KL"]
    with pytest.raises(ValueError, match="dpo live"):
        cases.chosen(names, "ppo")


@pytest.mark.parametrize("most", [0, 1, 2, 5, 16, 17, 63, 100, 512])
@pytest.mark.parametrize("start", [1, 4, 16])
def test_the_largest_batch_is_found_to_within_a_sixteenth(load: Any, most: int, start: int) -> None:
    asked = []

    def fits(pairs: int) -> bool:
        asked.append(pairs)
        return pairs <= most

    found = load("gpu").largest(fits, start, 256)
    reach = min(most, 256)
    assert found == 0 if start > most else found <= reach < found + max(found // 16, 1) + 1
    assert max(asked) <= 256 and len(asked) < 20


@pytest.mark.parametrize("fixed", [0.0, 3.0, 15.9])
@pytest.mark.parametrize("bend", [0.0, 0.02, -0.002])
@pytest.mark.parametrize("slope", [0.01, 0.16, 1.0, 3.0, 20.0])
def test_the_frontier_is_where_the_next_size_does_not_fit(load: Any, fixed: float, bend: float, slope: float) -> None:
    """Whether memory grows with the size in a line, faster or slower; in few compilations."""
    aot = load("aot")
    asked = []

    def peak(size: int) -> float | None:
        asked.append(size)
        found = fixed + slope * size + bend * slope * size**2
        return found if found <= 16 else None

    fitting = [size for size in aot.SIZES if size <= 64 and peak(size) is not None]
    asked.clear()
    best, at, beyond = aot.furthest(peak, 64, 16.0)
    assert best == max(fitting, default=0)
    assert at == (peak(best) if fitting else None)
    assert beyond == min((size for size in aot.SIZES if best < size <= 64), default=None)
    assert len(set(asked)) <= 7


def test_a_size_that_was_not_compiled_leaves_its_half_of_the_frontier_empty(load: Any) -> None:
    aot = load("aot")

    def run(model: str, topology: str, name: str, pairs: int, lengths: str, more: dict[str, str]) -> dict[str, Any]:
        about = {"model": model, "topology": topology, "step": name, "pairs": pairs}
        if int(more["data.max_length"]) > 2048:
            return about | {"error": "more than 1800 s"}
        size = pairs // 64 * 2**30
        nothing = dict.fromkeys(
            ("peak", "hbm", "waste", "waste_beside_remat", "seconds", "interconnect_seconds", "mfu")
        )
        return (
            about | nothing | {"rows": [], "compile_seconds": 1.0, "cpu_seconds": 1.0, "fits": True, "reserved": size}
        )

    found = aot.edge(run, "llama2_7b", "v5e:8x8", "dpo live")
    assert found["longest rows"] is found["GiB of those"] is found["next does not fit"] is None
    assert (found["most pairs a chip"], found["GiB of them"], found["next do not fit"]) == (128, 128.0, None)
    assert found["note"].endswith("more than 1800 s")


def test_every_case_is_a_configuration(load: Any) -> None:
    aot, cases = load("aot"), load("cases")
    for name, fields in cases.CASES.items():
        config = aot.validate(aot.load(None, aot.BASE | fields | {"model.path": "llama2_7b"}))
        assert config.loss.name in name


@pytest.mark.parametrize(
    ("script", "arguments", "message"),
    [
        ("cpu.py", ["--rounds", "0"], "--pairs and --rounds"),
        ("cpu.py", ["--what", "1"], "--section.field"),
        ("cpu.py", ["--cases", "ppo", "--no-trl"], "cases are"),
        ("gpu.py", ["--models", "gpt5"], "smollm2_135m"),
        ("aot.py", ["--model.path"], "--section.field"),
        ("aot.py", ["--cases", "ppo"], "cases are"),
        ("loop_memory.py", ["--stacks", "large"], "--stacks"),
        ("loop_memory.py", ["--topology", "v9:1"], "unknown chip"),
        ("loop_memory.py", ["--topology", "cpu:2"], "compiler for TPUs"),
        ("aot.py", ["--no-table", "--frontier", "--topologies", "cpu:8"], "the memory of cpu:8 is not known"),
    ],
)
def test_a_wrong_argument_gives_one_line_and_no_traceback(
    load: Any,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    script: str,
    arguments: list[str],
    message: str,
) -> None:
    """The whole script, as Python runs it; what it imports is there already."""
    monkeypatch.setattr(sys, "argv", [script, *arguments])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(BENCHMARKS / script), run_name="__main__")
    said = f"{capsys.readouterr().err}{end.value.code}"
    assert end.value.code and message in said and "Traceback" not in said


@pytest.mark.slow
def test_the_gpu_script_runs_on_what_there_is(tmp_path: Path) -> None:
    file = tmp_path / "gpu.json"
    command = [
        sys.executable,
        str(BENCHMARKS / "gpu.py"),
        "--models",
        "tiny",
        "--cases",
        "tisdpo states",
        "--pairs",
        "2",
    ]
    command += ["--steps", "1", "--largest", "0", "--json", str(file)]
    env = {**os.environ, "PYTHONPATH": str(BENCHMARKS.parent), "JAX_PLATFORMS": "cpu"}
    subprocess.run(command, check=True, capture_output=True, text=True, cwd=BENCHMARKS.parent, env=env)
    (result,) = json.loads(file.read_text())["results"]
    assert result["pairs_per_second"] > 0 and "error" not in result
