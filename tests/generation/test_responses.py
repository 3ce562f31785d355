"""Files of responses: nothing is lost, nothing is said twice, and errors name the line."""

from __future__ import annotations

import json

import pytest

from tisdpo_jax.errors import DataError
from tisdpo_jax.sampling.responses import Response, append_responses, read_responses, resume_responses

SOME = [
    Response("a/plus/0", "one\nline \u2028 \ud800", "stop", (1, 2), (-0.5, -1.25)),
    Response("b", "", "length"),
    Response("c", "", "too long"),
]


def test_what_is_written_is_read(tmp_path):
    path = tmp_path / "new" / "responses.jsonl"
    assert resume_responses(path) == {}
    append_responses(path, SOME[:1])
    append_responses(path, SOME[1:])
    assert list(resume_responses(path).values()) == SOME
    assert read_responses(path, ["c", "b", "a/plus/0"]).keys() == {"a/plus/0", "b", "c"}
    assert SOME[1].empty and not SOME[0].empty and not SOME[2].empty


def test_a_line_that_was_torn_by_a_kill_is_cut_off(tmp_path):
    path = tmp_path / "responses.jsonl"
    append_responses(path, SOME)
    whole = path.read_bytes()
    for cut in range(whole[:-1].rfind(b"\n") + 1, len(whole)):
        path.write_bytes(whole[:cut])
        assert list(resume_responses(path)) == ["a/plus/0", "b"]
        append_responses(path, SOME[2:])
        assert path.read_bytes() == whole


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("{", ":4: not JSON"),
        ("[1]", ":4: not a response"),
        ('{"id": "d"}', ":4: id 'd' has no text"),
        ('{"id": "d", "response": "x", "finish": "maybe"}', ":4: finish is 'maybe'"),
        ('{"id": "b", "response": "x"}', ":4: a second response for id 'b', as at line 2"),
        ('{"id": "d", "response": "x"}', ":4: id 'd' is none of those"),
        ("", "1 of 4 responses are missing, for ids 'e'"),
    ],
)
def test_what_is_wrong_is_named_with_its_line(tmp_path, line, told):
    path = tmp_path / "responses.jsonl"
    append_responses(path, SOME)
    with path.open("a") as file:
        file.write(line + "\n")
    with pytest.raises(DataError) as caught:
        read_responses(path, ["a/plus/0", "b", "c", "e"])
    assert told in str(caught.value) and str(path) in str(caught.value)


def test_a_file_of_others_needs_id_and_response_alone(tmp_path):
    path = tmp_path / "theirs.jsonl"
    text = json.dumps({"id": 7, "response": "é \u2028", "model": "x"}, ensure_ascii=False)
    path.write_text(text + "\n", encoding="utf-8")
    assert read_responses(path, ["7"]) == {"7": Response("7", "é \u2028")}
