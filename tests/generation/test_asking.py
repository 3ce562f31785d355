"""Many questions to an endpoint that is slow, says nonsense, refuses, fails and dies: none is lost or settled twice."""

from __future__ import annotations

import dataclasses
import json
import threading

import httpx2
import pytest
from chat_stub import mocked, reply_of
from hypothesis import given, settings
from hypothesis import strategies as st

from tisdpo_jax.data import Message, Prompt
from tisdpo_jax.errors import DataError
from tisdpo_jax.generation import (
    Completion,
    Endpoint,
    EndpointFailed,
    Options,
    Response,
    SamplingParams,
    ask_all,
    ask_endpoint,
    asking,
)
from tisdpo_jax.generation.asking import ask
from tisdpo_jax.generation.replies import Trouble

PROMPTS = [Prompt(f"q{n}", (Message("system", "s"), Message("user", f"say {n}")), "test") for n in range(12)]
OPTIONS = Options(SamplingParams(0.7), max_new_tokens=9, stop=("\n",))
ENDPOINT = Endpoint("http://host/v1", "some-model", key="a-secret-key", retries=3, concurrency=4, first_wait=0.0)


def asked(prompts=PROMPTS, witness=None, **patience):
    """Responses by id, and what stopped the job."""
    found: dict[str, Response] = {}

    def take(response: Response) -> None:
        assert response.id not in found
        found[response.id] = response

    try:
        ask_endpoint(dataclasses.replace(ENDPOINT, **patience), prompts, OPTIONS, take=take, witness=witness)
    except EndpointFailed as error:
        return found, str(error)
    return found, ""


def good(body: dict, reason: str = "stop") -> tuple[int, dict, bytes]:
    return reply_of(body["messages"][-1]["content"].upper(), reason)


def test_every_prompt_is_answered_once_as_it_was_asked(monkeypatch) -> None:
    tries = mocked(monkeypatch, lambda n, body: good(body, "length" if "7" in str(body["messages"]) else "stop"))
    found, error = asked()
    assert not error and {name: one.response for name, one in found.items()} == {f"q{n}": f"SAY {n}" for n in range(12)}
    assert found["q7"].finish == "length" and found["q3"].finish == "stop"
    (body,) = tries["say 3"]
    assert body["messages"] == [{"role": "system", "content": "s"}, {"role": "user", "content": "say 3"}]
    assert (body["model"], body["temperature"], body["max_tokens"], body["stop"]) == ("some-model", 0.7, 9, ["\n"])
    assert len({bodies[0]["seed"] for bodies in tries.values()}) == 12


def test_an_endpoint_is_not_asked_with_half_a_prompt() -> None:
    prompt = Prompt("1/main/0", (Message("user", "hi", '{"name": "Bob"}'),), "test")
    with pytest.raises(DataError, match=r"1/main/0: sampling\.engine http sends roles and text"):
        asked([prompt])


FAILURES = {
    "busy": (429, {"Retry-After": "0"}, b"slow down"),
    "broken": (500, {}, b"oops"),
    "no JSON": (200, {}, b"<html>"),
    "no choices": (200, {}, b'{"choices": []}'),
    "no text": (200, {}, b'{"choices": [{"message": {"content": null}}]}'),
    "lost": httpx2.ReadError("gone"),
    "slow": httpx2.ReadTimeout("too slow"),
}


@pytest.mark.parametrize("what", FAILURES)
def test_what_another_try_mends_is_tried_again(monkeypatch, what: str) -> None:
    tries = mocked(
        monkeypatch,
        lambda n, body: FAILURES[what] if n < 3 and body["messages"][-1]["content"] == "say 1" else good(body),
    )
    found, error = asked(PROMPTS[:2])
    assert not error and {one.response for one in found.values()} == {"SAY 0", "SAY 1"}
    assert (len(tries["say 0"]), len(tries["say 1"])) == (1, 3)


