"""Judges that give scores: a rule, or a reward model, whose head scores where the conversation ends."""

from __future__ import annotations

import dataclasses
import functools
import math
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from tisdpo_jax import partitioning
from tisdpo_jax.artifacts import digest
from tisdpo_jax.data import Message, Prompt, Template, Unusable, check_message, frame, render
from tisdpo_jax.generation import Lines
from tisdpo_jax.judging.rules import Score
from tisdpo_jax.models import Model, hidden_states
from tisdpo_jax.types import Params

Array = jax.Array
Answered = tuple[Prompt, str]


@dataclasses.dataclass(frozen=True, eq=False)
class ScoringJudge:
    """A judge that gives scores, the higher the better.

    `score` yields (index, score) of prompts with their answers, in any order, as they are done; nan is no verdict.
    """

    name: str
    identity: Any  # plain values that scores depend on, beside prompt and answer
    score: Callable[[Sequence[Answered]], Iterator[tuple[int, float]]]

    def __call__(
        self,
        kept: Lines,
        model: str,
        prompts: Sequence[Prompt],
        texts: Sequence[str | None],
        poll: Callable[[], None] = lambda: None,
    ) -> list[float]:
        """The scores of a model's answers, nan where there is none; what is kept is not scored again."""
        rows = list(zip(prompts, texts, strict=True))
        keys = [digest([self.identity, prompt.text, text]) for prompt, text in rows]
        missing = [
            (key, prompt, text)
            for key, (prompt, text) in zip(keys, rows, strict=True)
            if text is not None and kept.get(key) is None
        ]
        fresh: list[dict[str, Any]] = []
        wrote = time.monotonic()
        try:
            for index, value in self.score([(prompt, text) for _, prompt, text in missing]):
                key, prompt, _ = missing[index]
                score = None if math.isnan(value) else value
                fresh.append({"key": key, "judge": self.name, "prompt": prompt.id, "model": model, "score": score})
                if time.monotonic() - wrote > 1.0:  # a rule is faster than a disk
                    kept.add(fresh)
                    fresh, wrote = [], time.monotonic()
                poll()
        finally:
            kept.add(fresh)
        records = [kept.get(key) or {} for key in keys]
        return [math.nan if record.get("score") is None else float(record["score"]) for record in records]


def by_rule(rule: Score) -> Callable[[Sequence[Answered]], Iterator[tuple[int, float]]]:
    """The scores of a rule, as a scorer gives them."""

    def score(answered: Sequence[Answered]) -> Iterator[tuple[int, float]]:
        for index, (prompt, text) in enumerate(answered):
            yield index, rule(prompt.text, text)

    return score


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


@functools.lru_cache(maxsize=2)
def _run(model: Model) -> Any:
    return jax.jit(functools.partial(score_rows, model))


def by_reward_model(
    judge: RewardModel, answered: Sequence[Answered], *, batch_size: int, max_length: int
) -> Iterator[tuple[int, float]]:
    """(index, score) of each prompt with its answer, a batch after the other, long ones first.

    A conversation of more than `max_length` tokens loses its beginning. One that the template cannot write, or whose
    text holds special tokens, scores nan: it has no verdict.
    """
    rows = [_tokens(judge, prompt.messages, answer, max_length) for prompt, answer in answered]
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
            yield index, float(scores[place]) if rows[index] else math.nan


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
