"""What a reply of an endpoint means: for its question, or for the whole job."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tisdpo_jax.generation.replies import Completion, Trouble, read_reply


def choice(content: Any, reason: Any = "stop", **message: Any) -> dict[str, Any]:
    return {"choices": [{"message": {"role": "assistant", "content": content, **message}, "finish_reason": reason}]}


ANSWERS = {
    "plain": (choice("four"), "four", "stop", ""),
    "no finish reason": ({"choices": [{"message": {"content": "four"}}]}, "four", "stop", ""),
    "Anthropic's word": (choice("four", "end_turn"), "four", "stop", ""),
    "empty": (choice(""), "", "stop", ""),
    "null": (choice(None), "", "stop", "no text (finish_reason stop)"),
    "thought only": (choice(None, reasoning_content="hm"), "", "stop", "thought, and said nothing"),
    "cut off": (choice("fo", "length"), "fo", "length", ""),
    "cut off in thinking": (choice(None, "length", reasoning_content="hm"), "", "length", "ran out in thinking"),
    "cut off in thinking, other name": (choice(None, "max_tokens", reasoning="hm"), "", "length", "in thinking"),
    "broken off": (choice("half an ans", "abort"), "half an ans", "length", "finish_reason abort"),
    "filtered": (choice(None, "content_filter"), "", "filtered", "content_filter"),
    "end filtered": (choice("I would", "content_filter"), "I would", "filtered", "content_filter"),
    "Google's word": (choice("", "SAFETY"), "", "filtered", "SAFETY"),
    "refusal": (choice(None, refusal="I cannot\nhelp"), "", "filtered", "refusal: I cannot\nhelp"),
    "parts": (choice([{"type": "text", "text": "fo"}, {"type": "output_text", "text": "ur"}]), "four", "stop", ""),
    "thinking in parts": (choice([{"type": "thinking"}, {"type": "text", "text": "four"}]), "four", "stop", ""),
    "tools": (choice(None, "tool_calls", tool_calls=[{}]), "", "failed", "tool_calls"),
    "error of a choice": (
        {"choices": [{"message": {"content": None}, "finish_reason": "error", "error": {"message": "gone"}}]},
        *("", "failed", "finish_reason 'error': gone"),
    ),
    "reason of another type": (choice("four", ["stop"]), "four", "failed", "['stop']"),
    "prompt too long": (
        {"error": {"message": "too long", "code": "context_length_exceeded"}},
        *("", "failed", "too long"),
    ),
    "Azure's filter": (
        {"error": {"message": "no", "code": "400", "innererror": {"code": "ResponsibleAIPolicyViolation"}}},
        *("", "filtered", "status 400: no"),
    ),
}


@pytest.mark.parametrize("name", ANSWERS)
def test_what_a_question_gets(name: str) -> None:
    reply, text, finish, reason = ANSWERS[name]
    found = read_reply(200, json.dumps(reply).encode())
    assert (
        (found.text, found.finish) == (text, finish) and reason in found.reason and bool(reason) == bool(found.reason)
    )


def test_which_filter_it_was_is_said() -> None:
    reply = choice(None, "content_filter")
    reply["choices"][0]["content_filter_results"] = {"hate": {"filtered": False}, "violence": {"filtered": True}}
    assert read_reply(200, json.dumps(reply).encode()).reason.strip() == "content_filter (violence)"


# content, and what is the question's result if no further try says more
UNREADABLE: dict[str, tuple[bytes, bool]] = {
    "HTML": (b"<html>busy</html>", False),
    "nothing": (b"", False),
    "not UTF-8": (b"\xff\xfe", False),
    "nested": (b"[" * 200_000, False),
    "a list": (b"[]", False),
    "another object": (b'{"ok": true}', False),
    "choices of another type": (b'{"choices": {}}', False),
    "no choices": (b'{"choices": []}', True),
    "a choice of another type": (b'{"choices": [3]}', True),
    "no message": (b'{"choices": [{"text": "four"}]}', True),
    "no content": (b'{"choices": [{"message": {}}]}', True),
    "a number": (json.dumps(choice(4)).encode(), True),
    "a picture": (json.dumps(choice([{"type": "image_url"}])).encode(), True),
}


@pytest.mark.parametrize("name", UNREADABLE)
def test_what_cannot_be_read_is_asked_for_again(name: str) -> None:
    content, settled = UNREADABLE[name]
    with pytest.raises(Trouble) as caught:
        read_reply(200, content)
    found = caught.value.settled
    assert caught.value.fate == "again" and caught.value.kind == ("reply" if settled else "status")
    assert (isinstance(found, Completion) and found.finish == "failed" and bool(found.reason)) == settled


@pytest.mark.parametrize(
    ("status", "error", "kind"),
    [
        (200, {"error": "out of credits"}, "reply"),
        (200, {"error": {"message": "odd", "code": 400}}, "reply"),
        (200, {"object": "error", "message": "odd"}, "reply"),
        (400, {"error": {"message": "odd"}}, "status"),
        (403, {"error": {"message": "flagged"}}, "status"),
        (422, {"detail": [{"msg": "odd"}]}, "status"),
        (413, None, "status"),
        (401, {"error": {"message": "key"}}, "job"),
        (404, {"message": "no such model"}, "job"),
        (200, {"error": {"message": "no such model", "code": 404}}, "job"),
        (400, {"error": {"message": "x", "code": "unsupported_parameter"}}, "job"),
        (400, {"error": {"message": "x", "param": "temperature"}}, "job"),
        (429, {"error": {"message": "pay", "code": "insufficient_quota"}}, "job"),
        (429, {"error": {"message": "slow down"}}, "again"),
        (503, None, "again"),
        (200, {"error": {"message": "busy", "code": 503}}, "again"),
        (200, {"error": {"message": "busy", "type": "overloaded_error"}}, "again"),
    ],
)
def test_errors_are_of_the_question_of_the_job_or_pass(status: int, error: Any, kind: str) -> None:
    content = b"odd" if error is None else json.dumps(error).encode()
    with pytest.raises(Trouble) as caught:
        read_reply(status, content, wait=7.0)
    fates = {"reply": ("question", "reply"), "status": ("question", "status")}
    assert (caught.value.fate, caught.value.kind) == fates.get(kind, (kind, "silence"))
    assert caught.value.wait == (7.0 if kind == "again" else 0.0)
