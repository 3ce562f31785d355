"""A small language in which the true reward of every token is known.

A prompt names a topic. For each topic some words are good, some bad, the others neutral; a token's reward is that of
its word under the topic, and a response is worth the sum. Which word comes next is a Markov chain: first the kind
(good, bad, neutral), which keeps the last one's with probability `persistence`, then a word of that kind, by a bigram
table. So `persistence` says how much rewards differ within a response: at 0 good and bad tokens stand mixed, near 1
whole responses are good or bad. numpy alone; everything is a pure function of settings and seed.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int32]
Floats = npt.NDArray[np.float64]

BEGIN, END, PLAIN, GOOD, BAD = range(5)  # tokens; the last three stand in a prompt and steer what follows
FIRST_TOPIC = 5
KINDS = 3  # of words under a topic: neutral, good, bad
LOW, HIGH = 0.5, 1.5  # of the reward of a key word, as a part of `reward`


@dataclasses.dataclass(frozen=True)
class World:
    """A language, drawn for one seed."""

    kinds: Ints  # [topics, words], 0 neutral, 1 good, 2 bad
    rewards: Floats  # [topics, words], of each word under each topic
    bigram: Floats  # [1 + words, words], logits of the next word; row 0 begins a response
    starts: Floats  # [KINDS], probabilities of a kind that is not kept
    persistence: float
    steer: float
    lengths: tuple[int, int]  # shortest and longest response, without the end token
    context: int  # words in a prompt, behind its topic

    @property
    def topics(self) -> int:
        return int(self.rewards.shape[0])

    @property
    def words(self) -> int:
        return int(self.rewards.shape[1])

    @property
    def vocab_size(self) -> int:
        return FIRST_TOPIC + self.topics + self.words

    @property
    def first_word(self) -> int:
        return FIRST_TOPIC + self.topics

    @property
    def prompt_length(self) -> int:
        return 3 + self.context

    @property
    def response_length(self) -> int:
        """Of the longest response, its end token counted."""
        return self.lengths[1] + 1


class Pairs(NamedTuple):
    """Labelled pairs. Responses end with the end token; behind it stands 0."""

    prompts: Ints  # [n, P]
    responses: Ints  # [n, 2, N], chosen first
    mask: Floats  # [n, 2, N], 1 up to and with the end token
    rewards: Floats  # [n, 2, N], of each token
    wrong: npt.NDArray[np.bool_]  # [n], the chosen response is worth less


def make_world(
    seed: int,
    *,
    topics: int = 8,
    words: int = 32,
    key_share: float = 0.3,
    reward: float = 1.0,
    persistence: float = 0.0,
    correlation: float = 0.0,
    steer: float = 1.0,
    shortest: int = 6,
    longest: int = 12,
    context: int = 2,
) -> World:
    """Draws a language.

    Args:
      topics, words: sizes of the vocabulary.
      key_share: share of a topic's words with a reward; half of them good, half bad.
      reward: mean size of the reward of a key word; each has its own, from half to one and a half of it.
      persistence: in [0, 1), probability that a token is of the kind of the one before it.
      correlation: of likelihood and reward: odds of good words times exp(correlation), of bad ones divided by it.
      steer: the same for responses behind a steering token, GOOD or BAD; what contrastive prompts build on.
      shortest, longest: length of responses, drawn evenly, the end token not counted.
      context: words in a prompt.
    """
    random = np.random.default_rng((seed, 0))
    keys = max(round(key_share * words / 2), 1)
    kinds = np.zeros((topics, words), np.int32)
    for row in kinds:
        chosen = random.permutation(words)[: 2 * keys]
        row[chosen[:keys]], row[chosen[keys:]] = 1, 2
    sizes = reward * random.uniform(LOW, HIGH, kinds.shape)
    signs = np.asarray([0.0, 1.0, -1.0])[kinds]
    shares = np.asarray([words - 2 * keys, keys, keys], np.float64)
    starts = _tilted(shares / words, correlation)
    bigram = random.normal(0.0, 1.0, (1 + words, words))
    return World(kinds, signs * sizes, bigram, starts, persistence, steer, (shortest, longest), context)


def _tilted(starts: Floats, by: float) -> Floats:
    tilted = starts * np.exp([0.0, by, -by])
    return np.asarray(tilted / tilted.sum())


def draw_prompts(world: World, random: np.random.Generator, count: int, *, steering: int = PLAIN) -> Ints:
    """[count, P]: begin, steering token, topic, context words."""
    topics = FIRST_TOPIC + random.integers(0, world.topics, (count, 1))
    context = world.first_word + random.integers(0, world.words, (count, world.context))
    head = np.broadcast_to(np.asarray([BEGIN, steering]), (count, 2))
    return np.concatenate([head, topics, context], 1).astype(np.int32)


def steered(prompts: Ints, steering: int) -> Ints:
    """The same prompts behind another steering token."""
    changed = prompts.copy()
    changed[..., 1] = steering
    return changed


def draw_responses(world: World, random: np.random.Generator, prompts: Ints) -> tuple[Ints, Floats]:
    """One response to each prompt, `[n, N]` tokens and mask, as the language has it."""
    count, width = len(prompts), world.response_length
    kinds = world.kinds[prompts[:, 2] - FIRST_TOPIC]  # [n, words]
    tilts = np.stack([_tilted(world.starts, by * world.steer) for by in (0.0, 1.0, -1.0)])[prompts[:, 1] - PLAIN]
    lengths = random.integers(world.lengths[0], world.lengths[1] + 1, count)
    tokens = np.zeros((count, width), np.int32)
    last, kind = np.full(count, -1), np.zeros(count, np.int64)
    for place in range(width):
        fresh = (random.random((count, 1)) > tilts.cumsum(1)).sum(1).clip(max=KINDS - 1)
        keep = (random.random(count) < world.persistence) & (place > 0)
        kind = np.where(keep, kind, fresh)
        logits = np.where(kinds == kind[:, None], world.bigram[last + 1], -np.inf)
        last = np.argmax(logits + random.gumbel(size=logits.shape), 1)
        tokens[:, place] = np.where(place < lengths, world.first_word + last, np.where(place == lengths, END, 0))
    return tokens, (np.arange(width) <= lengths[:, None]).astype(np.float64)


def token_rewards(world: World, prompts: Ints, responses: Ints) -> Floats:
    """The true reward of each token, `[n, ..., N]`; 0 for tokens that are no words.

    Args:
      prompts: `[n, P]`.
      responses: `[n, ..., N]`.
    """
    topics = (prompts[:, 2] - FIRST_TOPIC).reshape(-1, *[1] * (responses.ndim - 1))
    words = responses - world.first_word
    return np.where(words >= 0, world.rewards[topics, np.maximum(words, 0)], 0.0)


def draw_pairs(world: World, seed: int, count: int, *, label_noise: float = 0.0) -> Pairs:
    """Pairs of responses to the same prompt, labelled by Bradley-Terry on their totals.

    Args:
      count: n.
      label_noise: share of labels that are turned round after that.
    """
    random = np.random.default_rng((seed, 1))
    prompts = draw_prompts(world, random, count)
    drawn = [draw_responses(world, random, prompts) for _ in range(2)]
    responses, mask = (np.stack(parts, 1) for parts in zip(*drawn, strict=True))
    rewards = token_rewards(world, prompts, responses)
    totals = rewards.sum(-1)
    second = random.random(count) > 1.0 / (1.0 + np.exp(totals[:, 1] - totals[:, 0]))
    second ^= random.random(count) < label_noise
    order = np.stack([second, ~second], 1).astype(np.int64)
    responses, mask, rewards = (np.take_along_axis(x, order[..., None], 1) for x in (responses, mask, rewards))
    totals = rewards.sum(-1)
    return Pairs(prompts, responses, mask, rewards, totals[:, 0] < totals[:, 1])


def draw_corpus(world: World, seed: int, count: int) -> tuple[Ints, Ints, Floats]:
    """Text to pretrain on: prompts `[n, P]`, responses and mask `[n, N]`; a third of it behind each steering token."""
    random = np.random.default_rng((seed, 2))
    prompts = draw_prompts(world, random, count)
    prompts[:, 1] = random.integers(PLAIN, BAD + 1, count)
    return (prompts, *draw_responses(world, random, prompts))
