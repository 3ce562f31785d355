"""`tisdpo evaluate` on what a run left, on its export, on pairs that are not clean: one path, the same numbers."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from runs import command

from tisdpo_jax.testing import write_pairs, write_tiny_model

RUN = {"loss__name": "dpo", "data__eval_fraction": 0, "data__limit": 8}
RUN |= {"mesh__fsdp": 1}
RUN |= {"train__optimizer__learning_rate": 1e-2, "evaluation__generate": 0, "evaluation__heat_maps": 0}
RUN |= {"evaluation__resamples": 200, "logging__progress": "false"}
KINDS = {"full": {}, "lora": {"lora__rank": 2}}


@pytest.fixture(scope="module")
def held_out(tmp_path_factory) -> Path:
    """21 pairs, three of a prompt, of two subsets or none."""
    path = tmp_path_factory.mktemp("held_out") / "held.jsonl"
    records = [json.loads(line) for line in write_pairs(path, 21, seed=5).read_text().splitlines()]
    for number, record in enumerate(records):
        record["prompt"] = records[number - number % 3]["prompt"]
        # shorter than those that the run trains on, so that its arrays are wider than they need
        record["chosen"], record["rejected"] = record["chosen"][:9], record["rejected"][4:12]
        if number % 4:
            record["topic"] = ["animals", "people"][number % 2]
    path.write_text("\n".join(map(json.dumps, records)) + "\n")
    return path


# of all parameters: what a merged export loses is seen with the adapter, what an export holds in tests/interchange
@pytest.fixture(scope="module", params=["lora", pytest.param("full", marks=pytest.mark.slow)])
def run(request, tiny, held_out, tmp_path_factory):
    """A finished run of one step, its options and what it said."""
    run_dir = tmp_path_factory.mktemp(request.param)
    options = {**tiny, **RUN, **KINDS[request.param], "run_dir": run_dir, "data__eval": held_out}
    options["evaluation__subset"] = "topic"
    code, output = command("run", **options)
    assert code == 0, output
    return request.param, run_dir, options, output


def evaluated(directory: Path) -> dict:
    """evaluation.json, and under "lines" the pairs."""
    found = json.loads((directory / "evaluation.json").read_text())
    lines = (directory / "evaluation_pairs.jsonl").read_text().splitlines()
    return {**found, "lines": [json.loads(line) for line in lines]}


def one(run_dir: Path, begin: str) -> Path:
    """The one directory of evaluations that begins so."""
    (found,) = [path for path in (run_dir / "evaluations").iterdir() if path.name.startswith(begin)]
    return found


def numbers(row: dict) -> list[float]:
    return [value for value in row.values() if isinstance(value, float)]


def test_export_and_checkpoint_of_a_run_give_the_same_numbers(run, tiny, held_out, tmp_path) -> None:
    kind, run_dir, options, _ = run
    own = evaluated(run_dir)
    assert own["evaluation"]["pairs"] == 21 and own["evaluation"]["prompts"] == 7
    assert any(abs(line["margin"]) > 1e-3 for line in own["lines"]), "the policy has learnt nothing to see"
    bare = {key: options[key] for key in ("lora__rank", "lora__alpha") if key in options}
    given = {**RUN, **bare, "run_dir": tmp_path, "evaluation__subset": "topic", "evaluation__data": held_out}
    paths = {"export": run_dir / "export"} | ({"adapter": run_dir / "adapter"} if kind == "lora" else {})
    for name, path in paths.items():
        reference = {} if name == "adapter" else {"evaluation__reference": tiny["model__path"]}
        code, output = command("evaluate", **{**given, **reference, "evaluation__policy": path})
        assert code == 0, output
        directory = one(tmp_path, f"{name}-on-held")
        found = evaluated(directory)
        assert (directory / "evaluation.html").is_file() and "reward accuracy" in output
        if name == "export" and kind == "lora":  # merged: the same numbers with other roundings
            for mine, theirs in zip(found["lines"], own["lines"], strict=True):
                np.testing.assert_allclose(numbers(mine), numbers(theirs), rtol=1e-4, atol=1e-4)
        else:  # bit for bit, intervals and all
            assert found["lines"] == own["lines"] and found["evaluation"] == own["evaluation"]


def test_the_report_and_the_terminal_show_them(run) -> None:
    _, run_dir, _, output = run
    text = (run_dir / "report.html").read_text(encoding="utf-8")
    for part in ("policy against reference", "By subset", "animals", "(none)", "Calibration", "equally long"):
        assert part in text and part in output
    found = evaluated(run_dir)["evaluation"]
    groups = {group: accuracy["count"] for group, accuracy, _ in found["groups"]}
    assert groups == {"animals": 5, "people": 10, "(none)": 6}


def test_other_pairs_with_records_that_cannot_be_used(run, tmp_path) -> None:
    """Counted, named by line, and no obstacle; the run's own evaluation stays."""
    _, run_dir, options, _ = run
    before = (run_dir / "evaluation.json").read_bytes()
    config = (run_dir / "config.yaml").read_text()
    dirty = write_pairs(tmp_path / "dirty.jsonl", 6, seed=9)
    bad = ["{not json", json.dumps({"prompt": "p", "chosen": "", "rejected": "b"}), json.dumps({"prompt": "p"})]
    bad += [json.dumps({"prompt": "p", "chosen": "a<|im_end|>", "rejected": "b"})]
    dirty.write_text(dirty.read_text() + "\n".join(bad) + "\n")
    code, output = command("evaluate", **{**options, "evaluation__data": dirty})
    assert code == 0, output
    found = evaluated(one(run_dir, "policy-on-dirty"))
    data = found["data"]
    assert (data["records"], data["used"], data["invalid"]) == (10, 6, 4) and len(found["lines"]) == 6
    for line, reason in ((7, "not JSON"), (8, "empty response"), (9, "missing field"), (10, "special token in text")):
        assert f"dirty.jsonl:{line}: {reason}" in output
        assert any(r["origin"].endswith(f":{line}") and r["reason"] == reason for r in data["invalid_records"])
    assert "10 records, 6 usable, 4 invalid" in output
    assert (run_dir / "evaluation.json").read_bytes() == before and (run_dir / "config.yaml").read_text() == config
    page = (one(run_dir, "policy-on-dirty") / "evaluation.html").read_text()
    assert "empty response" in page
    hopeless = tmp_path / "hopeless.jsonl"
    hopeless.write_text(json.dumps({"prompt": "p", "chosen": "", "rejected": "b"}) + "\n")
    code, output = command("evaluate", **{**options, "evaluation__data": hopeless})
    assert code == 2 and "none of its records can be used" in output and "hopeless.jsonl:1" in output


