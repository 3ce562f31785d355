"""Rewards: the head where each response ends, however the rows are laid out, and the gradient that comes of it."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tisdpo_jax.models import Model, hidden_states, init_adapters, init_params, merge
from tisdpo_jax.scoring import reward_scores
from tisdpo_jax.testing import batch_of, device_mesh, random_encoded, random_params, tiny_config
from tisdpo_jax.types import Batch

CONFIG = tiny_config().scoring
MODEL, PARAMS = Model(CONFIG), random_params(1, CONFIG)
ENCODED = random_encoded(2, pairs=5, responses=3)
SCORE = jax.jit(lambda variables, batch: reward_scores(MODEL, variables, batch))


def by_hand(params) -> np.ndarray:
    """[5, 3], each conversation by itself: the head times the hidden state of its last token."""
    rows = [np.concatenate([one.prompt, response]) for one in ENCODED.groups for response in one.responses]
    width = max(map(len, rows))
    tokens = np.stack([np.pad(row, (0, width - len(row))) for row in rows])
    hidden = np.asarray(jax.jit(lambda tokens: hidden_states(MODEL, {"params": params}, tokens))(tokens), np.float64)
    last = hidden[np.arange(len(rows)), [len(row) - 1 for row in rows]]
    return (last @ np.asarray(params["score"]["kernel"], np.float64)[:, 0]).reshape(5, 3)


EXPECTED = by_hand(PARAMS)


@pytest.mark.parametrize("packed", [True, False])
def test_they_are_read_where_responses_end(packed: bool) -> None:
    rewards = SCORE({"params": PARAMS}, batch_of(ENCODED, packed=packed))
    assert rewards.shape == (5, 3) and rewards.dtype == jnp.float32
    np.testing.assert_allclose(rewards, EXPECTED, rtol=1e-5, atol=1e-5)
    assert np.std(EXPECTED) > 0.3


def test_order_of_responses_and_fillers_change_nothing() -> None:
    batch = batch_of(ENCODED, indices=np.asarray([3, -1, 0, -1]), sides=(2, 0, 1))
    rewards = SCORE({"params": PARAMS}, batch)
    np.testing.assert_allclose(rewards[::2], EXPECTED[[3, 0]][:, [2, 0, 1]], rtol=1e-5, atol=1e-5)
    assert not np.asarray(rewards[1::2]).any()  # no token, no reward


def test_a_mesh_changes_nothing() -> None:
    mesh = device_mesh(2, 2, 2)
    batch = batch_of(random_encoded(2, pairs=8), shards=4)
    with jax.set_mesh(mesh):
        found = np.asarray(
            jax.jit(lambda variables, batch: reward_scores(MODEL, variables, batch))({"params": PARAMS}, batch)
        )
    np.testing.assert_allclose(found, SCORE({"params": PARAMS}, batch), rtol=1e-5, atol=1e-5)


def total(trained, base, batch: Batch):
    """Some sum of rewards in which each counts otherwise."""
    rewards = reward_scores(MODEL, {"params": base, "lora": trained}, batch)
    return (rewards * jnp.cos(jnp.arange(rewards.size)).reshape(rewards.shape)).sum()


def test_the_gradient_of_the_head_is_that_of_last_hidden_states_and_reaches_the_adapter() -> None:
    adapter = init_adapters(jax.random.key(0), PARAMS, rank=2, targets="mlp/up")
    assert set(adapter) == {"layers", "score"}
    np.testing.assert_array_equal(adapter["score"]["kernel"], PARAMS["score"]["kernel"])
    gradients = [
        jax.jit(jax.grad(total))(adapter, PARAMS, batch_of(ENCODED, packed=packed)) for packed in (True, False)
    ]
    step, weights = 1e-2, np.cos(np.arange(15)).reshape(5, 3)
    expected = []  # by differences of what is linear in the head
    for place in (0, 17):
        moved = np.asarray(PARAMS["score"]["kernel"], np.float64)
        moved[place] += step
        expected.append(((by_hand({**PARAMS, "score": {"kernel": moved}}) - EXPECTED) * weights).sum() / step)
    for gradient in gradients:
        np.testing.assert_allclose(gradient["score"]["kernel"][[0, 17], 0], expected, rtol=1e-3, atol=1e-4)
        assert np.abs(gradient["layers"]["mlp"]["up"]["b"]).max() > 1e-3
    for one, other in zip(*map(jax.tree.leaves, gradients), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


def test_the_head_of_an_adapter_goes_first_and_is_kept_by_a_merge() -> None:
    adapter = init_adapters(jax.random.key(0), PARAMS, rank=2, targets="mlp/up")
    adapter["score"]["kernel"] = adapter["score"]["kernel"] * -2
    adapter["layers"]["mlp"]["up"]["b"] = adapter["layers"]["mlp"]["up"]["b"] + 0.3
    batch = batch_of(ENCODED)
    beside = SCORE({"params": PARAMS, "lora": adapter}, batch)
    within = SCORE({"params": merge(PARAMS, adapter, 1.0)}, batch)
    np.testing.assert_allclose(beside, within, rtol=1e-4, atol=1e-4)
    assert np.abs(beside / EXPECTED + 2).max() > 1e-2  # both of them count


def test_a_new_head_says_nothing_and_no_head_over_the_vocabulary_is_there() -> None:
    params = init_params(jax.random.key(0), CONFIG)
    assert not np.asarray(params["score"]["kernel"]).any() and "head" not in params
    assert "score" not in init_params(jax.random.key(0), tiny_config())
    with pytest.raises(ValueError, match="score_head has no head over the vocabulary"):
        tiny_config(score_head=True)
    with pytest.raises(ValueError, match="view is 'plus'; the batch has 'main'"):
        reward_scores(MODEL, {"params": params}, batch_of(ENCODED), view="plus")
