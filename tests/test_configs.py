"""Every file of configs/ says what it is for, and builds."""

from __future__ import annotations

import dataclasses
import re
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tisdpo_jax.config import RECIPES, Experiment, TisDpoRecipe, build, validate

ROOT = Path(__file__).resolve().parent.parent
CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))
MODELS = ("llama2_7b", "llama31_8b")


def unknown_fields(values: Any, section: type, path: str = "") -> Iterator[str]:
    """Dotted names in `values` that are no field of the dataclass `section`, at any depth."""
    if not isinstance(values, dict):
        yield f"{path} is not a mapping"
        return
    hints, fields = typing.get_type_hints(section), {field.name: field for field in dataclasses.fields(section)}
    for name, value in values.items():
        if name not in fields:
            yield f"{path}{name}"
        elif variants := fields[name].metadata.get("variants"):
            kind = variants[value.get("name", value.get("method"))]
            yield from unknown_fields(value, kind, f"{path}{name}.")
        elif dataclasses.is_dataclass(hints[name]):
            yield from unknown_fields(value, hints[name], f"{path}{name}.")
        elif isinstance(value, dict):
            yield f"{path}{name} is no section"


def load(path: Path) -> dict[str, Any]:
    values = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert isinstance(values, dict)
    return values


def test_the_promised_configs_are_there() -> None:
    promised = {f"{model}_hh_{kind}" for model in MODELS for kind in ("prompts", "sft", "dpo", "dpo_lora")}
    assert promised | {"quickstart", "hh_stories260k"} <= {path.stem for path in CONFIGS}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_names_only_fields_that_exist(path: Path) -> None:
    values = load(path)
    assert next(iter(values)) == "recipe"
    assert list(unknown_fields(values, RECIPES[values["recipe"]])) == []


# What a file leaves to the command line, as its head comment says.
OVERRIDES = {
    "hh_stories260k": {"model": {"path": "stories260k"}, "data": {"train": "pairs.jsonl.gz"}},
    "dlma_llama2_7b": {"model": {"path": "Llama-2-7b-hf"}, "sampling": {"prompts": "prompts.jsonl"}},
}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_builds_and_is_valid(path: Path) -> None:
    config = build(Experiment, load(path), where=path.name)
    config = build(Experiment, OVERRIDES.get(path.stem, {}), where="command line", base=config)
    assert validate(config).run_dir == f"runs/{path.stem}"


def test_an_unknown_field_is_found() -> None:
    values = {"sed": 1, "train": {"optimizer": {"lr": 1}, "batch_size": {"a": 1}}, "lora": 3, "seed": 0}
    assert list(unknown_fields(values, TisDpoRecipe)) == [
        "sed",
        "train.optimizer.lr",
        "train.batch_size is no section",
        "lora. is not a mapping",
    ]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_head_comment_tells_purpose_command_hardware_and_expectation(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    head = re.split(r"^[^#\n]", text, maxsplit=1, flags=re.MULTILINE)[0]
    for word in ("Purpose", "Command", "Hardware", "Expected"):
        assert re.search(rf"^# {word}: +\S", head, flags=re.MULTILINE), f"{path.name} says no {word}"
    assert f"tisdpo run configs/{path.name}" in head


@pytest.mark.parametrize("model", MODELS)
def test_full_fine_tuning_differs_in_the_contrast_alone(model: str) -> None:
    prompts, sft, dpo = (load(ROOT / "configs" / f"{model}_hh_{kind}.yaml") for kind in ("prompts", "sft", "dpo"))
    assert [values["contrast"]["construction"] for values in (prompts, sft, dpo)] == ["prompts", "sft", "dpo"]
    for values in (prompts, sft, dpo):
        del values["contrast"], values["run_dir"]
    assert prompts == sft == dpo
