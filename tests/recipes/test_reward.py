"""Reward models from pairs to an export: they learn, go on where they stopped, and score alike wherever read."""

from __future__ import annotations

import json
import random
import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from runs import command, exported, rows
from safetensors.numpy import load_file

from tisdpo_jax import interchange, judging
from tisdpo_jax.data import Message, Prompt, open_template
from tisdpo_jax.judging import RewardModel
from tisdpo_jax.judging.scorers import score_rows
from tisdpo_jax.models import Model

WORDS = ("the", "cat", "dog", "man", "girl", "boy", "ball", "tree", "bread", "house", "sky", "sees", "finds", "likes")
SURE = {"sorry": "significantly", "perhaps": "negligibly"}
OPTIONS: dict[str, object] = {
    "recipe": "reward",
    "data__eval_fraction": 0.35,
    "train__batch_size": 16,
    "train__epochs": 5,
    "train__optimizer__learning_rate": 5e-3,
    "train__checkpoint_every": 5,
    "train__keep_checkpoints": 9,
    "evaluation__resamples": 200,
    "mesh__fsdp": 1,
}


def write_labelled(path: Path, count: int, *, strengths: bool) -> Path:
    """Pairs of words at random; one more, "sorry" or "perhaps", makes the chosen one. Lengths say nothing."""
    draw = random.Random(0)
    lines = []
    for number in range(count):
        mark, word = draw.choice(list(SURE)), draw.choice(WORDS)
        chosen, rejected = ([draw.choice(WORDS) for _ in range(draw.randint(2, 5))] for _ in range(2))
        chosen.insert(draw.randint(0, len(chosen)), mark)
        rejected.append(word)
        pair = {"prompt": f"say {number}", "chosen": " ".join(chosen), "rejected": " ".join(rejected)}
        lines.append(json.dumps(pair | ({"strength": SURE[mark]} if strengths else {})))
    path.write_text("\n".join(lines) + "\n")
    return path


def options_of(tiny: dict[str, object], data: Path, run_dir: Path, **more: object) -> dict[str, object]:
    return {**tiny, **OPTIONS, "data__train": data, "run_dir": run_dir, **more}


@pytest.fixture(scope="module")
def whole(tiny, tmp_path_factory):
    """All parameters, labels without strengths."""
    folder = tmp_path_factory.mktemp("whole")
    options = options_of(tiny, write_labelled(folder / "pairs.jsonl", 120, strengths=False), folder / "run")
    code, output = command("run", **options, train__eval_every=1)
    assert code == 0, output
    return options, output


@pytest.fixture(scope="module")
def adapter(tiny, tmp_path_factory):
    """An adapter, labels with strengths."""
    folder = tmp_path_factory.mktemp("adapter")
    data = write_labelled(folder / "pairs.jsonl", 160, strengths=True)
    options = options_of(tiny, data, folder / "run", lora__rank=4, train__optimizer__head_rate=3)
    code, output = command("run", **options)
    assert code == 0, output
    return options, output


def evaluation(run_dir: Any) -> dict[str, Any]:
    return json.loads((Path(run_dir) / "evaluation.json").read_text())["evaluation"]


def measured(run_dir: Any) -> list[tuple[str, str, dict[str, Any]]]:
    """(side, answer's prompt id, line) of every held-out pair."""
    return [json.loads(line) for line in (Path(run_dir) / "evaluation_pairs.jsonl").read_text().splitlines()]


def answered(options: dict[str, Any]) -> tuple[list[tuple[str, str]], np.ndarray]:
    """Prompts with answers of the held-out pairs, and the rewards that the run measured."""
    records = [json.loads(line) for line in Path(options["data__train"]).read_text().splitlines()]
    texts, rewards = [], []
    for row in measured(options["run_dir"]):
        record = records[int(row["id"].removeprefix("line-")) - 1]
        for side in ("chosen", "rejected"):
            texts.append((record["prompt"], record[side]))
            rewards.append(row[f"{side}_reward"])
    return texts, np.asarray(rewards)


