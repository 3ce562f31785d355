"""Options for XLA: read, handed on, and refused by name where they are none."""

from __future__ import annotations

import pytest
from runs import command

from tisdpo_jax.errors import ConfigError
from tisdpo_jax.stages.training import compiler_options


def test_names_and_plain_values() -> None:
    found = compiler_options("xla_one=1000000, xla_two=true,xla_three=text")
    assert found == (("xla_one", 1000000), ("xla_two", True), ("xla_three", "text"))
    assert compiler_options("") == ()
    for wrong in ("xla_one", "=1", "xla_one=", "a=1,,b"):
        with pytest.raises(ConfigError, match=r"mesh\.compiler_options: .* is not name=value"):
            compiler_options(wrong)


def test_they_reach_the_compiler(tiny, tmp_path) -> None:
    options = {**tiny, "run_dir": tmp_path, "loss__name": "sft", "contrast__construction": "none", "data__limit": 10}
    options |= {"mesh__fsdp": 1, "data__eval_fraction": 0}
    code, output = command("train", **{**options, "mesh__compiler_options": "xla_no_such_option=1"})
    assert code == 2 and "mesh.compiler_options" in output and "xla_no_such_option" in output
    assert command("train", **{**options, "mesh__compiler_options": "xla_cpu_enable_fast_math=false"})[0] == 0
