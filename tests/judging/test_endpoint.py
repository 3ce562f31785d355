"""The endpoint judge against a server that answers slowly, wrongly, with 429 and 500, and dies."""

from __future__ import annotations

import dataclasses
import itertools
import json
import time

import pytest
from chat_stub import Stub

from tisdpo_jax.chat import EndpointFailed
from tisdpo_jax.errors import ConfigError
from tisdpo_jax.judging import JudgeEndpoint, Question, ask, ask_judge


@pytest.fixture
def serve():
    stubs = []

    def start(answer) -> tuple[Stub, JudgeEndpoint]:
        stub = Stub(answer)
        stubs.append(stub)
        return stub, JudgeEndpoint(
            stub.url, "some-model", criterion="Which is better?", timeout=5.0, retries=3, first_wait=0.01
        )

    yield start
    for stub in stubs:
        stub.stop()


QUESTION = Question("k", "What is 2 + 2? {braces}", "4", "verdict: first")
QUESTIONS = [Question(str(n), f"prompt {n}", "a", "b") for n in range(12)]


def test_what_is_asked(serve) -> None:
    stub, endpoint = serve(lambda n, body: "Because.\nverdict: second")
    reply = ask(dataclasses.replace(endpoint, key="secret"), QUESTION)
    assert (reply.verdict, reply.tries, reply.text) == ("second", 1, "Because.\nverdict: second")
    (asked,) = stub.requests
    assert asked["path"] == "/v1/chat/completions" and asked["model"] == "some-model" and asked["temperature"] == 0
    text = asked["messages"][-1]["content"]
    places = [
        text.index(part) for part in ("Which is better?", "What is 2 + 2? {braces}", "\n4\n", "\nverdict: first\n")
    ]
    assert places == sorted(places)
    assert stub.headers[0]["Authorization"] == "Bearer secret" and "secret" not in repr(endpoint)


BROKEN = {
    "status 429": (429, {"Retry-After": "0.05"}, b"slow down"),
    "status 500": (500, {}, b"oh no"),
    "status 503, strange date": (503, {"Retry-After": "Wed, 21 Oct 2026 07:28:00 GMT"}, b""),
    "no JSON": (200, {}, b"<html>busy</html>"),
    "other JSON": (200, {}, b'{"choices": []}'),
    "no text": (200, {}, b'{"choices": [{"message": {"content": null}}]}'),
    "hung up": None,
    "no verdict": "Both have their merits.",
}


@pytest.mark.parametrize("what", BROKEN)
def test_what_fails_is_tried_again(serve, what: str) -> None:
    stub, endpoint = serve(lambda n, body: BROKEN[what] if n < 2 else "verdict: first")
    began = time.monotonic()
    assert ask(endpoint, QUESTION).verdict == "first" and len(stub.requests) == 3
    if what == "status 429":
        assert time.monotonic() - began >= 0.1  # as the server asked


def test_a_slow_answer_is_not_waited_for(serve) -> None:
    def slow(n, body):
        time.sleep(0.6 if n == 0 else 0.0)
        return "verdict: tie"

    _, endpoint = serve(slow)
    reply = ask(dataclasses.replace(endpoint, timeout=0.2), QUESTION)
    assert (reply.verdict, reply.tries) == ("tie", 2)


def test_a_judge_that_never_says_which_is_counted_and_not_dropped(serve) -> None:
    stub, endpoint = serve(lambda n, body: "I like both." if n != 1 else BROKEN["status 500"])
    reply = ask(endpoint, QUESTION)
    assert (reply.verdict, reply.text, len(stub.requests)) == ("unparsable", "I like both.", 4)


@pytest.mark.parametrize("what", ["status 500", "hung up", "no JSON"])
def test_what_never_works_stops_and_says_why(serve, what: str) -> None:
    _, endpoint = serve(lambda n, body: BROKEN[what])
    with pytest.raises(EndpointFailed, match="no answer in 4 tries"):
        ask(endpoint, QUESTION)


@pytest.mark.parametrize("status", [400, 401, 404])
def test_what_trying_again_cannot_mend_is_not_tried_again(serve, status: int) -> None:
    stub, endpoint = serve(lambda n, body: (status, {}, b"no such model"))
    with pytest.raises(EndpointFailed, match=f"status {status}: no such model"):
        ask(endpoint, QUESTION)
    assert len(stub.requests) == 1


def test_waits_grow(serve) -> None:
    times = []
    _, endpoint = serve(lambda n, body: times.append(time.monotonic()) or BROKEN["status 500"])
    with pytest.raises(EndpointFailed):
        ask(dataclasses.replace(endpoint, first_wait=0.08), QUESTION)
    waits = [later - sooner for sooner, later in itertools.pairwise(times)]
    assert waits[0] >= 0.06 and waits[0] * 1.15 < waits[1] and waits[1] * 1.15 < waits[2]


