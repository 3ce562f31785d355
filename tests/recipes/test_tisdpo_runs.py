"""The whole job on a tiny model: every construction, cached and online, full and LoRA; nothing is done twice."""

from __future__ import annotations

import functools
import gzip
import html.parser
import json
import re
import shutil

import jax
import numpy as np
import pytest
from runs import command, exported, rows

from tisdpo_jax import interchange
from tisdpo_jax.models import merge
from tisdpo_jax.reporting import TITLES

CASES = {
    "prompts": {"contrast__construction": "prompts"},
    "sft": {"contrast__construction": "sft"},
    "dpo": {"contrast__construction": "dpo"},
    "prompts-lora-online": {"contrast__construction": "prompts", "lora__rank": 2, "scores": "online"},
    "dpo-lora": {"contrast__construction": "dpo", "lora__rank": 2, "sft__epochs": 0.5, "sft__batch_size": 8},
    "sft-online": {
        "contrast__construction": "sft",
        "scores": "online",
        "train__gradient_accumulation_steps": 2,
        "mesh__fsdp": 4,
        "mesh__tensor": 2,
    },
}


LONG = (
    "sft-online",
    "prompts-lora-online",
    "dpo",
    "sft",
)  # what they add to the others, tests of the step and of cached scores have


def whole_run(name, tiny, tmp_path_factory):
    run_dir = tmp_path_factory.mktemp(name)
    options = {**tiny, "run_dir": run_dir, "mesh__fsdp": 1, **CASES[name]}
    code, output = command("run", **options)
    assert code == 0, output
    return run_dir, options, output


@pytest.fixture(scope="module")
def prompted(tiny, tmp_path_factory):
    return whole_run("prompts", tiny, tmp_path_factory)


@pytest.fixture(
    params=[pytest.param(name, marks=pytest.mark.slow) if name in LONG else name for name in CASES], scope="module"
)
def finished(request, prompted, tiny, tmp_path_factory):
    name = request.param
    return name, *(prompted if name == "prompts" else whole_run(name, tiny, tmp_path_factory))


def test_a_run_leaves_everything_it_promises(finished):
    name, run_dir, _, output = finished
    for path in (
        "config.yaml",
        "metrics.jsonl",
        "evaluation.json",
        "report.html",
        "export/model.safetensors",
        "export/config.json",
    ):
        assert (run_dir / path).is_file(), path
    assert (run_dir / "adapter" / "adapter_model.safetensors").is_file() == ("lora" in name)
    assert (run_dir / "scores").is_dir() == ("online" not in name)
    for word in ("reward accuracy", "margin", "DPO loss", "by definition", "after TIS-DPO", "report.html", "export"):
        assert word in output
    assert not re.search(r"compiled ([2-9]|\d\d+) time\(s\)", output)
    assert not (run_dir / ".lock").exists()


def test_metrics_are_the_promised_ones_and_start_at_log_2(finished):
    _, run_dir, _, _ = finished
    policy = [row for row in rows(run_dir, timeless=False) if row["stage"] == "policy"]
    first = next(row for row in policy if row["split"] == "train")
    promised = {
        *("objective", "dpo_loss", "rewards/chosen", "rewards/rejected", "rewards/accuracies", "rewards/margins"),
        *("logps/chosen", "logps/rejected", "logps/reference_chosen", "logps/weighted_chosen"),
        *("kl", "kl/chosen", "kl/rejected", "weights/chosen", "weights/rejected", "weights/chosen_std"),
        *("grad_norm", "tokens_per_second"),
    }
    assert promised <= set(first)
    assert first["objective"] == pytest.approx(np.log(2), rel=1e-5)
    assert first["dpo_loss"] == pytest.approx(np.log(2), rel=1e-5)
    assert first["weights/chosen"] > 0 and first["grad_norm"] > 0
    assert any(row["split"] == "eval" for row in policy)


def test_the_report_is_well_formed_and_shows_weights(finished):
    _, run_dir, options, _ = finished
    text = (run_dir / "report.html").read_text(encoding="utf-8")
    html.parser.HTMLParser().feed(text)
    assert "<script" not in text
    if options.get("scores") != "online":
        assert "pair-" in text


