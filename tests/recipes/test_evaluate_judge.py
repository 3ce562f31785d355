"""Answers of several models compared by every kind of judge, and gone on with after a kill."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from chat_stub import Stub
from runs import command

from tisdpo_jax.testing import write_tiny_model

PROMPTS = [f"tell me about {thing}" for thing in ("the cat", "a dog", "the moon", "bread", "my friend")]
COMMON = {"mesh__fsdp": 1, "evaluation__resamples": 200, "logging__progress": "false", "evaluation__max_new_tokens": 6}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Directories of two models, a file of prompts with one that is none, and a file of answers to all but one."""
    folder: Path = tmp_path_factory.mktemp("judged")
    for number in (0, 1):
        write_tiny_model(folder / f"m{number}", seed=number, max_positions=128)
    prompts = [{"id": f"p{n}", "prompt": prompt} for n, prompt in enumerate(PROMPTS)]
    (folder / "prompts.jsonl").write_text("\n".join(map(json.dumps, [*prompts, {"prompt": ""}])) + "\n")
    said = [{"id": f"p{n}", "response": "I'm sorry, but I can't help with that."} for n in range(4)]
    (folder / "said.jsonl").write_text("\n".join(map(json.dumps, said)) + "\n")
    return folder


@pytest.fixture(scope="module")
def judged(models):
    def evaluate(run_dir: Path, by: str, **options: object) -> tuple[int, str, dict]:
        given = {
            **COMMON,
            "recipe": "evaluate",
            "run_dir": run_dir,
            "evaluation__policy": models / "m1",
            "evaluation__reference": models / "m0",
            "evaluation__judge__prompts": models / "prompts.jsonl",
            "evaluation__judge__by": by,
            **options,
        }
        code, output = command("evaluate", **given)
        found = list(run_dir.glob("evaluations/*/evaluation.json"))
        return code, output, json.loads(found[0].read_text()).get("judging") or {} if found else {}

    return evaluate


def lines(run_dir: Path, name: str) -> list[dict]:
    (path,) = run_dir.glob(f"evaluations/*/{name}")
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def texts_of(folder: Path) -> dict[tuple[str, str], str]:
    """What each model answered to each prompt."""
    texts = {}
    for path in sorted(folder.glob("evaluations/*/answers/*.jsonl")):
        for line in path.read_text(encoding="utf-8").splitlines():
            record = json.loads(line)
            texts[path.stem.rpartition("-")[0], record["id"].removesuffix("/main/0")] = record["response"]
    return texts


def test_three_models_by_rules_and_by_a_function(judged, models, tmp_path, monkeypatch) -> None:
    third = {"evaluation__judge__models": {"file": str(models / "said.jsonl")}}
    code, output, found = judged(tmp_path, "refusal", **third, evaluation__judge__anchor="reference")
    assert code == 0, output
    assert found["prompts"] == 5 and found["unanswered"] == {"policy": 0, "reference": 0, "file": 1}
    assert "prompts.jsonl:6: empty turn" in output and "Bradley-Terry" in output and "no verdict" in output
    by_pair = {(one["first"], one["second"]): one for one in found["pairs"]}
    lost = by_pair["policy", "file"]
    assert (lost["wins"], lost["ties"], lost["losses"], lost["undecided"]) == (0, 0, 4, 1)
    assert lost["rate"]["value"] == 0.0 and lost["rate"]["high"] > 0.1
    elo = {rating["name"]: rating["elo"]["value"] for rating in found["ratings"]}
    assert elo["reference"] == 0.0 and elo["file"] > 100 and elo["policy"] == pytest.approx(0.0, abs=1e-6)
    assert {score["name"]: score["score"]["value"] for score in found["scores"]}["file"] == 1.0
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("evaluations/*/answers/*")}
    assert len(texts_of(tmp_path)) == 10  # five of each model
    # another judge takes the same answers
    (tmp_path / "my_judge_y.py").write_text("def most_letters(prompt, response): return len(set(response))\n")
    monkeypatch.chdir(tmp_path)
    code, output, found = judged(tmp_path, "my_judge_y:most_letters", **third)
    assert code == 0, output
    assert {path: path.stat().st_mtime_ns for path in tmp_path.glob("evaluations/*/answers/*")} == before
    texts = texts_of(tmp_path)
    expected = np.mean([len(set(texts["policy", f"p{n}"])) for n in range(5)])
    scores = {score["name"]: score["score"]["value"] for score in found["scores"]}
    assert scores["policy"] == pytest.approx(expected)
    (page,) = tmp_path.glob("evaluations/*/evaluation.html")
    assert "my_judge_y:most_letters" in page.read_text(encoding="utf-8")
    # within a wide enough band all is a tie, and a limit leaves prompts out
    code, output, found = judged(
        tmp_path, "my_judge_y:most_letters", evaluation__judge__tie_band=1e6, evaluation__judge__limit=3
    )
    assert found["prompts"] == 3 and found["pairs"][0]["ties"] == 3 and not found["ratings"]


