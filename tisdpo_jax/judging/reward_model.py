"""A reward model as a judge: the score of its head where the conversation ends."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from tisdpo_jax import partitioning
from tisdpo_jax.data import Message, Template, Unusable, check_message, frame, render
from tisdpo_jax.models import Model, hidden_states
from tisdpo_jax.types import Params

Array = jax.Array


class RewardModel(NamedTuple):
    """A decoder, its head, and how conversations are written for it."""

    model: Model
    params: Params
    head: Array  # [D] float32
    tokenizer: Any
    template: Template


def score_rows(model: Model, params: Params, head: Array, tokens: Array, lengths: Array) -> Array:
    """Scores [R] float32 of rows `tokens [R, T]`, left-aligned: head times the hidden state of the last real token.

    The same as the `...ForSequenceClassification` of transformers, which finds that token by the padding id.
    """
    hidden = hidden_states(model, {"params": params}, tokens)
    last = jnp.take_along_axis(hidden, (lengths - 1)[:, None, None], axis=1)[:, 0]
    return jnp.matmul(last.astype(jnp.float32), head)


def score_conversations(
    judge: RewardModel,
    conversations: Sequence[tuple[Sequence[Message], str]],
    *,
    batch_size: int,
    max_length: int,
) -> Iterator[tuple[int, float]]:
    """(index, score) of each (messages, answer), a batch after the other, long ones first.

    A conversation of more than `max_length` tokens loses its beginning. One that the template cannot write, or whose
    text holds special tokens, scores nan: it has no verdict.
    """
    rows = [_tokens(judge, messages, answer, max_length) for messages, answer in conversations]
    order = sorted(range(len(rows)), key=lambda index: -len(rows[index]))
    size = partitioning.places(batch_size, partitioning.active_mesh())
    for start in range(0, len(order), size):
        batch = order[start : start + size]
        width = -(-max(1, *(len(rows[index]) for index in batch)) // 32) * 32
        tokens, lengths = np.zeros((size, width), np.int32), np.ones(size, np.int32)
        for place, index in enumerate(batch):
            tokens[place, : len(rows[index])] = rows[index]
            lengths[place] = max(1, len(rows[index]))
        scores = partitioning.to_host(_run(judge.model)(judge.params, judge.head, tokens, lengths))
        for place, index in enumerate(batch):
            yield index, float(scores[place]) if rows[index] else float("nan")


@functools.lru_cache(maxsize=2)
def _run(model: Model) -> Any:
    return jax.jit(functools.partial(score_rows, model))


def _tokens(judge: RewardModel, messages: Sequence[Message], answer: str, max_length: int) -> list[int]:
    """The whole conversation, its end of turn included; nothing where it cannot be written."""
    try:
        for message in (*messages, Message("assistant", answer)):
            check_message(judge.template, message)
        text = render(judge.template, frame(judge.template, messages), messages, answer).text
    except Unusable:
        return []
    ids = list(judge.tokenizer(text, add_special_tokens=False).input_ids)
    bos = judge.tokenizer.bos_token_id
    if bos is not None and judge.tokenizer("a").input_ids[:1] == [bos] and ids[:1] != [bos]:
        ids = [bos, *ids]
    return ids[-max_length:]