def test_a_number_under_one_name_is_one_number(finished):
    """Metrics, evaluation.json, the page and the terminal: the policy is measured twice, and said four times."""
    _, run_dir, _, output = finished
    last = next(row for row in rows(run_dir)[::-1] if row["stage"] == "policy" and row["split"] == "eval")
    found = json.loads((run_dir / "evaluation.json").read_text())
    measures = {one["name"]: one["interval"]["value"] for one in found["evaluation"]["measures"]}
    changes = {row["name"]: row for table in found["tables"] for row in table["rows"]}
    text = (run_dir / "report.html").read_text(encoding="utf-8")
    for metric, name in TITLES.items():
        if metric == "objective" or metric not in last:
            continue
        assert measures[name] == pytest.approx(last[metric], rel=1e-3, abs=1e-5), name
        assert changes[name]["after"] == pytest.approx(measures[name], rel=1e-3, abs=1e-5), name
        # what holds by definition is said to, and nothing is better than it
        assert changes[name]["by_definition"] and changes[name]["difference"] is None
        assert f'<data value="{changes[name]["after"]!r}">' in text and name in output
    assert "objective (weighted)" in text and "dpo_loss" not in text
    assert "better by" not in output.split("likelihoods", 1)[0]
    steps = [row for row in rows(run_dir) if row["stage"] == "policy" and row["split"] == "train"]
    assert any(abs(row["objective"] - row["dpo_loss"]) > 1e-4 for row in steps), "weights and KL move the objective"


def test_every_model_of_the_run_answers_the_held_out_prompts(finished):
    _, run_dir, options, output = finished
    models = ["pretrained", *(["after SFT"] if "sft__epochs" in options else []), "after TIS-DPO"]
    samples = json.loads((run_dir / "samples.json").read_text(encoding="utf-8"))
    assert [answer["model"] for answer in samples["shown"][0]["answers"]] == models
    assert samples["scores"][0]["models"] == models and all(model in output for model in models)
    assert len(list((run_dir / "samples").glob("*.jsonl"))) == len(models)


def test_an_adapter_names_the_model_that_it_stands_on(finished):
    """The pretrained one or, after SFT, that: with it, it is the exported model."""
    kind, run_dir, options, _ = finished
    if "lora" not in kind:
        assert not (run_dir / "adapter").exists() and not (run_dir / "base").exists()
        return
    base = json.loads((run_dir / "adapter" / "adapter_config.json").read_text())["base_model_name_or_path"]
    assert base == (str(run_dir / "base") if "sft__epochs" in options else str(options["model__path"]))
    config = interchange.read_config(base)
    params, expected = (interchange.load_params(path, config, dtype="float32") for path in (base, run_dir / "export"))
    adapter = interchange.load_peft(run_dir / "adapter", config)
    found = merge(params, adapter.lora, adapter.scale)
    for mine, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(mine, theirs, atol=1e-5)


def test_the_same_command_again_trains_nothing(finished):
    _, run_dir, options, _ = finished
    before, metrics = exported(run_dir), rows(run_dir, timeless=False)
    answers = {path: path.read_bytes() for path in (run_dir / "samples").iterdir()}
    code, output = command("run", **options)
    assert code == 0
    assert "the step was compiled" not in output and "already done" in output
    assert rows(run_dir, timeless=False) == metrics
    assert {path: path.read_bytes() for path in (run_dir / "samples").iterdir()} == answers
    for name, value in exported(run_dir).items():
        np.testing.assert_array_equal(value, before[name])


SAME = {
    "scores in the step": {"scores": "online"},
    "packing": {"data__packing": "none"},
    "reference states on disk": {"reference_states": "cached"},
    "both, two micro-batches": {
        "data__packing": "none",
        "reference_states": "cached",
        "train__gradient_accumulation_steps": 2,
    },
}


@pytest.fixture(scope="module")
def plainly(prompted):
    """Options and metrics of a run with (P) in which nothing is special."""
    run_dir, options, _ = prompted
    return options, rows(run_dir)


@pytest.fixture(scope="module")
def differently(plainly, tmp_path_factory):
    """The same run in one of the other ways, made once: its directory, and what it printed."""

    @functools.cache
    def run(how):
        run_dir = tmp_path_factory.mktemp("differently")
        code, output = command("train", **{**plainly[0], "run_dir": run_dir, **SAME[how]})
        assert code == 0, output
        return run_dir, output

    return run


