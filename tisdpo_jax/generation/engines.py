"""Others that answer: an OpenAI-compatible endpoint (vLLM on a TPU or GPU, for example), and whoever fills in a file.

Our own engine is `sampler.sample`. How patiently an endpoint is asked: `asking`. Answers until an error are kept by the
caller, and the same command asks for the others.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax

from tisdpo_jax import distributed
from tisdpo_jax.artifacts import write_text
from tisdpo_jax.data import SETTINGS, Prompt, as_record
from tisdpo_jax.errors import DataError
from tisdpo_jax.generation.asking import ask_all
from tisdpo_jax.generation.client import Endpoint
from tisdpo_jax.generation.replies import Completion
from tisdpo_jax.generation.responses import Response, read_responses
from tisdpo_jax.generation.sampler import Options


def ask_endpoint(
    endpoint: Endpoint,
    prompts: Sequence[Prompt],
    options: Options,
    *,
    take: Callable[[Response], None],
    poll: Callable[[], None] = lambda: None,
    witness: Prompt | None = None,
) -> None:
    """Asks for answers to all prompts, several at a time; `take` gets them one at a time, in any order.

    A prompt that the server filters, cuts off or cannot answer has a response too, which says so: `finish`, `reason`.
    `poll` is called all the time and may raise. Each prompt has a seed of its own, which not every server honours.

    Args:
      witness: a prompt of this job that the endpoint has answered before, if there is one.

    Raises: EndpointFailed for what concerns all prompts; DataError for one that an endpoint cannot be asked.
    """
    if jax.process_count() > 1:
        raise DataError("sampling.engine http asks from one process; run `tisdpo generate` on one machine first")
    for prompt in prompts:
        if any(message.extra or message.role in SETTINGS for message in prompt.messages):
            raise DataError(
                f"prompt {prompt.id}: sampling.engine http sends roles and text, and this one has tools or other "
                "fields; take them out, or choose engine local or files"
            )

    def taken(name: str, completion: Completion) -> None:
        take(Response(name, completion.text.strip(), completion.finish, reason=completion.reason))

    questions = {prompt.id: _body(endpoint, prompt, options) for prompt in prompts}
    ask_all(endpoint, questions, taken, poll, witness=_body(endpoint, witness, options) if witness else None)


def _body(endpoint: Endpoint, prompt: Prompt, options: Options) -> dict[str, Any]:
    own = int.from_bytes(hashlib.sha256(f"{options.seed}\0{prompt.id}".encode()).digest()[:4], "little") >> 1
    messages = [{"role": message.role, "content": message.content} for message in prompt.messages]
    body = {"model": endpoint.model, "messages": messages, "max_tokens": options.max_new_tokens, "seed": own}
    draw = options.draw
    body |= {"temperature": draw.temperature, "top_p": draw.top_p, "stream": False}
    # not in the protocol, but vLLM and others know them
    body |= ({"top_k": draw.top_k} if draw.top_k else {}) | ({"min_p": draw.min_p} if draw.min_p else {})
    return body | ({"stop": list(options.stop)} if options.stop else {})


def from_file(prompts: Sequence[Prompt], path: Path) -> dict[str, Response]:
    """Writes the prompts beside `path`, and reads `path` where somebody has put it. Raises: DataError."""
    target = path.with_name(path.name.replace("responses", "prompts"))
    if jax.process_index() == 0:
        write_text(target, "".join(json.dumps({"id": one.id, **as_record(one.messages)}) + "\n" for one in prompts))
    distributed.wait_for_all("prompts to answer")
    if not path.exists():
        raise DataError(
            f'{path}: is not there yet; answer the {len(prompts)} prompts of {target}, a line {{"id": ..., "response": '
            '"..."} for each, and run the same command again'
        )
    return read_responses(path, [prompt.id for prompt in prompts])