def test_drawn_answers_differ_from_greedy_ones_and_come_again(judged, tmp_path) -> None:
    texts = {}
    for name, options in {
        "greedy": {},
        "drawn": {"evaluation__judge__temperature": 2.0},
        "again": {"evaluation__judge__temperature": 2.0},
        "other seed": {"evaluation__judge__temperature": 2.0, "evaluation__seed": 5},
    }.items():
        code, output, _ = judged(tmp_path / name, "refusal", **options)
        assert code == 0, output
        texts[name] = list(texts_of(tmp_path / name).values())
    assert texts["drawn"] == texts["again"] and len({tuple(text) for text in texts.values()}) == 3


def test_an_endpoint_that_dies_and_comes_back_is_not_asked_twice(judged, tmp_path) -> None:
    """Prefers the longer answer; after six verdicts it hangs up, later it works, and says nothing clear once."""
    alive, mumbled = {"questions": 6}, []

    def answer(n: int, body: dict) -> str | None:
        if n >= alive["questions"]:
            return None
        text = body["messages"][-1]["content"]
        first, second = (text.split(f"[{side} answer]\n")[1].split("\n[end of")[0] for side in ("first", "second"))
        if not mumbled:
            mumbled.append({first, second})
        if {first, second} == mumbled[0]:
            return "Hard to say."
        return f"Because.\nverdict: {'first' if len(first) > len(second) else 'second'}"

    stub = Stub(answer)
    options = {
        "evaluation__judge__endpoint_model": "some-model",
        "evaluation__judge__retries": 0,
        "evaluation__judge__concurrency": 1,
        "evaluation__judge__timeout": 5,
        "evaluation__judge__criterion": "Which is longer?",
    }
    try:
        code, output, found = judged(tmp_path, stub.url, **options)
        assert (
            code == 2
            and "no answer in 1 tries" in output
            and "what was answered so far is kept" in output
            and not found
        )
        kept = lines(tmp_path, "judgements.jsonl")
        assert (
            len(kept) == 6 and len(stub.requests) == 8
        )  # one that was answered is asked again, to see who is at fault
        alive["questions"] = 1000
        code, output, found = judged(tmp_path, stub.url, **options)
        assert code == 0, output
        assert len(stub.requests) == 8 + 4  # ten in all: five prompts in two orders
        code, output, again = judged(tmp_path, stub.url, **options)
        assert code == 0 and again == found and len(stub.requests) == 12
        assert all("Which is longer?" in request["messages"][-1]["content"] for request in stub.requests)
        (pair,) = found["pairs"]
        assert pair["wins"] + pair["ties"] + pair["losses"] == 4 and pair["undecided"] == 1
        texts = texts_of(tmp_path)
        longer = sum(len(texts["policy", f"p{n}"]) > len(texts["reference", f"p{n}"]) for n in range(5))
        assert pair["wins"] in (longer, longer - 1) and sum(k["verdict"] == "unparsable" for k in kept) >= 1
        code, output, _ = judged(tmp_path, stub.url, **{**options, "evaluation__judge__criterion": "Other?"})
        assert code == 0 and len(stub.requests) == 22  # another question is another judge
    finally:
        stub.stop()


def test_mistakes(judged, models, tmp_path) -> None:
    def told(by: str, **options: object) -> str:
        code, output, _ = judged(tmp_path, by, **options)
        assert code == 2, output
        return next(line for line in output.splitlines() if line.startswith("error: "))

    assert "must be sentiment, refusal, module:function" in told("sentimental")
    assert "endpoint_model is not set" in told("http://127.0.0.1:9/v1")
    assert "it must be a mapping" in told("refusal", evaluation__judge__models="x=y")
    assert "not all different" in told("refusal", evaluation__judge__models={"policy": str(models / "m0")})
    assert "is none of the models" in told("refusal", evaluation__judge__anchor="nobody")
    assert "a reward model is a" in told(str(models / "m0"))
    wrong = tmp_path / "wrong.jsonl"
    wrong.write_text(json.dumps({"id": "zzz", "response": "a"}) + "\n")
    assert "answers none of the 5 prompts" in told("refusal", evaluation__judge__models={"w": str(wrong)})
    wrong.write_text(json.dumps({"id": "zzz"}) + "\n")
    assert "wrong.jsonl:1: needs text in 'response'" in told("refusal", evaluation__judge__models={"w": str(wrong)})
