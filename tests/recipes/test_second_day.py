"""A run as its user meets it again: relative paths, the same command, one option changed and changed back."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from runs import command
from safetensors.numpy import load_file, save_file

RUN_DIR = "runs/mine"
OPTIONS = {
    "model__path": "models/tiny",
    "data__train": "pairs.jsonl",
    "data__template": "chat.jinja",
    "run_dir": RUN_DIR,
    "loss__name": "dpo",
    "lora__rank": 2,
    "mesh__fsdp": 1,
    "train__checkpoint_every": 2,
}
CHAT = (
    "{% for m in messages %}{{ '[' + m.role + '] ' + m.content + eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '[assistant] ' }}{% endif %}"
)


@pytest.fixture(scope="module")
def home(tiny, tmp_path_factory):
    """A working directory in which everything is named by relative paths, with a DPO run that is done."""
    place = tmp_path_factory.mktemp("home")
    shutil.copytree(tiny["model__path"], place / "models" / "tiny")
    shutil.copy(tiny["data__train"], place / "pairs.jsonl")
    (place / "chat.jinja").write_text(CHAT)
    before = Path.cwd()
    os.chdir(place)
    try:
        code, output = command("run", **OPTIONS)
        assert code == 0, output
        yield place, output
    finally:
        os.chdir(before)


@pytest.fixture
def here(home, tmp_path, monkeypatch):
    """A copy of it, to be changed."""
    shutil.copytree(home[0], tmp_path / "copy")
    monkeypatch.chdir(tmp_path / "copy")
    return tmp_path / "copy"


def snapshot(directory: Path) -> dict[str, str]:
    """Every file of a run, by its bytes."""
    files = (path for path in directory.rglob("*") if path.is_file())
    return {str(path.relative_to(directory)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def error_of(output: str) -> str:
    lines = [line for line in output.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and "Traceback" not in output, output
    return lines[0]


def unfinished(place: Path) -> None:
    """As after SIGTERM: checkpoints are there, the result is not."""
    shutil.rmtree(place / RUN_DIR / "models" / "policy")


def test_plain_dpo_makes_no_contrastive_models(home) -> None:
    place, output = home
    assert os.listdir(place / RUN_DIR / "models") == ["policy"]
    assert sorted(os.listdir(place / RUN_DIR / "scores")) == [
        "eval-reference.safetensors",
        "train-reference.safetensors",
    ]
    assert "pi+" not in output


def test_the_same_command_again_and_evaluate_and_export_find_everything(here: Path) -> None:
    before = snapshot(here / RUN_DIR)
    for verb in ("run", "evaluate", "export"):
        code, output = command(verb, **OPTIONS)
        assert code == 0, output
        assert "the step was compiled" not in output
    after = snapshot(here / RUN_DIR)
    changed = {name for name in before | after if before.get(name) != after.get(name)}
    assert changed <= {"report.html", "adapter/README.md"}, changed  # the report says how long things took


def test_it_goes_on_from_its_checkpoint_when_moved_and_through_a_link(here: Path) -> None:
    unfinished(here)
    (here / "runs").rename(here / "archive")
    (here / "link").symlink_to("archive/mine")
    for name in ("archive/mine", "link", str(here / "archive" / "mine")):
        code, output = command("train", **{**OPTIONS, "run_dir": name})
        assert code == 0 and "resumed at step" in output, output
        shutil.rmtree(here / "archive" / "mine" / "models" / "policy")


def test_other_names_of_the_same_things_are_no_difference(here: Path) -> None:
    (here / "models" / "tiny").rename(here / "models" / "another")
    (here / "chat.jinja").rename(here / "talk.jinja")
    (here / "pairs.jsonl").rename(here / "data.jsonl")
    names = {"model__path": str(here / "models" / "another"), "data__template": "./talk.jinja"}
    code, output = command("train", **{**OPTIONS, **names, "data__train": "data.jsonl"})
    assert code == 0 and "already done" in output, output


def test_another_stage_before_the_policy_is_refused_before_it_is_made(here: Path) -> None:
    """SFT, or contrastive models, would take their time and leave their results in a directory of another run."""
    before = snapshot(here / RUN_DIR)
    code, output = command("run", **{**OPTIONS, "sft__epochs": 1})
    assert code == 2 and 'sft (was "none", now absent)' in error_of(output) and "stage sft" not in output
    change = {"loss__name": "tisdpo", "contrast__construction": "sft"}
    code, output = command("run", **{**OPTIONS, **change})
    assert code == 2 and 'contrast.construction (was absent, now "sft")' in error_of(output)
    assert "stage plus" not in output and snapshot(here / RUN_DIR) == before


OTHERS: dict[str, tuple[dict[str, Any], str]] = {
    "rank": ({"lora__rank": 4}, "lora.rank (was 2, now 4)"),
    "alpha": ({"lora__alpha": 8}, "lora.alpha (was 16.0, now 8.0)"),
    "full": ({"lora__rank": 0}, "lora.rank (was 2, now 0)"),
    "dtype": ({"model__param_dtype": "bfloat16"}, 'model.param_dtype (was "float32", now "bfloat16")'),
    "optimizer": ({"train__optimizer__name": "rmsprop"}, 'train.optimizer.name (was "adamw", now "rmsprop")'),
    "rate": ({"train__optimizer__learning_rate": 2e-3}, "train.optimizer.learning_rate (was 0.001, now 0.002)"),
    "epochs": ({"train__epochs": 2}, "train.epochs (was 1.0, now 2.0)"),
    "beta": ({"loss__beta": 0.2}, "loss.beta (was 0.1, now 0.2)"),
    "seed": ({"seed": 1}, "seed (was 0, now 1)"),
}


FAST = ("rank", "dtype", "optimizer", "negated head", "permuted vocabulary")  # the others take the same way


def cases(kinds: dict[str, Any]) -> list[Any]:
    return [pytest.param(kind, marks=() if kind in FAST else pytest.mark.slow) for kind in kinds]


@pytest.mark.parametrize("kind", cases(OTHERS))
def test_one_option_changed_is_refused_with_both_values_and_changed_back_goes_on(home, here: Path, kind: str) -> None:
    change, said = OTHERS[kind]
    unfinished(here)
    before = snapshot(here / RUN_DIR)
    code, output = command("run", **{**OPTIONS, **change})
    assert code == 2 and said in error_of(output), output
    assert snapshot(here / RUN_DIR) == before
    if kind != "rank":
        return  # that the right command goes on is seen once; nothing was changed is seen for all
    code, output = command("train", **OPTIONS)
    assert code == 0 and "resumed at step" in output, output


def test_a_finished_run_is_refused_to_another_option_too(here: Path) -> None:
    before = snapshot(here / RUN_DIR)
    for verb in ("run", "evaluate", "export"):
        code, output = command(verb, **{**OPTIONS, "lora__rank": 4})
        assert code == 2 and "lora.rank (was 2, now 4)" in error_of(output), output
        assert snapshot(here / RUN_DIR) == before


def test_other_data_and_another_template_are_refused(here: Path) -> None:
    before = snapshot(here / RUN_DIR)
    (here / "chat.jinja").write_text(CHAT.replace("[assistant] ", "[model] "))
    code, output = command("train", **OPTIONS)
    assert code == 2 and "template (was " in error_of(output)
    (here / "chat.jinja").write_text(CHAT)
    lines = (here / "pairs.jsonl").read_text().splitlines(keepends=True)
    (here / "pairs.jsonl").write_text("".join([*lines[1:], lines[0]]))
    code, output = command("train", **OPTIONS)
    assert code == 2 and "data (was " in error_of(output)
    assert snapshot(here / RUN_DIR) == before
    (here / "pairs.jsonl").write_text("".join(lines))
    code, output = command("train", **OPTIONS)
    assert code == 0 and "already done" in output


def _negated(name: str) -> Any:
    return lambda tensors: {name: -tensors[name]}


def _permuted(name: str, axis: int) -> Any:
    return lambda tensors: {name: np.ascontiguousarray(np.roll(tensors[name], 1, axis))}


def _swapped(one: str, other: str) -> Any:
    return lambda tensors: {one: tensors[other], other: tensors[one]}


LAYER = "model.layers.{}.{}.weight"
PERMUTATIONS = {
    "negated head": _negated(LAYER.format(0, "self_attn.q_proj")),
    "negated MLP": _negated(LAYER.format(1, "mlp.down_proj")),
    "swapped layers": lambda tensors: {
        name: tensors[name.replace(f"layers.{i}.", f"layers.{1 - i}.")]
        for name in tensors
        for i in (0, 1)
        if f"layers.{i}." in name
    },
    "transposed": lambda tensors: {
        (name := LAYER.format(0, "self_attn.q_proj")): np.ascontiguousarray(tensors[name].T)
    },
    "permuted vocabulary": _permuted("model.embed_tokens.weight", 0),
    "permuted channels": _permuted("model.embed_tokens.weight", 1),
    "keys and values": _swapped(LAYER.format(0, "self_attn.k_proj"), LAYER.format(0, "self_attn.v_proj")),
    "gate and up": _swapped(LAYER.format(1, "mlp.gate_proj"), LAYER.format(1, "mlp.up_proj")),
}


@pytest.mark.parametrize("kind", cases(PERMUTATIONS))
def test_a_permuted_model_is_another_model(here: Path, kind: str) -> None:
    """Its sums are the same, and so are its names and shapes."""
    file = here / "models" / "tiny" / "model.safetensors"
    tensors = load_file(file)
    changed = PERMUTATIONS[kind](tensors)
    assert any((changed[name] != tensors[name]).any() for name in changed)
    save_file({**tensors, **changed}, file, metadata={"format": "pt"})
    before = snapshot(here / RUN_DIR)
    code, output = command("train", **OPTIONS)
    assert code == 2 and "model (was " in error_of(output), output
    assert snapshot(here / RUN_DIR) == before


def test_another_architecture_of_the_same_parameters_is_another_model(here: Path) -> None:
    file = here / "models" / "tiny" / "config.json"
    config = json.loads(file.read_text())
    file.write_text(json.dumps({**config, "rms_norm_eps": 1e-3}))
    code, output = command("train", **OPTIONS)
    assert code == 2 and "architecture" in error_of(output), output


def test_damaged_scores_are_made_again_and_a_damaged_result_comes_back_from_its_checkpoint(home, here: Path) -> None:
    scores = here / RUN_DIR / "scores" / "train-reference.safetensors"
    whole, logps = scores.read_bytes(), load_file(scores)["logps"]
    scores.write_bytes(whole[:-3] + bytes([whole[-3] ^ 1]) + whole[-2:])
    (here / RUN_DIR / "models/policy/state/_METADATA").write_bytes(b"{")
    code, output = command("train", **OPTIONS)
    assert code == 0, output
    assert "scores set aside, and made again" in output and "result set aside" in output
    np.testing.assert_array_equal(load_file(scores)["logps"], logps)
    assert adapter(here) == adapter(home[0])


def adapter(place: Path) -> list[bytes]:
    """The policy's arrays, through the export that is made of them now."""
    code, output = command("export", **{**OPTIONS, "run_dir": str(place / RUN_DIR)})
    assert code == 0, output
    tensors = load_file(place / RUN_DIR / "adapter" / "adapter_model.safetensors")
    return [tensors[name].tobytes() for name in sorted(tensors)]


