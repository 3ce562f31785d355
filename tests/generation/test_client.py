"""One exchange: bounded in time and size, never redirected, and the key is nowhere but in its header."""

from __future__ import annotations

import contextlib
import email.utils
import itertools
import json
import time
import tracemalloc
from collections.abc import Iterator

import pytest
from chat_stub import Stub, mocked, reply_of

from tisdpo_jax.config import SamplingSection
from tisdpo_jax.errors import ConfigError
from tisdpo_jax.generation import Endpoint, client, open_endpoint
from tisdpo_jax.generation.client import complete, seconds
from tisdpo_jax.generation.replies import Trouble

BODY = {"model": "m", "messages": [{"role": "user", "content": "say 1"}]}


@contextlib.contextmanager
def served(answer) -> Iterator[Stub]:
    stub = Stub(answer)
    try:
        yield stub
    finally:
        stub.stop()


def trouble(endpoint: Endpoint) -> Trouble:
    with pytest.raises(Trouble) as caught:
        complete(endpoint, BODY)
    return caught.value


def test_what_goes_over_the_wire() -> None:
    with served(lambda n, body: "four") as stub:
        endpoint = Endpoint(stub.url + "/", "m", key="secret-key")
        assert complete(endpoint, BODY).text == "four" and "secret" not in repr(endpoint)
    assert stub.requests == [{"path": "/v1/chat/completions", **BODY}]
    (headers,) = stub.headers
    assert headers["Authorization"] == "Bearer secret-key" and headers["Content-Type"] == "application/json"
    assert headers["Accept-Encoding"] == "identity"  # nothing is unpacked


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize("key", ["", "a-secret-key"])
def test_no_redirect_is_followed(status: int, key: str) -> None:
    with served(lambda n, body: "never") as other:
        to = other.url.replace("http://", "http://me:secret@") + "/x?key=secret"
        with served(lambda n, body: (status, {"Location": to}, b"")) as stub:
            error = trouble(Endpoint(stub.url, "m", key=key))
    assert error.fate == "job" and f"status {status}: redirects to http://127.0.0.1" in error.why
    assert "secret" not in error.why and len(stub.requests) == 1 and not other.requests


def test_who_hangs_up_or_is_not_there_is_asked_again() -> None:
    with served(lambda n, body: None) as stub:
        assert trouble(Endpoint(stub.url, "m")).fate == "again"
    error = trouble(Endpoint(stub.url, "m"))
    assert (error.fate, error.kind) == ("again", "silence") and error.why.startswith("ConnectError: ")


def test_a_reply_that_trickles_is_given_up_when_its_time_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    """No single wait is long, and in the end it would be an answer."""
    clock = itertools.count(0.0, 0.1)
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    content = reply_of("late")[2]
    mocked(monkeypatch, lambda n, body: (200, {}, [bytes([byte]) for byte in content]))
    assert complete(Endpoint("http://h/v1", "m", timeout=100.0), BODY).text == "late"
    error = trouble(Endpoint("http://h/v1", "m", timeout=2.0))
    assert error.fate == "again" and "took too long" in error.why


def test_a_large_reply_is_not_read_to_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    pieces, read = 800, []  # of 64 KiB: 50 MiB

    def reply(n: int, body: dict) -> tuple[int, dict, Iterator[bytes]]:
        return (200 if n == 1 else 500), {}, (read.append(n) or b" " * 65536 for _ in range(pieces))

    mocked(monkeypatch, reply)
    tracemalloc.start()
    error = trouble(Endpoint("http://h/v1", "m"))
    assert (error.fate, error.kind) == ("question", "status") and "longer than 16 MiB" in error.why
    assert read.count(1) < pieces / 2 and tracemalloc.get_traced_memory()[1] < 3 * client.LARGEST_REPLY
    tracemalloc.stop()
    assert trouble(Endpoint("http://h/v1", "m")).fate == "again" and read.count(2) < 5


KEY = "sk-0123456789abcdef/x"


@pytest.mark.parametrize("key", [KEY, "short"])
@pytest.mark.parametrize(("status", "reason"), [(401, ""), (400, ""), (500, ""), (200, "content_filter"), (200, "odd")])
def test_a_key_that_the_server_echoes_is_nowhere(monkeypatch, key: str, status: int, reason: str) -> None:
    said = f"the header Authorization: Bearer {key} is not " + "x" * 230 + key
    reply = reply_of(said if len(key) > 8 else "", reason, refusal=said) if reason else None
    mocked(monkeypatch, lambda n, body: reply or (status, {}, json.dumps({"error": {"message": said}}).encode()))
    endpoint = Endpoint("http://h/v1", "m", key=key)
    everything = str(complete(endpoint, BODY)) if reason else f"{trouble(endpoint)} {trouble(endpoint).why}"
    assert "[key]" in everything and key[:8] not in everything


def test_words_of_a_server_are_one_short_printable_line(monkeypatch: pytest.MonkeyPatch) -> None:
    said = "\x1b[31mno\r\nsuch\tmodel\x00 " + "x" * 1000
    mocked(monkeypatch, lambda n, body: (400, {}, json.dumps({"error": {"message": said}}).encode()))
    why = trouble(Endpoint("http://h/v1", "m")).why
    assert why.startswith("status 400: [31mno such model x") and why.isprintable() and len(why) == 300


def test_addresses_and_keys_that_cannot_be_used_are_refused_without_repeating_secrets(monkeypatch) -> None:
    for address in ("not an address", "ftp://host/v1", "http://me:secret@host/v1", "http://host/v1?key=secret"):
        with pytest.raises(ConfigError, match="write http://HOST:PORT/v1") as caught:
            Endpoint(address, "m", fields="sampling.url")
        assert "secret" not in str(caught.value) and "check sampling.url" in str(caught.value)
    with pytest.raises(ConfigError, match="HOST:PORT"):
        Endpoint("http://[nowhere/v1", "m")
    with pytest.raises(ConfigError, match="holds blanks") as caught:
        Endpoint("http://127.0.0.1:9/v1", "m", key="a secret\nkey")
    assert "secret" not in str(caught.value)
    monkeypatch.setenv("B", " the-key\n")
    assert open_endpoint("http://h/v1", SamplingSection(), ("A", "B"), "sampling.url").key == "the-key"


def test_a_proxy_that_cannot_be_used_is_named_without_its_password(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "nonsense://me:secret@host:1")
    client._client.cache_clear()
    with pytest.raises(ConfigError, match="HTTP_PROXY") as caught:
        complete(Endpoint("http://h/v1", "m"), BODY)
    assert "secret" not in str(caught.value)


def test_what_a_server_asks_for_is_read() -> None:
    assert seconds("2") == 2.0 and seconds(None) == seconds("soon") == seconds("-1") == 0.0
    assert seconds("Wed, 21 Oct 2015 07:28:00 GMT") == 0.0
    assert 8 < seconds(email.utils.formatdate(time.time() + 10, usegmt=True)) <= 10


def test_the_log_of_the_client_holds_no_key(caplog: pytest.LogCaptureFixture) -> None:
    for name in (None, "httpx2", "httpcore2"):  # which the command makes quiet
        caplog.set_level(1, name)
    with served(lambda n, body: "four") as stub:
        complete(Endpoint(stub.url, "m", key=KEY), BODY)
    assert caplog.records and KEY not in caplog.text