class Waits(threading.Event):
    """Notes how long it was waited for, and waits for nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.seconds: list[float] = []

    def wait(self, timeout: float | None = None) -> bool:
        self.seconds.append(timeout or 0.0)
        return False


def test_a_server_is_given_the_time_it_asks_for_and_more_each_time(monkeypatch) -> None:
    def busy(n: int, body: dict) -> object:
        return (429, {"Retry-After": "30"} if n == 2 else {"Retry-After": "1e9"} if n == 6 else {}, b"")

    mocked(monkeypatch, busy)
    halt = Waits()
    patient = dataclasses.replace(ENDPOINT, retries=6, first_wait=1.0)
    outcome = ask(patient, {"messages": [{"content": "a"}]}, halt)
    assert isinstance(outcome, Trouble) and "no answer in 7 tries, the last: status 429" in outcome.why
    assert len(halt.seconds) == 6 and halt.seconds[1] == 30.0 and halt.seconds[5] == asking.LONGEST_WAIT
    for number in (0, 2, 3, 4):
        assert 0.75 * 2**number <= halt.seconds[number] <= 1.25 * 2**number
    halt = threading.Event()
    halt.set()
    assert ask(ENDPOINT, {"messages": [{"content": "b"}]}, halt) is None  # between two tries


def test_a_server_that_dies_leaves_what_it_answered_and_the_rest_can_be_asked_again(monkeypatch) -> None:
    left, lock = iter(range(5)), threading.Lock()

    def dying(n: int, body: dict) -> object:
        with lock:
            return good(body) if next(left, None) is not None else (503, {}, b"")

    mocked(monkeypatch, dying)
    found, error = asked(retries=1, concurrency=2)
    assert len(found) == 5 and "503" in error and "the same command asks for the others" in error
    tries = mocked(monkeypatch, lambda n, body: good(body))
    rest, error = asked([prompt for prompt in PROMPTS if prompt.id not in found])
    assert not error and len(tries) == 7 and found.keys() | rest.keys() == {prompt.id for prompt in PROMPTS}


def error(status: int, **fields: object) -> tuple[int, dict, bytes]:
    return status, {}, json.dumps({"error": {"message": "odd prompt", **fields}}).encode()


# what the server does with one question, each time; what becomes of it; how often it is asked with three retries
ODD = [
    (reply_of(None, "content_filter"), "filtered", "content_filter", 1),
    (error(400, code="content_filter"), "filtered", "status 400: odd prompt", 1),
    (reply_of(None, "length", reasoning_content="hm"), "length", "the tokens ran out in thinking", 1),
    (reply_of("half an ans", "abort"), "length", "finish_reason abort", 1),
    (error(200), "failed", "odd prompt", 1),
    (error(400), "failed", "status 400: odd prompt", 1),
    (error(403), "failed", "status 403: odd prompt", 1),
    (error(500), "failed", "no answer in 4 tries, the last: status 500: odd prompt", 4),
    ((200, {}, b'{"choices": []}'), "failed", "the reply has no choices", 3),
    ((200, {}, b"<html>"), "failed", "no answer in 4 tries, the last: the reply is no JSON", 4),
    ((200, {}, b" " * 5000), "failed", "the reply is longer than", 1),
    (httpx2.RemoteProtocolError("hung up"), "failed", "no answer in 4 tries", 4),
]


@pytest.mark.parametrize("odd", range(len(ODD)))
def test_a_prompt_that_the_server_does_not_answer_ends_no_job(odd: int, monkeypatch) -> None:
    monkeypatch.setattr("tisdpo_jax.generation.client.LARGEST_REPLY", 4096)
    reply, finish, reason, count = ODD[odd]
    tries = mocked(monkeypatch, lambda n, body: reply if body["messages"][-1]["content"] == "say 1" else good(body))
    found, failure = asked(PROMPTS[:4], concurrency=2)
    assert not failure and len(found) == 4 and len(tries["say 1"]) == count
    assert found["q1"].finish == finish and reason in found["q1"].reason
    assert all(found[f"q{n}"] == Response(f"q{n}", f"SAY {n}") for n in (0, 2, 3))
    # the only one that is left, of a job that has answers: it does not end the next one
    found, failure = asked(PROMPTS[1:2], witness=PROMPTS[0])
    assert not failure and found["q1"].finish == finish


@pytest.mark.parametrize(
    ("reply", "told"),
    [
        ((400, {}, b'{"error": {"message": "\'max_tokens\' is not supported"}}'), "status 400: 'max_tokens' is not"),
        ((200, {}, b"<html>hello</html>"), "the reply is no JSON: '<html>hello</html>'"),
        ((503, {}, b""), "status 503"),
    ],
)
def test_what_is_wrong_with_all_prompts_stops_soon_and_nothing_is_recorded(reply, told: str, monkeypatch) -> None:
    tries = mocked(monkeypatch, lambda n, body: reply)
    found, failure = asked(retries=1)
    assert not found and told in failure and sum(map(len, tries.values())) <= 2 * 12
    assert told in asked(PROMPTS[:3], retries=0)[1]


def test_what_no_try_can_mend_stops_at_once(monkeypatch) -> None:
    tries = mocked(monkeypatch, lambda n, body: (401, {}, b"no such key"))
    found, failure = asked(concurrency=1)
    assert not found and "status 401: no such key; check its address and the key" in failure and len(tries) == 1


# Orchestration alone: what comes of a question is given, and nothing is sent.

OUTCOMES = ["answer", "reply", "status", "silence"]


def behaving(patch, outcome_of) -> list[str]:
    """`complete` does what `outcome_of(name, number of its try)` says; returns the names in the order of asking."""
    log: list[str] = []
    lock = threading.Lock()

    def complete(endpoint: Endpoint, body: dict) -> Completion:
        with lock:
            log.append(body["name"])
            number = log.count(body["name"])
        outcome = outcome_of(body["name"], number)
        if outcome == "answer":
            return Completion(body["name"])
        raise Trouble(outcome, "job" if outcome == "job" else "question", kind=outcome)

    patch.setattr(asking, "complete", complete)
    return log


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from(OUTCOMES), max_size=14), st.integers(1, 4), st.booleans())
def test_no_question_is_lost_or_settled_twice(outcomes: list[str], concurrency: int, witnessed: bool) -> None:
    """An endpoint that does the same to a question each time: where it works, all are settled; else it is said."""
    names = [str(number) for number in range(len(outcomes))]
    taken: dict[str, Completion] = {}

    def take(name: str, completion: Completion) -> None:
        assert name not in taken
        taken[name] = completion

    with pytest.MonkeyPatch.context() as patch:
        behaving(patch, lambda name, n: "answer" if name == "witness" else outcomes[int(name)])
        witness = {"name": "witness"} if witnessed else None
        endpoint = dataclasses.replace(ENDPOINT, concurrency=concurrency)
        failed = False
        try:
            ask_all(endpoint, {name: {"name": name} for name in names}, take, witness=witness)
        except EndpointFailed:
            failed = True
    works = witnessed or "answer" in outcomes
    if not failed:
        assert sorted(taken, key=int) == names
    assert not (failed and witnessed) and (works or failed or set(outcomes) <= {"reply"})
    assert all(one.finish == ("stop" if outcomes[int(name)] == "answer" else "failed") for name, one in taken.items())


def test_not_more_are_asked_at_a_time_than_wanted(monkeypatch) -> None:
    meeting = threading.Barrier(3)  # nobody goes on alone

    def complete(endpoint: Endpoint, body: dict) -> Completion:
        meeting.wait(timeout=20)
        return Completion("")

    monkeypatch.setattr(asking, "complete", complete)
    taken: list[str] = []
    endpoint = dataclasses.replace(ENDPOINT, concurrency=3)
    ask_all(endpoint, {str(n): {} for n in range(12)}, lambda name, _: taken.append(name))
    assert sorted(taken, key=int) == [str(n) for n in range(12)] and not meeting.broken


def test_no_further_question_is_asked_once_the_endpoint_is_gone(monkeypatch) -> None:
    log = behaving(monkeypatch, lambda name, n: "answer" if int(name) < 3 and n == 1 else "silence")
    taken: list[str] = []
    with pytest.raises(EndpointFailed):
        endpoint = dataclasses.replace(ENDPOINT, concurrency=1)
        ask_all(endpoint, {str(n): {"name": str(n)} for n in range(12)}, lambda name, _: taken.append(name))
    # one that was answered before is lost too: it is the endpoint
    assert taken == ["0", "1", "2"] and log == ["0", "1", "2", "3", "2"]


class Stop(Exception):
    pass


@pytest.mark.parametrize("who", ["take", "poll", "job"])
def test_after_an_error_nothing_more_is_asked_and_what_is_on_its_way_is_taken(who: str, monkeypatch) -> None:
    log = behaving(monkeypatch, lambda name, n: "job" if who == "job" and name == "3" else "answer")
    taken: list[str] = []

    def take(name: str, _: Completion) -> None:
        taken.append(name)
        if who == "take" and len(taken) == 3:
            raise Stop

    def poll() -> None:
        if who == "poll" and len(taken) >= 3:
            raise Stop

    with pytest.raises(EndpointFailed if who == "job" else Stop):
        endpoint = dataclasses.replace(ENDPOINT, concurrency=2)
        ask_all(endpoint, {str(n): {"name": str(n)} for n in range(40)}, take, poll)
    assert 3 <= len(taken) <= 7 and sorted(taken) == sorted(name for name in log if who != "job" or name != "3")


def test_a_stop_does_not_wait_for_a_server_that_hangs(monkeypatch) -> None:
    monkeypatch.setattr(asking, "GRACE", 0.0)
    begun, answer = threading.Event(), threading.Event()

    def hang(endpoint: Endpoint, body: dict) -> Completion:
        begun.set()
        answer.wait(timeout=60)
        return Completion("")

    def stop() -> None:
        if begun.is_set():
            raise KeyboardInterrupt

    monkeypatch.setattr(asking, "complete", hang)
    before = set(threading.enumerate())
    with pytest.raises(KeyboardInterrupt):
        ask_all(ENDPOINT, {"a": {}}, lambda *_: None, stop)
    assert all(thread.daemon for thread in set(threading.enumerate()) - before)  # nor does the end of the process
    assert not answer.is_set()  # the server has not answered yet, and still we are here
    answer.set()
