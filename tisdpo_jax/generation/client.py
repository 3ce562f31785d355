"""One exchange with an endpoint: bounded in time and memory, no redirects, no secrets in what comes back."""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import email.utils
import functools
import json
import os
import re
import time
import urllib.parse
from collections.abc import Sequence
from typing import Any

import httpx2

from tisdpo_jax.config import JudgeSection, SamplingSection, check_address
from tisdpo_jax.errors import ConfigError
from tisdpo_jax.generation.replies import Completion, Trouble, read_reply

LARGEST_REPLY = 16 * 2**20  # bytes; a longer one is not read to its end
_LARGEST_ERROR = 65536
_SHORTEST_SECRET = 8  # characters of a key that is taken out of answers: `EMPTY` is a key, and a word
_LONGEST_WORDS = 300  # characters of the server's words that are kept


@dataclasses.dataclass(frozen=True)
class Endpoint:
    """Where to ask, and how patiently. Raises: ConfigError for what is no address, or a key that no header can hold."""

    url: str  # up to and with "/v1"
    model: str
    key: str = dataclasses.field(default="", repr=False)
    timeout: float = 120.0  # seconds for one reply
    retries: int = 6
    concurrency: int = 8
    first_wait: float = 0.5  # seconds before the second try; doubled each time, give or take a quarter
    fields: str = "its address"  # of the configuration: what messages say to check

    def __post_init__(self) -> None:
        object.__setattr__(self, "url", check_address(self.url, self.fields))
        if not re.fullmatch(r"[\x21-\x7e]*", self.key):
            raise ConfigError("the key holds blanks, line breaks or other letters; check its environment variable")


def open_endpoint(url: str, section: SamplingSection | JudgeSection, keys: Sequence[str], fields: str) -> Endpoint:
    """The endpoint of a section of the configuration; its key is in the first of the environment variables `keys`."""
    key = next(filter(None, (os.environ.get(name, "").strip() for name in keys)), "")
    timeout, retries, concurrency = section.timeout, section.retries, section.concurrency
    return Endpoint(url, section.endpoint_model, key, timeout, retries, concurrency, fields=fields)


def complete(endpoint: Endpoint, body: dict[str, Any]) -> Completion:
    """One try. Raises: Trouble, ConfigError; neither what they say nor the completion holds the key."""

    def cleaned(found: Completion) -> Completion:
        text = _hidden(found.text, endpoint.key) if len(endpoint.key) >= _SHORTEST_SECRET else found.text
        return dataclasses.replace(found, text=text, reason=_words(found.reason, endpoint.key))

    try:
        return cleaned(_post(endpoint, json.dumps(body).encode()))
    except Trouble as error:
        why, settled = _words(error.why, endpoint.key), error.settled and cleaned(error.settled)
        raise Trouble(why, error.fate, kind=error.kind, wait=error.wait, settled=settled) from None
    except RecursionError:
        raise Trouble("the reply is nested too deeply", "again", kind="status") from None


def _hidden(text: str, key: str) -> str:
    """The text without the key, in the forms in which a server may echo it."""
    for form in (key, urllib.parse.quote(key, safe=""), base64.b64encode(key.encode()).decode()) if key else ():
        text = text.replace(form, "[key]")
    return text


def _words(text: str, key: str) -> str:
    """One line of printable characters, not too long, without the key: words of a server may hold anything."""
    text = _hidden(text, key)
    line = " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())
    return line if len(line) <= _LONGEST_WORDS else f"{line[: _LONGEST_WORDS - 3]}..."


@functools.cache
def _client() -> httpx2.Client:
    """The client of this process: threads share its connections; a redirect would take the key along to any host."""
    try:
        limits = httpx2.Limits(max_connections=None, max_keepalive_connections=20)
        # what is packed may be anything when it is unpacked
        return httpx2.Client(follow_redirects=False, limits=limits, headers={"Accept-Encoding": "identity"})
    except (ImportError, OSError, ValueError) as error:  # whose words may hold a password
        raise ConfigError(
            f"the proxy or the certificates that the environment names cannot be used ({type(error).__name__}); "
            "check HTTP_PROXY, HTTPS_PROXY, ALL_PROXY and SSL_CERT_FILE"
        ) from None


def _post(endpoint: Endpoint, body: bytes) -> Completion:
    headers = {"Content-Type": "application/json"}
    headers |= {"Authorization": f"Bearer {endpoint.key}"} if endpoint.key else {}
    options: dict[str, Any] = {"content": body, "headers": headers, "timeout": endpoint.timeout}
    until = time.monotonic() + endpoint.timeout
    try:
        with _client().stream("POST", f"{endpoint.url}/chat/completions", **options) as reply:
            if 300 <= reply.status_code < 400:
                raise Trouble(_redirected(reply), "job")
            if reply.status_code < 300:
                content = _read(reply, until, LARGEST_REPLY + 1)
                if len(content) > LARGEST_REPLY:
                    why = f"the reply is longer than {LARGEST_REPLY // 2**20} MiB"
                    raise Trouble(why, "question", kind="status")
                return read_reply(200, content)
            try:
                content = _read(reply, until, _LARGEST_ERROR)
            except (httpx2.HTTPError, TimeoutError):  # the status says enough
                content = b""
            wait = seconds(reply.headers.get("Retry-After"))
            return read_reply(reply.status_code, content or reply.reason_phrase.encode(), wait)
    except (httpx2.HTTPError, OSError) as error:
        raise Trouble(f"{type(error).__name__}: {error}", "again") from None


def _redirected(reply: httpx2.Response) -> str:
    target = urllib.parse.urlsplit(reply.headers.get("Location") or "")
    to = f"{target.scheme}://{target.hostname}" if target.hostname else "another address"
    return f"status {reply.status_code}: redirects to {to}, which is never followed; if that is right, give its address"


def _read(reply: httpx2.Response, until: float, most: int) -> bytes:
    parts, size = [], 0
    for part in reply.iter_raw():
        parts.append(part[: most - size])
        size += len(part)
        if size >= most:
            break
        if time.monotonic() > until:  # the time-out of a socket begins anew with every byte that trickles in
            raise TimeoutError("the answer took too long")
    return b"".join(parts)


def seconds(text: str | None) -> float:
    """What a Retry-After header says: seconds, or a date."""
    text = text or "0"
    with contextlib.suppress(ValueError):
        return max(0.0, float(text))
    with contextlib.suppress(ValueError, TypeError, OverflowError):
        return max(0.0, email.utils.parsedate_to_datetime(text).timestamp() - time.time())
    return 0.0
