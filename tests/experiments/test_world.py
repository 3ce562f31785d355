"""The language does what its settings say: rewards, kinds, steering, labels."""

from __future__ import annotations

import numpy as np
import pytest

from experiments.testbed.world import (
    BAD,
    BEGIN,
    END,
    FIRST_TOPIC,
    GOOD,
    PLAIN,
    draw_corpus,
    draw_pairs,
    draw_prompts,
    draw_responses,
    make_world,
    steered,
    token_rewards,
)


def drawn(world, count=4000, steering=PLAIN, seed=0):
    random = np.random.default_rng(seed)
    prompts = draw_prompts(world, random, count, steering=steering)
    return prompts, *draw_responses(world, random, prompts)


def shares(world, steering=PLAIN):
    """How often a word of a response is neutral, good, bad."""
    prompts, tokens, mask = drawn(world, steering=steering)
    words = (tokens >= world.first_word) & (mask > 0)
    kinds = world.kinds[prompts[:, 2, None] - FIRST_TOPIC, np.maximum(tokens - world.first_word, 0)]
    return np.asarray([(kinds[words] == kind).mean() for kind in range(3)])


def test_responses_are_words_and_an_end():
    world = make_world(0, shortest=3, longest=7)
    prompts, tokens, mask = drawn(world, 500)
    lengths = mask.sum(1).astype(int)
    assert set(lengths) == {4, 5, 6, 7, 8} and tokens.shape == (500, 8) and prompts.shape == (500, world.prompt_length)
    for row, length in zip(tokens, lengths, strict=True):
        assert row[length - 1] == END and (row[length:] == 0).all()
        assert ((row[: length - 1] >= world.first_word) & (row[: length - 1] < world.vocab_size)).all()
    assert (prompts[:, 0] == BEGIN).all() and (prompts[:, 1] == PLAIN).all()
    assert ((prompts[:, 2] >= FIRST_TOPIC) & (prompts[:, 2] < world.first_word)).all()


def test_rewards_are_those_of_the_words_under_the_topic():
    world = make_world(1, topics=3, words=10, key_share=0.4, reward=2.0)
    assert ((world.rewards > 0) == (world.kinds == 1)).all() and ((world.rewards < 0) == (world.kinds == 2)).all()
    assert ((world.kinds > 0).sum(1) == 4).all()  # 0.4 of 10 words
    keys = np.abs(world.rewards[world.kinds > 0])
    assert keys.min() >= 1.0 and keys.max() <= 3.0
    pairs = draw_pairs(world, 1, 50)
    np.testing.assert_array_equal(pairs.rewards, token_rewards(world, pairs.prompts, pairs.responses))
    for prompt, responses, rewards in zip(pairs.prompts, pairs.responses, pairs.rewards, strict=True):
        for tokens, values in zip(responses, rewards, strict=True):
            for token, value in zip(tokens, values, strict=True):
                word = token - world.first_word
                assert value == (world.rewards[prompt[2] - FIRST_TOPIC, word] if word >= 0 else 0.0)


def test_a_seed_is_a_world_and_its_data():
    one, again, other = (make_world(seed) for seed in (3, 3, 4))
    np.testing.assert_array_equal(one.rewards, again.rewards)
    assert (one.rewards != other.rewards).any()
    for make in (lambda seed: draw_pairs(one, seed, 20).responses, lambda seed: draw_corpus(one, seed, 20)[1]):
        np.testing.assert_array_equal(make(5), make(5))
        assert (make(5) != make(6)).any()


def test_kinds_come_as_often_as_the_settings_say():
    np.testing.assert_allclose(shares(make_world(0, key_share=0.5)), [0.5, 0.25, 0.25], atol=0.01)
    odds = np.asarray([0.5, 0.25 * np.e, 0.25 / np.e])
    np.testing.assert_allclose(shares(make_world(0, key_share=0.5, correlation=1.0)), odds / odds.sum(), atol=0.01)
    steerable = make_world(0, key_share=0.5, steer=1.0)
    np.testing.assert_allclose(shares(steerable, GOOD), odds / odds.sum(), atol=0.01)
    np.testing.assert_allclose(shares(steerable, BAD), odds[[0, 2, 1]] / odds.sum(), atol=0.01)
    np.testing.assert_allclose(shares(make_world(0, key_share=0.5, persistence=0.7)), [0.5, 0.25, 0.25], atol=0.02)


@pytest.mark.parametrize("persistence", [0.0, 0.8])
def test_persistence_is_how_often_a_kind_is_kept(persistence):
    world = make_world(0, key_share=0.5, persistence=persistence, shortest=12)
    prompts, tokens, _ = drawn(world)
    kinds = world.kinds[prompts[:, 2, None] - FIRST_TOPIC, tokens[:, :12] - world.first_word]
    kept = (kinds[:, 1:] == kinds[:, :-1]).mean()
    np.testing.assert_allclose(kept, persistence + (1 - persistence) * (0.5**2 + 2 * 0.25**2), atol=0.01)


def test_labels_are_bradley_terry_on_totals():
    world = make_world(0)
    pairs = draw_pairs(world, 0, 20000)
    totals = pairs.rewards.sum(-1)
    np.testing.assert_array_equal(pairs.wrong, totals[:, 0] < totals[:, 1])
    gap = np.abs(totals[:, 0] - totals[:, 1])
    for low, high in ((0.2, 0.5), (0.8, 1.2), (2.0, 2.5)):
        here = (gap > low) & (gap < high)
        right = (1 / (1 + np.exp(-gap[here]))).mean()
        np.testing.assert_allclose(1 - pairs.wrong[here].mean(), right, atol=4 * np.sqrt(0.25 / here.sum()))


def test_label_noise_turns_that_share_of_labels():
    world = make_world(0, reward=30.0)  # so large that without noise the better one always wins
    for share in (0.0, 0.2):
        np.testing.assert_allclose(draw_pairs(world, 0, 5000, label_noise=share).wrong.mean(), share, atol=0.02)


def test_steering_changes_the_steering_token_alone():
    prompts, _, _ = drawn(make_world(0), 5)
    changed = steered(prompts, GOOD)
    assert (changed[:, 1] == GOOD).all() and (prompts[:, 1] == PLAIN).all()
    np.testing.assert_array_equal(np.delete(changed, 1, 1), np.delete(prompts, 1, 1))
    corpus, _, _ = draw_corpus(make_world(0), 0, 300)
    assert set(corpus[:, 1]) == {PLAIN, GOOD, BAD}