@pytest.mark.parametrize(
    "how", [pytest.param(name, marks=pytest.mark.slow) if "pack" in name or "both" in name else name for name in SAME]
)
def test_what_saves_memory_and_time_trains_the_same_policy(plainly, differently, how):
    (_, expected), (run_dir, output) = plainly, differently(how)
    assert re.search(r"the step was compiled [01] time\(s\)", output)
    found = rows(run_dir)
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        for name in ("objective", "rewards/margins", "kl/chosen", "logps/chosen", "weights/chosen"):
            np.testing.assert_allclose(one[name], other[name], rtol=2e-4, atol=2e-5, err_msg=name)
    held = next(line for line in output.splitlines() if "stage policy: resident" in line)
    # with its states on disk, of the reference the head alone is on the devices
    assert ("params/head" in held) == ("reference_states" in SAME[how])
    assert ("params/base" in held) != ("params/head" in held)


def test_stale_states_are_refused_by_name(plainly, differently, tmp_path):
    run_dir = tmp_path / "run"
    shutil.copytree(differently("reference states on disk")[0], run_dir)
    options = {**plainly[0], "run_dir": run_dir, **SAME["reference states on disk"]}
    shutil.rmtree(run_dir / "models")
    label = run_dir / "scores" / "train-reference-states.json"
    key = json.loads(label.read_text())
    label.write_text(json.dumps({**key, "key": {**key["key"], "model": "another"}}))
    code, output = command("train", **options)
    assert code == 2 and 'another configuration: model (was "another"' in output
    label.write_text(json.dumps(key))
    (run_dir / "scores" / "train-reference-states.npy").write_bytes(b"torn")
    code, output = command("train", **options)
    assert code == 2 and "no whole cache of states" in output and "delete" in output


@pytest.mark.slow
@pytest.mark.parametrize("lora", [0, 2], ids=["whole models", "adapters"])
def test_frozen_models_in_int8_train_nearly_the_same_policy(tiny, tmp_path, lora):
    options = {**tiny, "contrast__construction": "sft", "scores": "online", "lora__rank": lora}
    options |= {"mesh__fsdp": 1, "data__limit": 24}
    found = {}
    for dtype in ("float32", "int8"):
        code, output = command("run", **{**options, "run_dir": tmp_path / dtype, "model__frozen_dtype": dtype})
        assert code == 0, output
        found[dtype] = [row["logps/chosen"] for row in rows(tmp_path / dtype) if row["stage"] == "policy"]
        sizes = next(line for line in output.splitlines() if "stage policy: resident" in line)
        found[dtype, "bytes"] = sizes
    assert found["int8"] != found["float32"], "nothing was quantised"
    np.testing.assert_allclose(found["int8"], found["float32"], rtol=0.02)
    assert found["int8", "bytes"] != found["float32", "bytes"]


@pytest.fixture(scope="module")
def scored(plainly, tmp_path_factory):
    """A run that has scores of (P) and no model yet, so that only caches can be stale."""
    options = plainly[0]
    run_dir = tmp_path_factory.mktemp("scored")
    shutil.copytree(options["run_dir"] / "scores", run_dir / "scores")
    return {**options, "run_dir": run_dir}


STALE = {
    "lengths": ("lengths", {"data__max_length": 64}),
    "template": ("template", {"data__system": "you are a dog"}),
    "prompt": ("data", {"contrast__positive_prompt": "be very good"}),
    "dtype": ("dtype", {"model__dtype": "bfloat16"}),
    "data": ("data", {"data__limit": 30}),
}


@pytest.mark.parametrize("what", STALE)
def test_stale_scores_are_refused_by_name(scored, what):
    named, change = STALE[what]
    code, output = command("score", **{**scored, **change})
    assert code == 2
    assert f"{named} (was " in output.split("was made with another configuration: ")[1]


def test_scores_of_another_model_are_refused(scored, tmp_path):
    from tisdpo_jax.testing import write_tiny_model

    other = write_tiny_model(tmp_path / "other", seed=9, max_positions=128)
    code, output = command("score", **{**scored, "model__path": other})
    assert code == 2 and "model (was " in output.split("was made with another configuration: ")[1]
    code, output = command("score", **scored)
    assert code == 0 and "scores read from" in output


