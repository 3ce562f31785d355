"""Answers from an OpenAI-compatible endpoint: vLLM on a TPU or GPU, or any other server of chat completions.

How patiently it is asked: `tisdpo_jax.chat`. Answers until an error are kept by the caller, and the same command asks
for the others.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Sequence
from typing import Any

from tisdpo_jax import chat
from tisdpo_jax.chat import Endpoint
from tisdpo_jax.data import Prompt
from tisdpo_jax.sampling._draw import SamplingParams
from tisdpo_jax.sampling.responses import Response


def ask_endpoint(
    endpoint: Endpoint,
    questions: Sequence[Prompt],
    *,
    draw: SamplingParams,
    max_new_tokens: int,
    stop: Sequence[str] = (),
    seed: int = 0,
    take: Callable[[Response], None],
    poll: Callable[[], None] = lambda: None,
    witness: Prompt | None = None,
) -> None:
    """Asks every question, several at a time; `take` gets the responses one at a time, in any order.

    A question that the server filters, cuts off or cannot answer has a response too, which says so: `finish`, `reason`.
    `poll` is called all the time and may raise. After an error nothing more is asked; what is on its way is still
    taken. Each question has a seed of its own, which not every server honours.

    Args:
      witness: a question of this job that the endpoint has answered before, if there is one.

    Raises: EndpointFailed for what concerns all questions, ConfigError.
    """

    def ask(question: Prompt, halt: threading.Event) -> Response | None:
        return _ask(endpoint, question, _body(endpoint, question, draw, max_new_tokens, stop, seed), halt)

    def give_up(question: Prompt, why: str) -> None:
        take(Response(question.id, "", "failed", reason=why))

    chat.ask_all(endpoint, questions, ask, lambda _, response: take(response), poll, give_up=give_up, witness=witness)


def _ask(endpoint: Endpoint, question: Prompt, body: dict[str, Any], halt: threading.Event) -> Response | None:
    """The response after as many tries as it takes; None when `halt` is set between two of them."""
    completion = chat.patiently(endpoint, lambda _: chat.complete(endpoint, body), halt, label=f"to {question.id!r}")
    if completion is None:
        return None
    return Response(question.id, completion.text, completion.finish, reason=completion.reason)


def _body(
    endpoint: Endpoint, question: Prompt, draw: SamplingParams, new: int, stop: Sequence[str], seed: int
) -> dict[str, Any]:
    own = int.from_bytes(hashlib.sha256(f"{seed}\0{question.id}".encode()).digest()[:4], "little") >> 1
    messages = [{"role": message.role, "content": message.content} for message in question.messages]
    body: dict[str, Any] = {"model": endpoint.model, "messages": messages, "max_tokens": new, "seed": own}
    body |= {"temperature": draw.temperature, "top_p": draw.top_p, "stream": False}
    # not in the protocol, but vLLM and others know them
    body |= ({"top_k": draw.top_k} if draw.top_k else {}) | ({"min_p": draw.min_p} if draw.min_p else {})
    return body | ({"stop": list(stop)} if stop else {})