def test_a_model_against_itself_and_mistakes(tiny, held_out, tmp_path) -> None:
    model = tiny["model__path"]
    given = {**RUN, "run_dir": tmp_path, "evaluation__data": held_out, "evaluation__reference": model}
    code, output = command("evaluate", **{**given, "evaluation__policy": model})
    assert code == 0, output
    lines = evaluated(one(tmp_path, "model-on-held"))["lines"]
    assert all(line["margin"] == 0 and line["chosen_kl"] < 1e-5 for line in lines)

    def told(**options: object) -> str:
        code, output = command("evaluate", **{**given, **options})
        assert code == 2, output
        return next(line for line in output.splitlines() if line.startswith("error: "))

    other = write_tiny_model(tmp_path / "other", vocab_size=512)
    assert "have other tokens" in told(evaluation__policy=other)
    assert "no such file or directory" in told(evaluation__policy=tmp_path / "gone")
    assert "--reference PATH" in told(evaluation__policy=model, evaluation__reference="null")
    assert "evaluation.data FILE" in told(evaluation__policy=model, evaluation__data="null")
    code, output = command("run", **{**tiny, **given, "evaluation__policy": model})
    assert code == 2 and "names a model for `tisdpo evaluate`; leave it out" in output


def test_short_options_are_the_long_ones(capsys, tiny) -> None:
    from tisdpo_jax.cli import main

    assert main(["evaluate", "--help"]) == 0
    assert "--policy" in (text := capsys.readouterr().out) and "--evaluation.policy" in text
    assert main(["evaluate"]) == 2 and main(["evaluate", "--data", "x", "--evaluation.data", "y"]) == 2
    assert "give one of them" in capsys.readouterr().err
    assert main(["evaluate", "--policy", str(tiny["model__path"]), "--data", "x"]) == 2
    assert "--reference PATH" in capsys.readouterr().err
