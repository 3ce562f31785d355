"""Options for XLA: handed on, and refused by name where they are none."""

from __future__ import annotations

from runs import command


def test_they_reach_the_compiler(tiny, tmp_path) -> None:
    options = {**tiny, "run_dir": tmp_path, "recipe": "sft", "data__limit": 10}
    options |= {"mesh__fsdp": 1, "data__eval_fraction": 0}
    code, output = command("train", **{**options, "mesh__compiler_options": "{xla_no_such_option: 1}"})
    assert code == 2 and "mesh.compiler_options" in output and "xla_no_such_option" in output
    assert command("train", **{**options, "mesh__compiler_options": "{xla_cpu_enable_fast_math: false}"})[0] == 0