def test_questions_are_asked_several_at_a_time_and_each_once(serve) -> None:
    stub, endpoint = serve(lambda n, body: time.sleep(0.05) or "verdict: first")
    taken = {}
    ask_judge(dataclasses.replace(endpoint, concurrency=4), QUESTIONS, lambda q, r: taken.update({q.key: r.verdict}))
    assert taken == {question.key: "first" for question in QUESTIONS} and len(stub.requests) == 12
    assert 1 < stub.most_at_once <= 4


def test_when_the_server_dies_what_was_answered_is_kept(serve) -> None:
    stub, endpoint = serve(lambda n, body: "verdict: first" if n < 6 else None)
    taken: list[str] = []
    with pytest.raises(EndpointFailed):
        ask_judge(dataclasses.replace(endpoint, concurrency=2, retries=1), QUESTIONS, lambda q, r: taken.append(q.key))
    assert (
        len(taken) == 6 and len(stub.requests) <= 6 + 2 * 4
    )  # the two that are lost, one more, and one that was answered before


def test_no_further_question_is_asked_while_replies_wait_to_be_taken(serve) -> None:
    stub, endpoint = serve(lambda n, body: "verdict: first" if n < 3 else None)
    with pytest.raises(EndpointFailed):
        ask_judge(dataclasses.replace(endpoint, concurrency=1, retries=0), QUESTIONS, lambda q, r: time.sleep(0.2))
    assert len(stub.requests) == 5  # one that was answered before is lost too: it is the endpoint


def test_nobody_at_the_address() -> None:
    gone = Stub(lambda n, body: "verdict: first")
    url = gone.url
    gone.stop()
    with pytest.raises(EndpointFailed, match="no answer in 2 tries"):
        ask(JudgeEndpoint(url, "m", criterion="c", retries=1, first_wait=0.01, timeout=1.0), QUESTION)
    with pytest.raises(ConfigError, match="HOST:PORT"):
        ask(JudgeEndpoint("http://[nowhere/v1", "m", criterion="c", retries=0), QUESTION)


def test_stopping_on_request_asks_no_more(serve) -> None:
    stub, endpoint = serve(lambda n, body: "verdict: first")
    taken: list[str] = []

    class Stop(Exception):
        pass

    def poll() -> None:
        if len(taken) >= 3:
            raise Stop

    with pytest.raises(Stop):
        ask_judge(dataclasses.replace(endpoint, concurrency=1), QUESTIONS, lambda q, r: taken.append(q.key), poll)
    assert 3 <= len(taken) <= 5 and len(stub.requests) <= 5


def reply_of(content: object, reason: str = "stop", **message: object) -> tuple[int, dict, bytes]:
    choice = {"message": {"content": content, **message}, "finish_reason": reason}
    return 200, {}, json.dumps({"choices": [choice]}).encode()


THOUGHT = "<think>The first is shorter. verdict: first? No.</think>\nThe second explains more.\n**Verdict: Second**"
UNDECIDED = {
    "filtered": (reply_of(None, "content_filter"), "filtered", "content_filter", 1),
    "refused": (reply_of(None, "stop", refusal="no"), "filtered", "refusal: no", 1),
    "cut off": (reply_of("verdict: first, or is it", "length"), "unparsable", "unfinished", 4),
    "cut off in thinking": (reply_of(None, "length", reasoning="hm"), "unparsable", "ran out in thinking", 4),
    "thoughts alone": (reply_of("<think>verdict: first"), "unparsable", "", 4),
    "empty": (reply_of(""), "unparsable", "", 4),
    "an error": ((200, {}, b'{"error": {"message": "odd"}}'), "failed", "odd", 1),
    "a refused request": ((400, {}, b'{"error": {"message": "odd"}}'), "failed", "status 400: odd", 1),
}


@pytest.mark.parametrize("what", UNDECIDED)
def test_one_comparison_without_a_verdict_is_counted_and_ends_nothing(serve, what: str) -> None:
    odd, verdict, reason, asked = UNDECIDED[what]
    stub, endpoint = serve(lambda n, body: odd if "prompt 1\n" in str(body["messages"][1]["content"]) else THOUGHT)
    taken = {}
    ask_judge(endpoint, QUESTIONS[:3], lambda q, r: taken.update({q.key: r}))
    assert {key: reply.verdict for key, reply in taken.items()} == {"0": "second", "1": verdict, "2": "second"}
    assert reason in taken["1"].reason and len(stub.requests) in (2 + asked, 3 + asked)  # one may be asked again
