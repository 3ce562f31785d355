"""Many prompts through few programs: batches of fixed shapes, stop strings, and answers with what became of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Literal, NamedTuple

import numpy as np

from tisdpo_jax import partitioning
from tisdpo_jax.models import Model
from tisdpo_jax.sampling._decode import State, Weights, advance, begin, weights_for
from tisdpo_jax.sampling._draw import SamplingParams, row_keys
from tisdpo_jax.types import Variables

Finish = Literal["stop", "length", "too long"]
BLOCK = 8  # rows of a device come in blocks of this, so that a small batch is computed as a large one is
NARROWEST = 32
STOP_EVERY = 16  # tokens between two looks for stop strings


class Request(NamedTuple):
    """One answer to draw. Its tokens depend on the model, `ids`, `Options` and the seed with `id` and `sample`."""

    id: str
    ids: Sequence[int]  # the prompt, at least one token
    sample: int = 0


@dataclasses.dataclass(frozen=True)
class Answer:
    """What was drawn for a request."""

    ids: list[int]  # with the end token, if one came
    logps: list[float]  # of `ids` under the model as it is: temperature 1, no filter
    text: str  # without the end token and what it stands for; ends before a stop string
    finish: Finish  # "stop": an end token or a stop string; "length": unfinished; "too long": the prompt, nothing drawn

    @property
    def empty(self) -> bool:
        return self.finish != "too long" and not self.text.strip()


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


class Planned(NamedTuple):
    """A batch: which requests, and how wide their prompts are laid out."""

    indices: list[int]
    width: int


def prompt_width(length: int, longest: int) -> int:
    """The width that a prompt is padded to: a power of two, or the longest there is; no other prompt has a say."""
    return min(max(NARROWEST, 1 << (length - 1).bit_length()), max(longest, length))


def plan_batches(lengths: Sequence[int], *, rows: int, longest: int) -> list[Planned]:
    """Batches of up to `rows` requests of one width, narrow ones first, else in order. Over-long ones are left out."""
    by_width: dict[int, list[int]] = {}
    for index, length in enumerate(lengths):
        if length <= longest:
            by_width.setdefault(prompt_width(length, longest), []).append(index)
    return [
        Planned(indices[start : start + rows], width)
        for width, indices in sorted(by_width.items())
        for start in range(0, len(indices), rows)
    ]


def rows_of(batch_size: int) -> int:
    """Rows of a batch on the mesh that is set: whole blocks on every device."""
    unit = BLOCK * partitioning.batch_shards(partitioning.active_mesh())
    return -(-batch_size // unit) * unit


def sample(
    model: Model,
    variables: Variables,
    requests: Sequence[Request],
    options: Options,
    *,
    decode: Callable[[Sequence[int]], str],
    on_batch: Callable[[], None] = lambda: None,
) -> Iterator[tuple[int, Answer]]:
    """Draws answers, batch by batch: (index of the request, answer) in the order in which they are done.

    Every process of a job must exhaust it; all get all answers.

    Args:
      variables: parameters and, with an adapter on, "lora" beside them; nothing is merged.
      decode: ids to text, special tokens left out.
      on_batch: called before each batch; may raise to stop.
    """
    for index, request in enumerate(requests):
        if not len(request.ids):
            raise ValueError(f"sample: the prompt of {request.id!r} has no tokens")
        if len(request.ids) > options.max_prompt:
            yield index, Answer([], [], "", "too long")
    rows = rows_of(options.batch_size)
    batches = plan_batches([len(request.ids) for request in requests], rows=rows, longest=options.max_prompt)
    if not batches:
        return
    weights = weights_for(variables)
    for batch in batches:
        on_batch()
        chosen = [requests[index] for index in batch.indices]
        answers = _run(model, weights, chosen, rows, batch.width, options, decode)
        yield from zip(batch.indices, answers, strict=True)


def _run(
    model: Model,
    weights: Weights,
    requests: Sequence[Request],
    rows: int,
    width: int,
    options: Options,
    decode: Callable[[Sequence[int]], str],
) -> list[Answer]:
    filled = [*requests, *([requests[0]] * (rows - len(requests)))]
    tokens = np.zeros((rows, width), np.int32)
    for row, request in enumerate(filled):
        tokens[row, : len(request.ids)] = request.ids
    lengths = np.asarray([len(request.ids) for request in filled], np.int32)
    keys = row_keys(options.seed, [(request.id, request.sample) for request in filled])
    eos = np.asarray(options.eos_ids or (-1,), np.int32)
    filler = np.arange(rows) >= len(requests)
    state = begin(model, weights, tokens, lengths, keys, eos, filler, how=options.draw, new=options.max_new_tokens)
    stopped, until = filler, 1
    while until < options.max_new_tokens and not stopped.all():
        until = min(until + STOP_EVERY, options.max_new_tokens) if options.stop else options.max_new_tokens
        state = advance(model, weights, state, eos, np.int32(until), stopped, how=options.draw)
        if options.stop:
            stopped = _stopped(state, options, decode)
    out, logps, count = (partitioning.to_host(x) for x in (state.out, state.logps, state.length))
    return [_answer(*row, options, decode) for row in zip(out, logps, count, strict=True)][: len(requests)]


def _stopped(state: State, options: Options, decode: Callable[[Sequence[int]], str]) -> np.ndarray:
    """Rows that are done, those whose text holds a stop string among them."""
    out, count, done = (partitioning.to_host(x) for x in (state.out, state.length, state.done))
    found = [stop_at(decode(ids[:n]), options.stop) >= 0 for ids, n in zip(out, count, strict=True)]
    return np.asarray(done | np.asarray(found))


def stop_at(text: str, stop: Sequence[str]) -> int:
    """Where the first stop string begins in a text; -1 where there is none."""
    return min((place for place in map(text.find, stop) if place >= 0), default=-1)


def _answer(
    out: np.ndarray, logps: np.ndarray, count: int, options: Options, decode: Callable[[Sequence[int]], str]
) -> Answer:
    ids, values = out[:count].tolist(), [float(value) for value in logps[:count]]
    ended = bool(ids) and ids[-1] in options.eos_ids
    text = decode(ids[:-1] if ended else ids)
    place = stop_at(text, options.stop)
    if place >= 0:
        kept = _shortest(ids, options.stop, decode)
        return Answer(ids[:kept], values[:kept], text[:place], "stop")
    return Answer(ids, values, text, "stop" if ended else "length")


def _shortest(ids: list[int], stop: Sequence[str], decode: Callable[[Sequence[int]], str]) -> int:
    """Tokens up to the one that completes the first stop string: what was drawn behind it is no part of the answer."""
    low, high = 1, len(ids)
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if stop_at(decode(ids[:middle]), stop) >= 0 else (middle + 1, high)
    return low