@pytest.mark.parametrize("verb", ["evaluate", "export"])
def test_a_run_that_is_not_there_is_not_made(here: Path, verb: str) -> None:
    code, output = command(verb, **{**OPTIONS, "run_dir": "runs/other"})
    assert code == 2 and "runs/other: no trained policy is there" in error_of(output)
    assert os.listdir("runs") == ["mine"]


def test_show_is_right_after_a_run_after_a_change_and_changes_nothing(here) -> None:
    before = snapshot(here)

    def states(**options: Any) -> tuple[dict[str, str], str]:
        code, output = command("show", **(OPTIONS | options))
        assert code == 0, output
        rows = [line.split("  ", 1) for line in output.splitlines() if "  " in line]
        return {name.strip(): rest.split()[0] for name, rest in rows}, output

    kept = ["scores train-reference", "scores eval-reference", "policy", "export", "evaluation.json", "report.html"]
    assert states()[0] == dict.fromkeys(kept, "there")
    changed, output = states(loss__beta=0.3)
    assert {name for name, state in changed.items() if state == "stale"} == {*kept[2:]}
    assert "loss.beta (was 0.1, now 0.3)" in output and "`tisdpo run` refuses what is stale" in output
    unfinished(here)
    assert states()[0]["policy"] == "begun"
    shutil.rmtree(here / RUN_DIR / "checkpoints")
    assert states()[0]["policy"] == "missing"
    elsewhere, _ = states(run_dir="runs/other")
    assert set(elsewhere.values()) == {"missing"} and not (here / "runs" / "other").exists()
    assert {
        name: digest for name, digest in before.items() if "/models/" not in name and "/checkpoints/" not in name
    } == {name: digest for name, digest in snapshot(here).items()}
