"""One exchange with the endpoint: bounded in time and memory, no redirects, no secrets in what comes back."""

from __future__ import annotations

import base64
import dataclasses
import email.utils
import http.client
import json
import os
import re
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Sequence
from typing import Any

from tisdpo_jax.chat._errors import Again, EndpointFailed, Unanswered
from tisdpo_jax.chat._reply import Completion, read_completion, read_error
from tisdpo_jax.config import check_address
from tisdpo_jax.errors import ConfigError

LARGEST_REPLY = 16 * 2**20  # bytes; a longer one is not read to its end
_LARGEST_ERROR = 65536
_SHORTEST_SECRET = 8  # characters of a key that is taken out of answers: `EMPTY` is a key, and a word


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


def key_from(names: Sequence[str]) -> str:
    """The key in the first environment variable that holds one. Raises: ConfigError for what no header can hold."""
    for name in names:
        key = os.environ.get(name, "").strip()
        if not key:
            continue
        if not re.fullmatch(r"[\x21-\x7e]+", key):
            raise ConfigError(f"the key in the environment variable {name} holds blanks, line breaks or other letters")
        return key
    return ""


def complete(endpoint: Endpoint, body: dict[str, Any]) -> Completion:
    """One try. Raises: Again, Unanswered, EndpointFailed, ConfigError; none of them holds the key."""
    address = check_address(endpoint.url, endpoint.fields)
    try:
        status, content, wait = _post(endpoint, f"{address}/chat/completions", json.dumps(body).encode())
        if len(content) > LARGEST_REPLY:
            why = f"the reply is longer than {LARGEST_REPLY // 2**20} MiB"
            raise Unanswered(why, why, "status")
        found = read_completion(content) if status < 300 else read_error(status, content, wait)
    except Again as error:
        settled = _clean(error.settled, endpoint) if isinstance(error.settled, Completion) else error.settled
        raise Again(hide(str(error), endpoint), error.wait, settled=settled, kind=error.kind) from None
    except Unanswered as error:
        why = hide(error.why, endpoint)
        raise Unanswered(f"{address}: {why}; check {endpoint.fields} and the key", why, error.kind) from None
    except EndpointFailed as error:
        told = hide(str(error), endpoint)
        raise EndpointFailed(f"{address}: {told}; check {endpoint.fields} and the key") from None
    return _clean(found, endpoint)


def _clean(found: Completion, endpoint: Endpoint) -> Completion:
    text = hide(found.text, endpoint) if len(endpoint.key) >= _SHORTEST_SECRET else found.text
    return dataclasses.replace(found, text=text, reason=hide(found.reason, endpoint))


def hide(text: str, endpoint: Endpoint) -> str:
    """The text without the key, in the forms in which a server may echo it."""
    key = endpoint.key
    if not key:
        return text
    for form in (key, urllib.parse.quote(key, safe=""), base64.b64encode(key.encode()).decode()):
        text = text.replace(form, "[key]")
    # words are cut after so many characters: of a key at the cut, its beginning is left
    start = next((size for size in range(len(key) - 1, 7, -1) if text.removesuffix("...").endswith(key[:size])), 0)
    return f"{text.removesuffix('...')[:-start]}[key]..." if start else text


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirect would take the key along, to any host, and turn the question into a GET."""

    def redirect_request(self, *arguments: Any, **options: Any) -> None:
        return None


_OPENER = urllib.request.build_opener(_NoRedirect)


def _post(endpoint: Endpoint, address: str, body: bytes) -> tuple[int, bytes, float]:
    """Status, content, and the wait that the server asks for."""
    headers = {"Content-Type": "application/json"} | (
        {"Authorization": f"Bearer {endpoint.key}"} if endpoint.key else {}
    )
    until = time.monotonic() + endpoint.timeout
    try:
        request = urllib.request.Request(address, data=body, headers=headers, method="POST")
        with _OPENER.open(request, timeout=endpoint.timeout) as reply:
            return reply.status, _read(reply, until, LARGEST_REPLY + 1), 0.0
    except urllib.error.HTTPError as error:
        with error:
            if 300 <= error.code < 400:
                raise EndpointFailed(_redirected(error)) from None
            wait = seconds(error.headers.get("Retry-After"))
            try:
                said = _read(error, until, _LARGEST_ERROR)
            except (OSError, http.client.HTTPException):
                said = b""
            return error.code, said or str(error.reason).encode(), wait
    except (OSError, http.client.HTTPException) as error:
        raise Again(f"{type(error).__name__}: {getattr(error, 'reason', error)}") from None
    except ValueError:  # of headers: its words may hold the key
        raise ConfigError("the key holds what no header can hold; check the environment variable") from None


def _redirected(error: urllib.error.HTTPError) -> str:
    target = urllib.parse.urlsplit(error.headers.get("Location") or "")
    to = f"{target.scheme}://{target.hostname}" if target.hostname else "another address"
    return f"status {error.code}: redirects to {to}, which is never followed; if that is right, give its address"


def _read(reply: Any, until: float, most: int) -> bytes:
    parts, size = [], 0
    while size < most and (part := reply.read1(min(65536, most - size))):
        parts.append(part)
        size += len(part)
        if time.monotonic() > until:  # the time-out of a socket begins anew with every byte that trickles in
            raise TimeoutError("the answer took too long")
    return b"".join(parts)


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
    except (ValueError, TypeError, OverflowError):
        return 0.0
