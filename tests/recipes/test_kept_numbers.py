"""Runs give the numbers that they gave before the house was rebuilt; on one machine, compiled alike, to the last bit.

`kept_numbers.json` was written by the version before, and is not to be written again without a reason.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from runs import command, rows

KEPT = json.loads((Path(__file__).parent / "kept_numbers.json").read_text(encoding="utf-8"))
RUNS = {
    "dpo": {"loss__name": "dpo"},
    "prompts-lora": {"contrast__construction": "prompts", "lora__rank": 2},
    "D": {"contrast__construction": "dpo"},
    "S-lora-states": {"contrast__construction": "sft", "lora__rank": 2, "reference_states": "cached"},
    "online": {
        "contrast__construction": "prompts",
        "scores": "online",
        "train__gradient_accumulation_steps": 2,
    },
    "tdpo": {"loss__name": "tdpo", "sft__epochs": 0.5, "sft__batch_size": 8},
    "dlma": {"loss__name": "dlma", "contrast__construction": "prompts"},
    "sft": {"recipe": "sft"},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", KEPT)
def test_a_run_gives_the_numbers_it_gave(tiny: dict[str, object], tmp_path: Path, name: str) -> None:
    code, output = command("train", **{**tiny, **RUNS[name], "mesh__fsdp": 1, "run_dir": tmp_path})
    assert code == 0, output
    found = rows(tmp_path)
    assert len(found) == len(KEPT[name])
    for row, kept in zip(found, KEPT[name], strict=True):
        for key, value in kept.items():
            if isinstance(value, str):
                assert row[key] == value
            else:
                assert row[key] == pytest.approx(value, rel=2e-4, abs=2e-5), (key, row["stage"], row["step"])
