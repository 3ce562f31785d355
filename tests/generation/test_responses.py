"""Files of responses and of verdicts: nothing is lost, nothing is said twice, and errors name the line."""

from __future__ import annotations

import json

import pytest

from tisdpo_jax.data import Message, Prompt
from tisdpo_jax.errors import CheckpointError, DataError
from tisdpo_jax.generation import Lines, Response, as_line, check_key, read_answers, read_response, summary
from tisdpo_jax.generation.responses import read_responses

SOME = [
    Response("a/plus/0", "one\nline \u2028 \ud800 早上好 👩‍👩‍👧", "stop", (1, 2), (-0.5, -1.25)),
    Response("b", "", "length"),
    Response("c", "", "too long"),
    Response("d", "", "filtered", reason="why"),
]


def resumed(path) -> list[Response]:
    return [read_response(record, where) for where, record in Lines(path).rows.values()]


def test_what_is_written_is_read_and_the_first_counts(tmp_path) -> None:
    path = tmp_path / "new" / "responses.jsonl"
    assert resumed(path) == []
    lines = Lines(path)
    lines.add(map(as_line, SOME[:1]))
    lines.add(map(as_line, SOME[1:]))
    lines.add([{"id": "b", "response": "other"}])
    assert resumed(path) == SOME and lines.get("b") == as_line(SOME[1]) and lines.get("x") is None
    assert read_responses(path, ["c", "b", "a/plus/0", "d"]).keys() == {"a/plus/0", "b", "c", "d"}
    assert [one.empty for one in SOME] == [False, True, False, True]
    assert [one.text for one in SOME] == [SOME[0].response, "", None, None]


def test_a_line_that_was_torn_by_a_kill_is_cut_off(tmp_path, caplog) -> None:
    path = tmp_path / "responses.jsonl"
    Lines(path).add(map(as_line, SOME))
    whole = path.read_bytes()
    for cut in range(whole[:-1].rfind(b"\n") + 1, len(whole)):
        path.write_bytes(whole[:cut])
        lines = Lines(path)
        assert list(lines.rows) == ["a/plus/0", "b", "c"]
        lines.add(map(as_line, SOME))
        assert path.read_bytes() == whole
    assert "not written to its end" in caplog.text
    path.write_bytes(whole[:5])
    assert resumed(path) == [] and path.read_bytes() == b"" and resumed(path) == []


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("{", ":5: not JSON"),
        ("[1]", ":5: not a record of this file"),
        ('{"id": "e"}', ":5: id 'e' has no text"),
        ('{"id": "e", "response": "x", "finish": "maybe"}', ":5: finish is 'maybe'"),
        ('{"id": "e", "response": "x", "reason": 3}', ":5: reason is 3"),
        ('{"id": "e", "response": "x", "ids": ["a"]}', ":5: ids must be a list of numbers"),
        ('{"id": "b", "response": "x"}', ":5: a second record for id 'b', as at line 2"),
        ('{"id": "f", "response": "x"}', ":5: id 'f' is none of those"),
        ("", "1 of 5 responses are missing, for ids 'e'"),
    ],
)
def test_what_is_wrong_is_named_with_its_line(tmp_path, line: str, told: str) -> None:
    path = tmp_path / "responses.jsonl"
    Lines(path).add(map(as_line, SOME))
    with path.open("a") as file:
        file.write(line + "\n")
    with pytest.raises(DataError) as caught:
        read_responses(path, ["a/plus/0", "b", "c", "d", "e"])
    assert told in str(caught.value) and str(path) in str(caught.value)
    if "none of those" not in told and "missing" not in told:
        with pytest.raises(DataError, match=rf"responses\.jsonl{told[:3]}"):
            resumed(path)


def test_a_file_of_others_needs_id_and_response_alone(tmp_path) -> None:
    path = tmp_path / "theirs.jsonl"
    text = json.dumps({"id": 7, "response": "é \u2028", "model": "x"}, ensure_ascii=False)
    path.write_text(text + "\n", encoding="utf-8")
    assert read_responses(path, ["7"]) == {"7": Response("7", "é \u2028")}


def test_answers_of_a_file_go_by_id_or_prompt_and_what_is_none_is_none(tmp_path) -> None:
    path = tmp_path / "answers.jsonl"
    rows = [
        {"id": "a", "response": "x"},
        {"prompt": "say b", "answer": "y"},
        {"id": "c", "response": "", "finish": "failed"},
    ]
    path.write_text("\n".join(map(json.dumps, rows)) + "\n")
    prompts = [Prompt(name, (Message("user", f"say {name}"),), "t") for name in "abc"]
    assert read_answers(str(path), prompts) == ["x", "y", None]
    with pytest.raises(DataError, match="answers none of the 1 prompts"):
        read_answers(str(path), prompts[2:])


def test_answers_of_something_else_are_refused_by_what_differs(tmp_path) -> None:
    path = tmp_path / "responses.jsonl"
    for _ in range(2):
        check_key(path, {"sampling": {"seed": 0}, "model": "m"})
    with pytest.raises(CheckpointError, match=r"sampling\.seed \(was 0, now 1\).*responses\.key\.json"):
        check_key(path, {"sampling": {"seed": 1}, "model": "m"})


def test_what_became_of_the_prompts_is_counted_and_reasons_are_listed() -> None:
    responses = [*SOME, *(Response(f"r{n}", "", "failed", reason="no") for n in range(25))]
    first, *others = summary(responses).split("\n")
    counts = "0 empty, 1 with a prompt that is too long, 1 filtered, 25 failed, 1 unfinished"
    assert first == f"29 answers: {counts}" and others[0] == "  d: filtered: why" and len(others) == 21
    assert "6 more" in others[-1]
