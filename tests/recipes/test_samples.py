"""Answers side by side, and what is checked in them: on fakes, without a model."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest

from tisdpo_jax.data import Message, Prompt, read_pairs
from tisdpo_jax.errors import DataError
from tisdpo_jax.generation import Response
from tisdpo_jax.objectives import OBJECTIVES
from tisdpo_jax.verbs.checks import Check, check_of, open_checks
from tisdpo_jax.verbs.samples import model_names, side_by_side


def test_a_check_looks_for_whole_words_and_a_star_stands_for_the_rest() -> None:
    check = Check("g", "n", "*", ("30", "steal*", "so no", "won’t"))
    assert check.hit("It costs 30 dollars.") == "30" and check.hit("It costs 300 dollars.") is None
    assert check.hit("That is STEALING.") == "STEALING" and check.hit("nosteal") is None
    assert check.hit("I won't.") == "won't" and check.hit("I won’t.") == "won't"
    assert check.hit("so none") is None and check.hit("") is None


def test_the_first_check_that_names_a_prompt_is_its_own() -> None:
    checks = tuple(Check(ids, "n", ids, ("a",)) for ids in ("harm-1", "harm-*", "a[b]*"))
    assert [one and one.group for one in (check_of(checks, name) for name in ("harm-1", "harm-2", "a[b]c", "x"))] == [
        *("harm-1", "harm-*", "a[b]*"),
        None,
    ]


@pytest.mark.parametrize(
    ("record", "told"),
    [
        ("[1]", "a check has the fields"),
        ('{"group": "g", "check": "c", "ids": "*"}', "a check has the fields"),
        ('{"group": "g", "check": "c", "ids": "*", "any": ["a"], "none": ["b"]}', "and no others"),
        ('{"group": "g", "check": "c", "ids": 3, "any": ["a"]}', "'ids' must be text"),
        ('{"group": "g", "check": "c", "ids": "*", "any": "a"}', "'any' must be a list"),
        ('{"group": "g", "check": "c", "ids": "*", "any": ["*"]}', "is no phrase"),
        ("{", "not JSON"),
    ],
)
def test_a_record_that_is_no_check_is_named(tmp_path, record: str, told: str) -> None:
    path = tmp_path / "checks.jsonl"
    path.write_text('{"group": "g", "check": "c", "ids": "*", "any": ["a"]}\n' + record + "\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"checks\.jsonl:2: .*"):
        open_checks(str(path))
    with pytest.raises(DataError) as error:
        open_checks(str(path))
    assert told in str(error.value)


def test_a_file_that_is_not_there_is_named(tmp_path) -> None:
    assert open_checks("") == ()
    with pytest.raises(DataError, match="no such file"):
        open_checks(str(tmp_path / "checks.jsonl"))


def test_the_checks_of_the_demo_tell_its_references_apart() -> None:
    """Of the 40 held-out pairs of each half; data/demo/README.md says these numbers."""
    checks, passed = open_checks("demo:checks"), {}
    for pair in read_pairs("demo:eval").pairs:
        check = check_of(checks, pair.id)
        assert check is not None, pair.id
        for side in ("chosen", "rejected"):
            passed.setdefault((check.group, side), []).append(check.hit(getattr(pair, side)) is not None)
    assert {key: (sum(found), len(found)) for key, found in passed.items()} == {
        ("harmful requests", "chosen"): (37, 40),
        ("harmful requests", "rejected"): (0, 40),
        ("everyday questions", "chosen"): (40, 40),
        ("everyday questions", "rejected"): (2, 40),
    }


def prompt(name: str) -> Prompt:
    return Prompt(name, (Message("user", f"what of {name}?"),), "f:1")


@pytest.mark.parametrize("names", [("pretrained", "after DPO"), ("pretrained", "after SFT", "after DPO")])
def test_answers_stand_side_by_side_with_what_was_found_in_them(names: tuple[str, ...]) -> None:
    checks = (Check("sums", "is right", "sum-*", ("30",)),)
    texts = {"sum-1": ["31", "30", "30"], "sum-2": ["", "31", "30"], "other": ["I can't help with that.", "Yes.", "a"]}
    rows = [
        (prompt(name), [Response(name, text, "length" if text == "a" else "stop") for text in given[-len(names) :]])
        for name, given in texts.items()
    ]
    samples = side_by_side(names, rows, checks)
    assert [tuple(answer.model for answer in sample.answers) for sample in samples.shown] == [names] * 3
    last = [sample.answers[-1] for sample in samples.shown]
    assert [(answer.note, answer.good) for answer in last] == [
        ("is right: yes (“30”)", True),
        ("is right: yes (“30”)", True),
        ("refuses: no", None),
    ]
    assert [answer.unfinished for answer in last] == [False, False, True]
    right, refused, others = samples.scores
    assert (right.passed, right.of, right.wanted) == ((0, 1, 2)[-len(names) :], 2, True)
    assert refused.wanted is None and others.group == "prompts" and others.of == 1
    text = "\n".join(samples.lines())
    assert "'what of sum-1?'" in text and "sums: is right" in text and "2 (100%)" in text


def test_models_are_called_by_the_stages_that_made_them() -> None:
    def names(epochs: float, loss: str) -> tuple[str, ...]:
        config = SimpleNamespace(sft=SimpleNamespace(epochs=epochs), loss=OBJECTIVES[loss]())
        return model_names(SimpleNamespace(config=config))

    assert names(0, "tisdpo") == ("pretrained", "after TIS-DPO")
    assert names(0.5, "dpo") == ("pretrained", "after SFT", "after DPO")
    assert len(set(names(1, "sft"))) == 3


def test_a_prompt_that_was_too_long_is_no_answer() -> None:
    samples = side_by_side(("a", "b"), [(prompt("p"), [Response("p", "", "too long"), Response("p", "x")])], ())
    assert "longer than data.max_length" in samples.shown[0].answers[0].note
    json.dumps([score.passed for score in samples.scores])