def test_held_out_accuracy_rises_and_is_reported(whole) -> None:
    options, output = whole
    lines = [row for row in rows(options["run_dir"]) if row["split"] == "eval"]
    first, last = lines[0], lines[-1]
    assert first["rewards/accuracies"] < 0.75 and last["rewards/accuracies"] > 0.85
    assert 0.6 < first["objective"] < 0.75  # the head began at 0, where the loss is log 2
    assert not {name for name in last if name.startswith(("logps/", "weights/", "dpo"))}
    found = evaluation(options["run_dir"])
    accuracy = found["measures"][0]
    assert accuracy["name"] == "reward accuracy" and accuracy["count"] == 42
    value, low, high = accuracy["interval"].values()
    assert low - 1e-9 <= value <= high + 1e-9 and value == pytest.approx(last["rewards/accuracies"])
    margins = np.asarray([row["margin"] for row in measured(options["run_dir"])])
    assert found["measures"][1]["interval"]["value"] == pytest.approx(margins.mean())
    assert "temperature (above 1" in output and "By strength" not in output
    page = (Path(options["run_dir"]) / "report.html").read_text()
    assert "the chosen response has the higher reward in" in page and "Calibration of sigmoid(margin)" in page


def test_margins_follow_the_strength_of_labels(adapter) -> None:
    options, output = adapter
    found = evaluation(options["run_dir"])
    (sure, _, much), (unsure, _, little) = found["strengths"]
    assert (sure, unsure) == ("significantly", "negligibly")  # the surest first
    assert much["interval"]["value"] > 2 * little["interval"]["value"] > 0
    assert found["rising"]["low"] > 0 and "By strength of the label" in output
    assert {round(row["target"], 4) for row in measured(options["run_dir"])} == {0.95, 0.65}


@pytest.mark.parametrize("kind", ["whole", "adapter"])
def test_the_export_scores_alike_in_transformers_and_as_a_judge(kind, request) -> None:
    torch = pytest.importorskip("torch")
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    options, _ = request.getfixturevalue(kind)
    directory = Path(options["run_dir"]) / "export"
    texts, rewards = answered(options)
    tokenizer = AutoTokenizer.from_pretrained(directory)
    model = AutoModelForSequenceClassification.from_pretrained(directory).eval()
    assert model.config.pad_token_id == tokenizer.pad_token_id and model.config.num_labels == 1
    talks = [[{"role": "user", "content": q}, {"role": "assistant", "content": a}] for q, a in texts]
    written = [tokenizer.apply_chat_template(talk, tokenize=False) for talk in talks]
    assert all(text.endswith("<|im_end|>") for text in written)  # where training read the reward
    for side in ("right", "left"):
        options_of_rows = {"padding_side": side, "return_tensors": "pt", "add_special_tokens": False}
        padded = tokenizer(written, padding=True, **options_of_rows)
        assert len(set(padded["attention_mask"].sum(1).tolist())) > 3  # rows of several lengths
        with torch.no_grad():
            scores = model(**padded).logits[:, 0].numpy()
        np.testing.assert_allclose(scores, rewards, rtol=1e-4, atol=1e-4)
    config, params, head = interchange.load_reward_model(directory, dtype="float32")
    own = interchange.load_tokenizer(directory)
    judge = RewardModel(Model(config), params, head, own, open_template("auto", own))
    prompts = [(Prompt(str(n), (Message("user", q),), "test"), a) for n, (q, a) in enumerate(texts)]
    scores = dict(judging.by_reward_model(judge, prompts, batch_size=8, max_length=96))
    np.testing.assert_allclose([scores[n] for n in range(len(texts))], rewards, rtol=1e-4, atol=1e-4)
    assert np.std(rewards) > 0.3


