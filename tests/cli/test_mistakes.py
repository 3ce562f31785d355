"""A newcomer's mistakes: one clear line, exit code 2, no traceback."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tisdpo_jax.cli import main
from tisdpo_jax.testing import write_pairs, write_tiny_model


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mistakes")
    model = write_tiny_model(folder / "model")
    return folder, model, write_pairs(folder / "pairs.jsonl", 12)


def told(capsys, *arguments: object) -> str:
    """The one line that a mistake is told in."""
    assert main([str(argument) for argument in arguments]) == 2
    error = capsys.readouterr().err
    lines = [line for line in error.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and "Traceback" not in error
    return lines[0]


def run(tiny, run_dir: Path, **options: object) -> list[object]:
    _, model, pairs = tiny
    given = {
        "model.path": model,
        "data.train": pairs,
        "run_dir": run_dir,
        "contrast.construction": "prompts",
        **options,
    }
    given = {"train.batch_size": 8, "data.max_length": 48, "data.max_response": 24, **given}
    return ["run", *(f"--{name}={value}" for name, value in given.items())]


def test_missing_configuration_file(capsys, tmp_path):
    (tmp_path / "quickstart.yaml").write_text("")
    line = told(capsys, "run", tmp_path / "quickstat.yaml")
    assert "no such configuration file" in line and "quickstart.yaml" in line


def test_misspelt_field_in_the_file(capsys, tmp_path):
    file = tmp_path / "x.yaml"
    file.write_text("train:\n  batchsize: 4\n")
    line = told(capsys, "run", file)
    assert str(file) in line and "train.batchsize" in line and "did you mean train.batch_size?" in line


def test_misspelt_override_and_bad_values(capsys):
    assert "did you mean loss.beta?" in told(capsys, "run", "--loss.bata", "0.1")
    assert "did you mean train.optimizer.learning_rate?" in told(capsys, "run", "--train.learning_rate", "0.1")
    assert (
        "loss.name is 'tisdop'" in (line := told(capsys, "run", "--loss.name", "tisdop"))
        and "did you mean tisdpo?" in line
    )
    assert "train.batch_size is 'many'; it must be a whole number" in told(capsys, "run", "--train.batch_size", "many")
    assert "needs a value" in told(capsys, "run", "--loss.beta")
    assert "did you mean run?" in told(capsys, "rum")


def test_yaml_that_is_none(capsys, tmp_path):
    file = tmp_path / "x.yaml"
    file.write_text("train: [1\nloss: }")
    assert f"{file}:" in (line := told(capsys, "run", file)) and "not valid YAML" in line
    file.write_text("- a\n- b\n")
    assert "not sections and fields" in told(capsys, "run", file)


def test_gradient_accumulation_steps_that_leave_devices_idle_and_a_mesh_that_is_too_large(capsys, tiny, tmp_path):
    fields = {"train.batch_size": 12, "train.gradient_accumulation_steps": 4, "mesh.fsdp": 8}
    line = told(capsys, *run(tiny, tmp_path, **fields))
    assert "train.batch_size 12 in 4 micro-batches leaves 3 pairs for mesh data*fsdp = 8" in line
    assert "set train.gradient_accumulation_steps to 1" in line
    line = told(capsys, *run(tiny, tmp_path, **{"mesh.fsdp": 3}))
    assert "needs 3 devices, but there are 8" in line


def test_model_directories_that_cannot_be_read(capsys, tiny, tmp_path):
    _, model, _ = tiny
    empty = tmp_path / "empty"
    empty.mkdir()
    (empty / "config.json").write_text((model / "config.json").read_text())
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (empty / name).write_text((model / name).read_text())
    assert str(empty) in told(capsys, *run(tiny, tmp_path / "r", **{"model.path": empty}))
    (empty / "pytorch_model.bin").write_bytes(b"x")
    line = told(capsys, *run(tiny, tmp_path / "r", **{"model.path": empty}))
    assert "only safetensors and GGUF are read" in line and str(empty) in line
    line = told(capsys, *run(tiny, tmp_path / "r", **{"model.path": empty / "pytorch_model.bin"}))
    assert "safetensors" in line
    assert "no such file or directory" in told(capsys, *run(tiny, tmp_path / "r", **{"model.path": tmp_path / "gone"}))


def test_tokenizer_without_chat_template(capsys, tiny, tmp_path):
    folder = write_tiny_model(tmp_path / "bare", chat_template=False)
    line = told(capsys, *run(tiny, tmp_path / "r", **{"model.path": folder}))
    assert "chat template" in line and "data.template" in line


def test_data_files(capsys, tiny, tmp_path):
    empty = tmp_path / "empty.jsonl"
    empty.write_text("")
    assert str(empty) in told(capsys, *run(tiny, tmp_path / "r", **{"data.train": empty}))
    assert "pairs.jsonl" in told(capsys, *run(tiny, tmp_path / "r", **{"data.train": tiny[0] / "pairz.jsonl"}))
    broken = tmp_path / "broken.jsonl"
    good = json.loads(tiny[2].read_text().splitlines()[0])
    broken.write_text(json.dumps(good) + "\n{not json\n")
    line = told(capsys, *run(tiny, tmp_path / "r", **{"data.train": broken}))
    assert "1 of 2 records invalid" in line


def test_combinations(capsys, tiny, tmp_path):
    assert "weights.lower" in told(capsys, *run(tiny, tmp_path, **{"weights.lower": 2}))
    assert "gradient_accumulation_steps" in told(
        capsys, *run(tiny, tmp_path, **{"train.gradient_accumulation_steps": 3})
    )
    assert "matches no projection" in told(capsys, *run(tiny, tmp_path, **{"lora.rank": 2, "lora.targets": "attn"}))
    assert "model.path is not set" in told(capsys, "run", "--data.train", "x.jsonl")


def test_help_lists_the_recipes_and_every_field_of_one_and_exits_0(capsys, tmp_path):
    from tisdpo_jax.config import RECIPES, describe

    file = tmp_path / "own.yaml"
    file.write_text("recipe: dlma\n")
    for recipe, kind in RECIPES.items():
        assert main(["run", "--recipe", recipe, "--help"]) == 0
        text = capsys.readouterr().out
        for name, _, _, doc in describe(kind):
            assert f"--{name} " in text and doc, name
        assert all(f"  {name} " in text for name in RECIPES)
    for asked, recipe in ((["run"], "tisdpo"), (["generate"], "generate"), (["train", str(file)], "dlma")):
        assert main([*asked, "--help"]) == 0 and f"fields of recipe {recipe}," in capsys.readouterr().out
    assert "did you mean dpo?" in told(capsys, "run", "--recipe=dop", "--help")
    assert main([]) == 2


def test_inspect_shows_tokens_masks_and_counts(capsys, tiny):
    folder, model, pairs = tiny
    dirty = folder / "dirty.jsonl"
    dirty.write_text(pairs.read_text() + json.dumps({"prompt": "p", "chosen": "", "rejected": "b"}) + "\n")
    arguments = ["inspect", f"--model.path={model}", f"--data.train={dirty}", "--contrast.construction=none"]
    assert main([*arguments, "--pair", "pair-003"]) == 0
    out = capsys.readouterr().out
    assert "pair-003" in out and "response" in out and "dirty.jsonl:13" in out
    assert "--pair nobody" in told(capsys, *arguments, "--pair", "nobody")