@pytest.mark.slow
def test_baselines_run_too(tiny, tmp_path):
    for loss in ("dpo", "ipo", "tdpo", "kto", "sft"):
        options = {
            **tiny,
            "run_dir": tmp_path / loss,
            **({"recipe": "sft"} if loss == "sft" else {"loss__name": loss}),
            "mesh__fsdp": 1,
        }
        code, output = command("run", **{**options, "data__limit": 20})
        assert code == 0, output
    dlma = {
        **tiny,
        "run_dir": tmp_path / "dlma",
        "loss__name": "dlma",
        "contrast__construction": "prompts",
        "mesh__fsdp": 1,
    }
    code, output = command("run", **{**dlma, "data__limit": 20})
    assert code == 0, output


def test_weights_that_records_bring_along(tiny, tmp_path):
    """All weights 1 and no KL is DPO, batch by batch; the one record that weighs more moves its own batch alone."""
    from tisdpo_jax.interchange import load_tokenizer

    lines = [json.loads(line) for line in tiny["data__train"].read_text().splitlines()]
    common = {**tiny, "mesh__fsdp": 1, "contrast__construction": "none", "data__eval_fraction": 0, "loss__kl_coef": 0}
    common |= {"data__max_length": 96, "data__max_response": 48}  # nothing is cut: weights belong to whole responses
    count = _response_lengths(load_tokenizer(tiny["model__path"]), lines)
    for number, (line, (chosen, rejected)) in enumerate(zip(lines, count, strict=True)):
        line["chosen_weights"], line["rejected_weights"] = [3.0 if number == 7 else 1.0] * chosen, [1.0] * rejected
    weighted = tmp_path / "weighted.jsonl"
    weighted.write_text("\n".join(map(json.dumps, lines)))
    code, output = command("train", **{**common, "run_dir": tmp_path / "own", "data__train": weighted})
    assert code == 0, output
    losses = [(row["weights/chosen"] > 1, row["objective"], row["dpo_loss"]) for row in rows(tmp_path / "own")]
    assert sorted(heavy for heavy, *_ in losses) == [False] * 4 + [True]
    for heavy, objective, dpo in losses[1:]:  # at the first step both are log 2
        assert heavy or objective == pytest.approx(dpo, rel=1e-6)
        assert not heavy or abs(objective - dpo) > 1e-5
    code, output = command("train", **{**common, "run_dir": tmp_path / "none"})
    assert code == 2 and "chosen_weights" in output


def _response_lengths(tokenizer, lines):
    from tisdpo_jax.data import encode_pairs, read_pairs

    encoded = encode_pairs(read_pairs(lines), tokenizer, template="auto", max_length=96, max_response=48)
    return [(len(pair.chosen), len(pair.rejected)) for pair in encoded.groups]


def dirty_part(source, target):
    """100 records of the file as published, one of each kind that cannot be used among them."""
    lines = gzip.decompress(source.read_bytes()).decode("utf-8").splitlines()
    target.write_text("\n".join([*lines[:60], *lines[400:420], *lines[525:535], *lines[979:989]]), encoding="utf-8")
    return target


@pytest.mark.parametrize(
    "construction", [pytest.param(name, marks=pytest.mark.slow) for name in ("prompts", "sft", "dpo")]
)
def test_real_transcripts_and_a_real_model(shared, tmp_path, construction):
    """HH with stories260K: dirty records are named and counted, and the run is whole."""
    options = {
        "model__path": shared / "models" / "stories260k",
        "data__train": dirty_part(shared / "data" / "hh-harmless" / "pairs.jsonl.gz", tmp_path / "hh.jsonl"),
        "data__template": "hh",
        "data__on_error": "skip",
        "data__max_length": 160,
        "data__max_response": 48,
        "mesh__fsdp": 4,
        "mesh__tensor": 2,
        "contrast__construction": construction,
        "run_dir": tmp_path / "run",
        "contrast__training__batch_size": 16,
        "train__batch_size": 16,
    }
    code, output = command("run", **options)
    assert code == 0, output
    assert "reward accuracy" in output
    for line, reason in ((68, "empty response"), (86, "turn order"), (97, "prompts differ")):
        assert f"hh.jsonl:{line}: {reason}" in output
    if construction == "prompts":
        code, output = command("train", **{**options, "data__on_error": "fail", "run_dir": tmp_path / "strict"})
        assert code == 2 and "data.on_error skip" in output
