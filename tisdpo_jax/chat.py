"""Chat completions of an OpenAI-compatible endpoint: a reply after as many tries as it takes, several at a time.

What another try may mend is tried again, each time after a longer wait: time-outs, lost connections, status 408, 409,
425, 429 and 5xx, and replies that the caller cannot use (`Again`). What it cannot mend stops the job.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import email.utils
import http.client
import json
import random
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from tisdpo_jax.errors import ConfigError, UserError

Q = TypeVar("Q")
R = TypeVar("R")

LONGEST_WAIT = 60.0  # seconds between two tries
_RETRIED = {408, 409, 425, 429}  # and everything from 500 on


@dataclasses.dataclass(frozen=True)
class Endpoint:
    """Where to ask, and how patiently."""

    url: str  # up to and with "/v1"
    model: str
    key: str = dataclasses.field(default="", repr=False)
    timeout: float = 120.0  # seconds for one reply
    retries: int = 6
    concurrency: int = 8
    first_wait: float = 0.5  # seconds before the second try; doubled each time, give or take a quarter
    fields: str = "its address"  # of the configuration: what messages say to check


class EndpointFailed(UserError):
    """The endpoint does not answer, or not in a way that another try could mend."""


class Again(Exception):
    """This try failed; `wait` is what the server asked for, in seconds."""

    def __init__(self, why: str, wait: float = 0.0) -> None:
        super().__init__(why)
        self.wait = wait


def ask_all(
    endpoint: Endpoint,
    questions: Sequence[Q],
    ask: Callable[[Q, threading.Event], R | None],
    take: Callable[[Q, R], None],
    poll: Callable[[], None],
) -> None:
    """Asks every question, several at a time; `take` gets each reply as it comes, one at a time, in any order.

    `poll` is called between replies and may raise. After an error nothing more is asked; what is on its way is still
    taken. Raises: what `ask`, `take` or `poll` raised first.
    """
    halt = threading.Event()
    failure: BaseException | None = None

    def one(question: Q) -> R | None:
        if halt.is_set():
            return None
        try:
            return ask(question, halt)
        except BaseException:
            halt.set()  # here, before this thread takes up another question
            raise

    with concurrent.futures.ThreadPoolExecutor(endpoint.concurrency) as pool:
        waiting = {pool.submit(one, question): question for question in questions}
        for done in concurrent.futures.as_completed(waiting):
            try:
                reply = done.result()
                if reply is not None:
                    take(waiting[done], reply)
                if failure is None:
                    poll()
            except BaseException as error:
                halt.set()
                failure = failure or error
    if failure is not None:
        raise failure


def patiently(endpoint: Endpoint, attempt: Callable[[int], R], halt: threading.Event) -> R | None:
    """What `attempt(number)` returns, tried until it raises no `Again`; None when `halt` is set between two tries.

    Raises: the last `Again` when the tries are used up.
    """
    last = Again("")
    for number in range(endpoint.retries + 1):
        if number:
            wait = endpoint.first_wait * 2.0 ** (number - 1) * random.uniform(0.75, 1.25)
            if halt.wait(min(LONGEST_WAIT, max(wait, last.wait))):
                return None
        try:
            return attempt(number)
        except Again as error:
            last = error
    raise last


def complete(endpoint: Endpoint, body: dict[str, Any]) -> tuple[str, str | None]:
    """One try: text and finish reason of the first choice. Raises: Again, EndpointFailed, ConfigError."""
    content = _post(endpoint, json.dumps(body).encode())
    try:
        choice = json.loads(content)["choices"][0]
        text, reason = choice["message"]["content"], choice.get("finish_reason")
    except (ValueError, KeyError, IndexError, TypeError, AttributeError):
        raise Again("the reply is no chat completion") from None
    if not isinstance(text, str):
        raise Again("the reply has no text")
    return text, reason


def _post(endpoint: Endpoint, body: bytes) -> bytes:
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
            raise Again(f"status {error.code}", seconds(error.headers.get("Retry-After"))) from None
        raise EndpointFailed(
            f"{address}: status {error.code}: {said or error.reason}; check {endpoint.fields} and the key"
        ) from None
    except (OSError, http.client.HTTPException) as error:
        raise Again(f"{type(error).__name__}: {getattr(error, 'reason', error)}") from None
    except ValueError as error:
        raise ConfigError(f"{endpoint.url}: {error}; check {endpoint.fields}: write http://HOST:PORT/v1") from None


def seconds(text: str | None) -> float:
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
