"""Many prompts through few programs: batches of fixed shapes, stop strings, and answers with what became of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from tisdpo_jax import partitioning
from tisdpo_jax.generation.decoding import SamplingParams, State, advance, begin, row_keys, weights_for
from tisdpo_jax.generation.responses import Response
from tisdpo_jax.models import Model
from tisdpo_jax.types import Variables

BLOCK = 8  # rows of a device come in blocks of this, so that a small batch is computed as a large one is
NARROWEST = 32
STOP_EVERY = 16  # tokens between two looks for stop strings

Decode = Callable[[Sequence[int]], str]  # ids to text, special tokens left out


class Request(NamedTuple):
    """One answer to draw. Its tokens depend on the model, `ids`, `Options` and the seed with `id` and `sample`."""

    id: str
    ids: Sequence[int]  # the prompt, at least one token
    sample: int = 0


@dataclasses.dataclass(frozen=True)
class Options:
    """What all answers of a job have in common."""

    draw: SamplingParams
    max_new_tokens: int = 128
    max_prompt: int = 512  # tokens; a longer prompt is not answered
    batch_size: int = 8  # rows over all devices; rounded up to blocks of 8 a device
    seed: int = 0
    eos_ids: tuple[int, ...] = ()
    stop: tuple[str, ...] = ()


def plan_batches(lengths: Sequence[int], *, rows: int, longest: int) -> list[tuple[int, list[int]]]:
    """(width, indices) of batches of up to `rows` prompts, narrow ones first, else in order; over-long ones left out.

    A prompt is padded to a power of two, or the longest there is: no other prompt has a say in it.
    """
    by_width: dict[int, list[int]] = {}
    for index, length in enumerate(lengths):
        if length <= longest:
            width = min(max(NARROWEST, 1 << (length - 1).bit_length()), longest)
            by_width.setdefault(width, []).append(index)
    return [
        (width, indices[start : start + rows])
        for width, indices in sorted(by_width.items())
        for start in range(0, len(indices), rows)
    ]


def sample(
    model: Model, variables: Variables, requests: Sequence[Request], options: Options, *, decode: Decode
) -> Iterator[list[Response]]:
    """Draws answers, batch by batch, each under the id `id/sample` of its request.

    Every process of a job must exhaust it; all get all answers.

    Args:
      variables: parameters and, with an adapter on, "lora" beside them; nothing is merged.
      decode: ids to text, special tokens left out.
    """
    for request in requests:
        if not len(request.ids):
            raise ValueError(f"sample: the prompt of {request.id!r} has no tokens")
    too_long = [request for request in requests if len(request.ids) > options.max_prompt]
    if too_long:
        yield [Response(f"{request.id}/{request.sample}", "", "too long") for request in too_long]
    unit = BLOCK * partitioning.batch_shards(partitioning.active_mesh())  # whole blocks on every device
    rows = -(-options.batch_size // unit) * unit
    batches = plan_batches([len(request.ids) for request in requests], rows=rows, longest=options.max_prompt)
    if not batches:
        return
    weights, eos = weights_for(variables), np.asarray(options.eos_ids or (-1,), np.int32)
    for width, indices in batches:
        chosen = [requests[index] for index in indices]
        filled = [*chosen, *([chosen[0]] * (rows - len(chosen)))]
        tokens = np.zeros((rows, width), np.int32)
        for row, request in enumerate(filled):
            tokens[row, : len(request.ids)] = request.ids
        lengths = np.asarray([len(request.ids) for request in filled], np.int32)
        keys = row_keys(options.seed, [(request.id, request.sample) for request in filled])
        filler, new = np.arange(rows) >= len(chosen), options.max_new_tokens
        state = begin(model, weights, tokens, lengths, keys, eos, filler, how=options.draw, new=new)
        stopped, until = filler, 1
        while until < new and not stopped.all():
            until = min(until + STOP_EVERY, new) if options.stop else new
            state = advance(model, weights, state, eos, np.int32(until), stopped, how=options.draw)
            if options.stop:
                stopped = _stopped(state, options, decode)
        out, logps, count = (partitioning.to_host(x) for x in (state.out, state.logps, state.length))
        yield [
            _response(request, out[row, : count[row]].tolist(), logps[row, : count[row]].tolist(), options, decode)
            for row, request in enumerate(chosen)
        ]


def _stopped(state: State, options: Options, decode: Decode) -> np.ndarray:
    """Rows that are done, those whose text holds a stop string among them."""
    out, count, done = (partitioning.to_host(x) for x in (state.out, state.length, state.done))
    texts = (decode(ids[:length]) for ids, length in zip(out, count, strict=True))
    return np.asarray(done | np.asarray([stop_at(text, options.stop) >= 0 for text in texts]))


def stop_at(text: str, stop: Sequence[str]) -> int:
    """Where the first stop string begins in a text; -1 where there is none."""
    return min((place for place in map(text.find, stop) if place >= 0), default=-1)


def _response(request: Request, ids: list[int], logps: list[float], options: Options, decode: Decode) -> Response:
    name, ended = f"{request.id}/{request.sample}", bool(ids) and ids[-1] in options.eos_ids
    text = decode(ids[:-1] if ended else ids)
    place = stop_at(text, options.stop)
    if place < 0:
        return Response(name, text.strip(), "stop" if ended else "length", tuple(ids), tuple(logps))
    # up to the token that completes the first stop string: what was drawn behind it is no part of the answer
    low, high = 1, len(ids)
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if stop_at(decode(ids[:middle]), options.stop) >= 0 else (middle + 1, high)
    return Response(name, text[:place].strip(), "stop", tuple(ids[:low]), tuple(logps[:low]))
