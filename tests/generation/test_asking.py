"""The HTTP engine against a server of our own that is slow, says nonsense, refuses, fails and dies."""

from __future__ import annotations

import contextlib
import email.utils
import itertools
import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from tisdpo_jax.chat import Endpoint, EndpointFailed, seconds
from tisdpo_jax.data import Message, Prompt
from tisdpo_jax.errors import ConfigError
from tisdpo_jax.sampling import SamplingParams
from tisdpo_jax.sampling.http import ask_endpoint
from tisdpo_jax.sampling.responses import Response

QUESTIONS = [
    Prompt(f"q{number}", (Message("system", "s"), Message("user", f"say {number}")), "test") for number in range(12)
]


@contextlib.contextmanager
def server(behave):
    """`behave(number of the try for this question, handler, body)` answers; yields (url, tries by question)."""
    tries, lock = {}, threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            name = body["messages"][-1]["content"]
            with lock:
                tries.setdefault(name, []).append((time.monotonic(), body, self.path, self.headers["Authorization"]))
                number = len(tries[name])
            behave(number, self, body)

        def log_message(self, *_):
            pass

    class Quiet(ThreadingHTTPServer):
        def handle_error(self, request, client_address):  # a client that gave up
            pass

    running = Quiet(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{running.server_port}/v1", tries
    finally:
        running.shutdown()
        thread.join()
        running.server_close()


def send(handler, status, content, **headers):
    handler.send_response(status)
    for name, value in headers.items():
        handler.send_header(name.replace("_", "-"), value)
    handler.send_header("Content-Length", str(len(content)))
    handler.end_headers()
    handler.wfile.write(content)


def good(handler, body, reason="stop"):
    text = body["messages"][-1]["content"].upper()
    choice = {"message": {"role": "assistant", "content": text}, "finish_reason": reason}
    send(handler, 200, json.dumps({"choices": [choice]}).encode())


def ask(url, questions=QUESTIONS, **options):
    found = {}

    def take(response):
        assert response.id not in found
        found[response.id] = response

    witness = options.pop("witness", None)
    settings = {"timeout": 5.0, "retries": 3, "concurrency": 4, "first_wait": 0.01, "key": "secret", **options}
    try:
        ask_endpoint(
            Endpoint(url, "some-model", **settings),
            questions,
            draw=SamplingParams(0.7),
            max_new_tokens=9,
            stop=("\n",),
            take=take,
            witness=witness,
        )
    except EndpointFailed as error:
        return found, str(error)
    return found, ""


def test_every_question_is_answered_once_as_it_was_asked():
    with server(
        lambda number, handler, body: good(handler, body, "length" if "7" in str(body["messages"]) else "stop")
    ) as (url, tries):
        found, error = ask(url)
    assert not error and {name: found[name].response for name in found} == {f"q{i}": f"SAY {i}" for i in range(12)}
    assert found["q7"].finish == "length" and found["q3"].finish == "stop"
    ((_, body, path, key),) = tries["say 3"]
    assert path == "/v1/chat/completions" and key == "Bearer secret"
    assert body["messages"][0] == {"role": "system", "content": "s"}
    assert (body["model"], body["temperature"], body["max_tokens"], body["stop"]) == ("some-model", 0.7, 9, ["\n"])
    assert len({asked[0][1]["seed"] for asked in tries.values()}) == 12


def fails(number, handler, body):
    """Each kind of failure on the first tries, by question."""
    kind = int(body["messages"][-1]["content"].split()[1]) % 6
    if number > 2 or kind == 0:
        good(handler, body)
    elif kind == 1:
        send(handler, 429, b"slow down", Retry_After="0.05")
    elif kind == 2:
        send(handler, 500, b"oops")
    elif kind == 3:
        send(handler, 200, b'{"choices": []}' if number == 1 else b"<html>")
    elif kind == 4:
        handler.connection.close()
    else:
        send(handler, 200, b'{"choices": [{"message": {"content": null}}]}')


def test_what_another_try_mends_is_tried_again():
    with server(fails) as (url, tries):
        found, error = ask(url)
    assert not error and len(found) == 12 and all(response.response.startswith("SAY") for response in found.values())
    assert {len(tries[f"say {i}"]) for i in (0, 6)} == {1}
    assert all(len(tries[f"say {i}"]) == 3 for i in range(12) if i % 6)


def test_a_server_is_given_the_time_it_asks_for_and_more_each_time():
    def busy(number, handler, body):
        good(handler, body) if number > 3 else send(
            handler, 429, b"", **({"Retry_After": "0.3"} if number == 1 else {})
        )

    with server(busy) as (url, tries):
        found, _ = ask(url, QUESTIONS[:1], first_wait=0.05)
    times = [at for at, *_ in tries["say 0"]]
    waits = [later - earlier for earlier, later in itertools.pairwise(times)]
    assert found and waits[0] >= 0.3 and waits[1] >= 0.075 and waits[2] >= 0.15
    assert seconds("2") == 2.0 and seconds(None) == seconds("soon") == seconds("-1") == 0.0
    assert 8 < seconds(email.utils.formatdate(time.time() + 10, usegmt=True)) <= 10


def test_a_slow_answer_is_asked_for_again():
    def slow(number, handler, body):
        if number == 1:
            handler.send_response(200)
            handler.end_headers()
            with contextlib.suppress(OSError):
                for _ in range(8):  # trickles: no single wait is long, and in the end it would be an answer
                    handler.wfile.write(b" ")
                    handler.wfile.flush()
                    time.sleep(0.1)
                handler.wfile.write(b'{"choices": [{"message": {"content": "late"}}]}')
        else:
            good(handler, body)

    with server(slow) as (url, tries):
        found, error = ask(url, QUESTIONS[:2], timeout=0.3)
    assert not error and len(found) == 2 and len(tries["say 0"]) == 2
    assert found["q0"].response == "SAY 0"


def test_a_server_that_dies_leaves_what_it_answered_and_the_rest_can_be_asked_again():
    count = threading.Semaphore(5)

    def dying(number, handler, body):
        if count.acquire(blocking=False):
            good(handler, body)
        else:
            send(handler, 503, b"")

    with server(dying) as (url, _):
        found, error = ask(url, retries=1, concurrency=2)
    assert len(found) == 5 and "503" in error and "the same command asks for the others" in error
    with server(lambda number, handler, body: good(handler, body)) as (url, tries):
        rest, error = ask(url, [question for question in QUESTIONS if question.id not in found])
    assert not error and len(tries) == 7 and found.keys() | rest.keys() == {question.id for question in QUESTIONS}
    found, error = ask(url, QUESTIONS[:1], retries=1)  # nobody listens any more
    assert not found and "no answer to 'q0' in 2 tries" in error


def error(status, **fields):
    return lambda handler: send(handler, status, json.dumps({"error": {"message": "odd prompt", **fields}}).encode())


def choice(content, reason, **message):
    reply = {"choices": [{"message": {"content": content, **message}, "finish_reason": reason}]}
    return lambda handler: send(handler, 200, json.dumps(reply).encode())


# what the server does with one question, each time; what becomes of it; how often it is asked with three retries
ODD = [
    (choice(None, "content_filter"), "filtered", "content_filter", 1),
    (error(400, code="content_filter"), "filtered", "status 400: odd prompt", 1),
    (choice(None, "length", reasoning_content="hm"), "length", "the tokens ran out in thinking", 1),
    (choice("half an ans", "abort"), "length", "finish_reason abort", 1),
    (error(200), "failed", "odd prompt", 1),
    (error(400), "failed", "status 400: odd prompt", 1),
    (error(403), "failed", "status 403: odd prompt", 1),
    (error(500), "failed", "no answer in 4 tries, the last: status 500: odd prompt", 4),
    (lambda handler: send(handler, 200, b'{"choices": []}'), "failed", "the reply has no choices", 3),
    (
        lambda handler: send(handler, 200, b"<html>"),
        "failed",
        "no answer in 4 tries, the last: the reply is no JSON",
        4,
    ),
    (lambda handler: send(handler, 200, b" " * 5000), "failed", "the reply is longer than", 1),
    (lambda handler: handler.connection.close(), "failed", "no answer in 4 tries", 4),
]


@pytest.mark.parametrize("odd", range(len(ODD)))
def test_a_question_that_the_server_does_not_answer_ends_no_job(odd, monkeypatch):
    monkeypatch.setattr("tisdpo_jax.chat._wire.LARGEST_REPLY", 4096)
    act, finish, reason, asked = ODD[odd]

    def behave(number, handler, body):
        act(handler) if body["messages"][-1]["content"] == "say 1" else good(handler, body)

    with server(behave) as (url, tries):
        found, failure = ask(url, QUESTIONS[:4], concurrency=2)
        assert not failure and len(found) == 4 and len(tries["say 1"]) == asked
        assert found["q1"].finish == finish and reason in found["q1"].reason
        assert all(found[f"q{n}"] == Response(f"q{n}", f"SAY {n}") for n in (0, 2, 3))
        # the only one that is left, of a job that has answers: it does not end the next one
        found, failure = ask(url, QUESTIONS[1:2], witness=QUESTIONS[0])
        assert not failure and found["q1"].finish == finish


@pytest.mark.parametrize(
    ("status", "content", "told"),
    [
        (
            400,
            b'{"error": {"message": "\'max_tokens\' is not supported"}}',
            "status 400: 'max_tokens' is not supported",
        ),
        (200, b"<html>hello</html>", "the reply is no JSON: '<html>hello</html>'"),
        (503, b"", "status 503"),
    ],
)
def test_what_is_wrong_with_all_questions_stops_soon_and_nothing_is_recorded(status, content, told):
    with server(lambda number, handler, body: send(handler, status, content)) as (url, tries):
        found, failure = ask(url, retries=1)
    assert not found and told in failure
    assert sum(map(len, tries.values())) <= 2 * 12
    with server(lambda number, handler, body: send(handler, status, content)) as (url, _):
        assert told in ask(url, QUESTIONS[:3], retries=0)[1]


def test_no_redirect_is_followed():
    with server(lambda number, handler, body: good(handler, body)) as (other, reached):
        for status in (301, 302, 303, 307, 308):
            to = other.replace("http://", "http://me:secret@") + "/x?key=secret"

            def away(number, handler, body, status=status, to=to):
                send(handler, status, b"", Location=to)

            for key in ("", "a-secret-key"):
                with server(away) as (url, tries):
                    found, failure = ask(url, QUESTIONS[:1], key=key)
                assert not found and f"status {status}: redirects to http://127.0.0.1" in failure
                assert "secret" not in failure and len(tries) == 1
    assert not reached


def test_a_key_that_the_server_echoes_is_in_no_message_and_no_answer(caplog):
    key = "sk-0123456789abcdef"
    for status, reason in ((401, ""), (400, ""), (500, ""), (200, "content_filter"), (200, "odd")):
        said = f"the header Authorization: Bearer {key} is not " + "x" * 230 + key

        def echo(number, handler, body, status=status, reason=reason, said=said):
            reply = {"error": {"message": said}}
            if reason:
                reply = {"choices": [{"message": {"content": said, "refusal": said}, "finish_reason": reason}]}
            send(handler, status, json.dumps(reply).encode())

        with server(echo) as (url, _):
            found, failure = ask(url, QUESTIONS[:1], key=key, retries=0)
        everything = f"{found} {failure} {caplog.text}"
        assert "[key]" in everything and key[:8] not in everything


def test_what_no_try_can_mend_stops_at_once():
    with server(lambda number, handler, body: send(handler, 401, b"no such key")) as (url, tries):
        found, failure = ask(url, concurrency=1)
    assert not found and "status 401: no such key" in failure and len(tries) == 1
    for address in ("not an address", "ftp://host/v1", "http://me:secret@host/v1", "http://host/v1?key=secret"):
        with pytest.raises(ConfigError, match="write http://HOST:PORT/v1") as caught:
            ask(address)
        assert "secret" not in str(caught.value)
    with pytest.raises(ConfigError) as caught:
        ask("http://127.0.0.1:9/v1", key="a secret\nkey")
    assert "secret" not in str(caught.value)


def test_a_stop_does_not_wait_for_a_server_that_hangs(monkeypatch):
    monkeypatch.setattr("tisdpo_jax.chat._jobs.GRACE", 0.0)
    asked, answer = threading.Event(), threading.Event()

    def hang(number, handler, body):
        asked.set()
        answer.wait()
        good(handler, body)

    def stop():
        if asked.is_set():
            raise KeyboardInterrupt

    with server(hang) as (url, _):
        with pytest.raises(KeyboardInterrupt):
            ask_endpoint(
                Endpoint(url, "m"), QUESTIONS[:1], draw=SamplingParams(), max_new_tokens=2, take=print, poll=stop
            )
        assert not answer.is_set()  # the server has not answered yet, and still we are here
        answer.set()


def test_polling_may_stop_the_job():
    taken = []

    def stop():
        raise KeyboardInterrupt

    with server(lambda number, handler, body: good(handler, body)) as (url, tries), pytest.raises(KeyboardInterrupt):
        endpoint = Endpoint(url, "m", concurrency=1)
        ask_endpoint(endpoint, QUESTIONS, draw=SamplingParams(), max_new_tokens=2, take=taken.append, poll=stop)
    assert 1 <= len(taken) == len(tries) < 12