def test_trl_takes_the_export_as_its_reward(whole, tiny, tmp_path) -> None:
    torch = pytest.importorskip("torch")
    trl = pytest.importorskip("trl")
    datasets = pytest.importorskip("datasets")
    options, _ = whole
    directory = Path(options["run_dir"]) / "export"
    asked = [{"prompt": [{"role": "user", "content": f"say {number}"}]} for number in range(4)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of TRL and transformers, about their own names
        arguments = trl.RLOOConfig(
            output_dir=str(tmp_path), per_device_train_batch_size=4, num_generations=2, max_completion_length=6,
            max_steps=1, report_to=[], use_cpu=True, bf16=False, save_strategy="no", disable_tqdm=True,
        )  # fmt: skip
        trainer = trl.RLOOTrainer(
            model=str(tiny["model__path"]),
            reward_funcs=str(directory),
            args=arguments,
            train_dataset=datasets.Dataset.from_list(asked),
        )
        model, seen = trainer.reward_funcs[0], []
        forward = model.forward
        model.forward = lambda **rows: seen.append((rows["input_ids"], forward(**rows))) or seen[-1][1]
        trainer.train()
    (tokens, scores), *_ = seen
    held = [row[row != model.config.pad_token_id].numpy() for row in tokens]
    config, params, head = interchange.load_reward_model(directory, dtype="float32")
    for row, score in zip(held, scores.logits[:, 0].detach().numpy(), strict=True):
        assert row[0] == 0 and row[-1] == 3  # BOS as training saw it, and the end of turn, where the reward is read
        mine = score_rows(Model(config), params, head, row[None], np.asarray([len(row)]))
        np.testing.assert_allclose(mine, [score], rtol=1e-4, atol=1e-4)
    assert torch.isfinite(scores.logits).all() and trainer.state.log_history[0]["rewards/export/mean"] != 0


def test_what_the_export_says_of_itself(whole) -> None:
    options, _ = whole
    directory = Path(options["run_dir"]) / "export"
    about = json.loads((directory / "tisdpo_reward.json").read_text())
    assert about["temperature"] == evaluation(options["run_dir"])["temperature"]
    config = json.loads((directory / "config.json").read_text())
    assert config["architectures"] == ["LlamaForSequenceClassification"] and not config["tie_word_embeddings"]
    tensors = load_file(directory / "model.safetensors")
    assert tensors["score.weight"].shape == (1, 32) and "lm_head.weight" not in tensors
    assert interchange.is_reward_model(directory) and not (directory / "generation_config.json").exists()
    before = (directory / "model.safetensors").read_bytes()
    code, output = command("export", **options)
    assert code == 0, output
    assert (directory / "model.safetensors").read_bytes() == before
    assert json.loads((directory / "tisdpo_reward.json").read_text()) == about


def test_it_goes_on_where_it_stopped_to_the_same_bits(adapter, tmp_path) -> None:
    options, _ = adapter
    again = tmp_path / "run"
    shutil.copytree(options["run_dir"], again)
    for left in ("models", "export", "evaluation.json", "report.html"):
        path = again / left
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    for step in (again / "checkpoints" / "reward").iterdir():
        if int(step.name) > 5:
            shutil.rmtree(step)
    code, output = command("run", **{**options, "run_dir": again})
    assert code == 0 and "resumed at step 5" in output, output
    mine, theirs = exported(again), exported(Path(str(options["run_dir"])))
    assert mine.keys() == theirs.keys()
    for name in mine:
        np.testing.assert_array_equal(mine[name].view(np.uint32), theirs[name].view(np.uint32))
    assert rows(again) == rows(Path(str(options["run_dir"])))


def test_other_verbs_know_it(whole, tmp_path) -> None:
    options, _ = whole
    code, output = command("show", **options)
    assert code == 0 and "reward" in output and "there" in output and "missing" not in output, output
    code, output = command("evaluate", **options, evaluation__data=options["data__train"])
    assert code == 0 and "evaluation.html" in output and "Rewards (120 pairs" in output, output
    code, output = command("evaluate", **{**options, "run_dir": tmp_path / "none"})
    assert code == 2 and "no trained reward model is there" in output
    code, output = command("train", **options, strengths__better=0.7)
    assert code == 2 and "strengths.better" in output  # made with another value


def test_a_reward_model_is_trained_on_from_its_head(whole, tmp_path) -> None:
    options, _ = whole
    start = {"model__path": Path(options["run_dir"]) / "export", "train__epochs": 0.1}
    code, output = command("train", **{**options, **start, "run_dir": tmp_path / "run"})
    assert code == 0, output
    first = rows(tmp_path / "run")[0]
    assert first["rewards/accuracies"] > 0.85 and first["objective"] < 0.4


def test_labels_that_mean_nothing_are_named(tiny, tmp_path) -> None:
    data = write_labelled(tmp_path / "pairs.jsonl", 12, strengths=True)
    lines = data.read_text().splitlines()
    for place, strength in ((2, "beter"), (5, 0.3), (7, 0.8)):
        lines[place] = json.dumps(json.loads(lines[place]) | {"strength": strength})
    data.write_text("\n".join(lines) + "\n")
    code, output = command("train", **options_of(tiny, data, tmp_path / "run"))
    assert code == 2 and f"{data}:3: unknown strength ('beter'; did you mean 'better'?)" in output
    assert f"{data}:6: strength out of range (0.3 is not in [0.5, 1]" in output and f"{data}:8" not in output
