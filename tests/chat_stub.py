"""Chat endpoints that misbehave as they are told: a server, and one without a network."""

from __future__ import annotations

import dataclasses
import http.server
import json
import threading
from collections.abc import Callable

import httpx2
import pytest


@dataclasses.dataclass
class Stub:
    """A server whose `answer(n, body)` says what request n gets: text, (status, headers, bytes), or None to hang up."""

    answer: Callable[[int, dict], object]
    requests: list[dict] = dataclasses.field(default_factory=list)
    headers: list[dict] = dataclasses.field(default_factory=list)
    at_once: int = 0
    most_at_once: int = 0

    def __post_init__(self) -> None:
        stub, lock = self, threading.Lock()

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with lock:
                    stub.requests.append({"path": self.path, **body})
                    stub.headers.append(dict(self.headers))
                    number = len(stub.requests) - 1
                    stub.at_once += 1
                    stub.most_at_once = max(stub.most_at_once, stub.at_once)
                try:
                    found = stub.answer(number, body)
                finally:
                    with lock:
                        stub.at_once -= 1
                if found is None:
                    self.close_connection = True
                    return
                if isinstance(found, str):
                    found = (200, {}, json.dumps({"choices": [{"message": {"content": found}}]}).encode())
                status, headers, content = found
                try:
                    self.send_response(status)
                    for name, value in headers.items():
                        self.send_header(name, value)
                    self.send_header("Content-Length", str(len(content)))
                    self.end_headers()
                    self.wfile.write(content)
                except OSError:  # the client gave up
                    pass

            def log_message(self, *arguments: object) -> None:
                pass

        class Server(http.server.ThreadingHTTPServer):
            def handle_error(self, *arguments: object) -> None:
                pass

        self.server = Server(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True)
        self.thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_address[1]}/v1"

    def stop(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


def mocked(patch: pytest.MonkeyPatch, behave: Callable[[int, dict], object]) -> dict[str, list[dict]]:
    """Replies without a network: `behave(number of the try of this question, body)` gives text, (status, headers,
    content) or an error to raise. Returns the requests by the last message of their bodies."""
    requests: dict[str, list[dict]] = {}
    lock = threading.Lock()

    def handle(request: httpx2.Request) -> httpx2.Response:
        body = json.loads(request.content)
        with lock:
            tries = requests.setdefault(body["messages"][-1]["content"], [])
            tries.append(body)
            number = len(tries)
        found = behave(number, body)
        if isinstance(found, Exception):
            raise found
        status, headers, content = reply_of(found) if isinstance(found, str) else found
        pieces = [content] if isinstance(content, bytes) else content
        return httpx2.Response(status, headers=headers, content=iter(pieces))

    client = httpx2.Client(transport=httpx2.MockTransport(handle))
    patch.setattr("tisdpo_jax.generation.client._client", lambda: client)
    return requests


def reply_of(content: object, reason: object = "stop", **message: object) -> tuple[int, dict, bytes]:
    """A chat completion."""
    choice = {"message": {"content": content, **message}, "finish_reason": reason}
    return 200, {}, json.dumps({"choices": [choice]}).encode()
