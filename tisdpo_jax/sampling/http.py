"""Answers from an OpenAI-compatible endpoint: vLLM on a TPU or GPU, or any other server of chat completions.

What another try may mend is tried again, each time after a longer wait: time-outs, lost connections, status 408, 409,
425, 429 and 5xx, bodies that are no chat completion. What it cannot mend stops the job; answers until then are kept by
the caller, and the same command asks for the others.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import email.utils
import hashlib
import http.client
import json
import random
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from typing import Any

from tisdpo_jax.errors import ConfigError, UserError
from tisdpo_jax.sampling._draw import Draw
from tisdpo_jax.sampling.responses import Response

LONGEST_WAIT = 60.0  # seconds between two tries
_RETRIED = {408, 409, 425, 429}  # and everything from 500 on


@dataclasses.dataclass(frozen=True)
class Endpoint:
    """Where to ask, and how patiently."""

    url: str  # up to and with "/v1"
    model: str
    key: str = dataclasses.field(default="", repr=False)
    timeout: float = 120.0  # seconds for one answer
    retries: int = 6
    concurrency: int = 8
    first_wait: float = 0.5  # seconds before the second try; doubled each time, give or take a quarter


@dataclasses.dataclass(frozen=True)
class Question:
    """A conversation that waits for an answer."""

    id: str
    messages: tuple[tuple[str, str], ...]  # (role, content)


class EndpointFailed(UserError):
    """The endpoint does not answer, or not in a way that another try could mend."""


class _Again(Exception):
    """This try failed; `wait` is what the server asked for, in seconds."""

    def __init__(self, why: str, wait: float = 0.0) -> None:
        super().__init__(why)
        self.wait = wait


def ask_all(
    endpoint: Endpoint,
    questions: Sequence[Question],
    *,
    draw: Draw,
    max_new_tokens: int,
    stop: Sequence[str] = (),
    seed: int = 0,
    take: Callable[[Response], None],
    poll: Callable[[], None] = lambda: None,
) -> None:
    """Asks every question, several at a time; `take` gets the responses one at a time, in any order.

    `poll` is called between responses and may raise. After an error nothing more is asked; what is on its way is still
    taken. Each question has a seed of its own, which not every server honours.

    Raises: EndpointFailed, ConfigError.
    """
    halt = threading.Event()
    failure: BaseException | None = None

    def one(question: Question) -> Response | None:
        if halt.is_set():
            return None
        try:
            return _ask(endpoint, question, _body(endpoint, question, draw, max_new_tokens, stop, seed), halt)
        except BaseException:
            halt.set()
            raise

    with concurrent.futures.ThreadPoolExecutor(endpoint.concurrency) as pool:
        waiting = [pool.submit(one, question) for question in questions]
        for done in concurrent.futures.as_completed(waiting):
            try:
                response = done.result()
                if response is not None:
                    take(response)
                if failure is None:
                    poll()
            except BaseException as error:
                halt.set()
                failure = failure or error
    if failure is not None:
        raise failure


def _ask(endpoint: Endpoint, question: Question, body: bytes, halt: threading.Event) -> Response | None:
    """The response after as many tries as it takes; None when `halt` is set between two of them."""
    last = _Again("")
    for number in range(endpoint.retries + 1):
        if number:
            wait = endpoint.first_wait * 2.0 ** (number - 1) * random.uniform(0.75, 1.25)
            if halt.wait(min(LONGEST_WAIT, max(wait, last.wait))):
                return None
        try:
            return _read(question.id, _post(endpoint, body))
        except _Again as error:
            last = error
    raise EndpointFailed(
        f"{endpoint.url}: no answer to {question.id!r} in {endpoint.retries + 1} tries, the last: {last}; "
        "answers so far are kept, the same command asks for the others"
    )


def _body(endpoint: Endpoint, question: Question, draw: Draw, new: int, stop: Sequence[str], seed: int) -> bytes:
    own = int.from_bytes(hashlib.sha256(f"{seed}\0{question.id}".encode()).digest()[:4], "little") >> 1
    messages = [{"role": role, "content": content} for role, content in question.messages]
    body: dict[str, Any] = {"model": endpoint.model, "messages": messages, "max_tokens": new, "seed": own}
    body |= {"temperature": draw.temperature, "top_p": draw.top_p, "stream": False}
    # not in the protocol, but vLLM and others know them
    body |= ({"top_k": draw.top_k} if draw.top_k else {}) | ({"min_p": draw.min_p} if draw.min_p else {})
    return json.dumps(body | ({"stop": list(stop)} if stop else {})).encode()


def _post(endpoint: Endpoint, body: bytes) -> bytes:
    """The body of the reply. Raises: _Again, or what stops the job."""
    headers = {"Content-Type": "application/json"} | (
        {"Authorization": f"Bearer {endpoint.key}"} if endpoint.key else {}
    )
    address = f"{endpoint.url.rstrip('/')}/chat/completions"
    until = time.monotonic() + endpoint.timeout
    try:
        request = urllib.request.Request(address, data=body, headers=headers, method="POST")
        with urllib.request.urlopen(request, timeout=endpoint.timeout) as reply:
            parts = []
            while part := reply.read1(65536):  # the time-out of a socket begins anew with every byte that trickles in
                parts.append(part)
                if time.monotonic() > until:
                    raise TimeoutError("the answer took too long")
            return b"".join(parts)
    except urllib.error.HTTPError as error:
        with error:
            said = error.read(300).decode("utf-8", "replace").strip()
        if error.code in _RETRIED or error.code >= 500:
            raise _Again(f"status {error.code}", _seconds(error.headers.get("Retry-After"))) from None
        raise EndpointFailed(
            f"{address}: status {error.code}: {said or error.reason}; "
            "check sampling.url, sampling.endpoint_model and the key"
        ) from None
    except (OSError, http.client.HTTPException) as error:
        raise _Again(f"{type(error).__name__}: {getattr(error, 'reason', error)}") from None
    except ValueError as error:
        raise ConfigError(f"sampling.url {endpoint.url}: {error}; write http://HOST:PORT/v1") from None


def _read(name: str, content: bytes) -> Response:
    try:
        choice = json.loads(content)["choices"][0]
        text, reason = choice["message"]["content"], choice.get("finish_reason")
    except (ValueError, KeyError, IndexError, TypeError, AttributeError):
        raise _Again("the reply is no chat completion") from None
    if not isinstance(text, str):
        raise _Again("the reply has no text")
    return Response(name, text, "length" if reason == "length" else "stop")


def _seconds(text: str | None) -> float:
    """What a Retry-After header says: seconds, or a date."""
    if not text:
        return 0.0
    try:
        return max(0.0, float(text))
    except ValueError:
        pass
    try:
        return max(0.0, email.utils.parsedate_to_datetime(text).timestamp() - time.time())
    except ValueError:
        return 0.0
