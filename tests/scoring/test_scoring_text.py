"""Scoring of token batches: the right row and the right column, whatever stands before a response or behind it."""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from programs import arrays

from tisdpo_jax import losses, scoring
from tisdpo_jax.data import EncodedSet, fit, make_batch
from tisdpo_jax.models import Model, logits
from tisdpo_jax.scoring import kl_from_logits, logps_from_logits, read, score, score_pair_of_models
from tisdpo_jax.testing import (
    FAMILIES,
    batch_of,
    random_adapters,
    random_batch,
    random_encoded,
    random_params,
    tiny_config,
)
from tisdpo_jax.types import Params

MODEL = Model(tiny_config())
SUCCESSORS = 16  # vocabulary of the model with a known answer


def successor(token: Any) -> Any:
    return (5 * token + 3) % SUCCESSORS


@functools.cache
def known_model() -> tuple[Model, Params]:
    """A real decoder that is sure that `successor(t)` follows t: its layers add nothing, its head is a permutation."""
    config = tiny_config(vocab_size=SUCCESSORS, hidden_size=SUCCESSORS, max_positions=64)
    params = random_params(0, config)
    for block, name in (("attention", "o"), ("mlp", "down")):
        projection = params["layers"][block][name]
        projection["kernel"] = jnp.zeros_like(projection["kernel"])
    params["embed"]["embedding"] = jnp.eye(SUCCESSORS)
    params["final_norm"]["scale"] = jnp.ones(SUCCESSORS)
    params["head"]["kernel"] = jax.nn.one_hot(successor(np.arange(SUCCESSORS)), SUCCESSORS) * 10.0
    return Model(config), params


def followed(encoded: EncodedSet, model_successor: Any = successor) -> EncodedSet:
    """The pairs, their responses replaced by what the model with a known answer would say after each prompt."""

    def response(prompt: np.ndarray, count: int) -> np.ndarray:
        tokens = [prompt[-1]]
        for _ in range(count):
            tokens.append(model_successor(tokens[-1]))
        return np.asarray(tokens[1:], np.int32)

    pairs = [
        dataclasses.replace(
            pair,
            responses=tuple(response(pair.prompt, len(ids)) for ids in pair.responses),
        )
        for pair in encoded.groups
    ]
    return dataclasses.replace(encoded, groups=tuple(pairs))


@functools.cache
def params(seed: int = 0) -> Params:
    return random_params(seed, MODEL.config)


ENCODED = random_encoded(1)  # one shape of batches, so that a model is compiled once
plain_logits = jax.jit(logits, static_argnums=0)
scored = jax.jit(score, static_argnums=0, static_argnames=("view", "chunk"))
scored_pair = jax.jit(score_pair_of_models, static_argnums=0, static_argnames=("direction", "chunk"))


def logits_by_hand(model: Model, variables: Any, encoded: EncodedSet, view: str = "main") -> np.ndarray:
    """Logits that predict each element, `[B, 2, N, V]`: each response behind its prompt in a row of its own."""
    rows = [[*pair.prompts[view], *response] for pair in encoded.groups for response in (pair.chosen, pair.rejected)]
    tokens = np.zeros((len(rows), max(map(len, rows))), np.int32)
    for row, ids in zip(tokens, rows, strict=True):
        row[: len(ids)] = ids
    every = np.asarray(plain_logits(model, variables, tokens)).reshape(len(encoded.groups), 2, tokens.shape[1], -1)
    out = np.zeros((len(encoded.groups), 2, encoded.elements(1), every.shape[-1]), np.float32)
    for b, pair in enumerate(encoded.groups):
        first = len(pair.prompts[view]) - 1
        for s, response in enumerate((pair.chosen, pair.rejected)):
            out[b, s, : len(response)] = every[b, s, first : first + len(response)]
    return out


def responses(encoded: EncodedSet) -> np.ndarray:
    """`[B, 2, N]`, 0 behind the end."""
    out = np.zeros((len(encoded.groups), 2, encoded.elements(1)), np.int32)
    for b, pair in enumerate(encoded.groups):
        out[b, 0, : len(pair.chosen)], out[b, 1, : len(pair.rejected)] = pair.chosen, pair.rejected
    return out


def by_hand(model: Model, variables: Any, encoded: EncodedSet, view: str = "main") -> np.ndarray:
    every = jnp.asarray(logits_by_hand(model, variables, encoded, view))
    return np.asarray(logps_from_logits(every, jnp.asarray(responses(encoded)))) * encoded.mask(encoded.elements(1))


def test_a_model_whose_answer_is_known_is_certain_of_every_token() -> None:
    """The classical fault, off by one between logits and labels, costs 40 nats a token here."""
    model, known = known_model()
    pairs = random_encoded(0, vocab_size=SUCCESSORS)
    got = scored(model, {"params": known}, batch_of(followed(pairs))).logps
    np.testing.assert_allclose(got, 0.0, atol=1e-5)
    # and every other response is ruled out, token by token
    wrong = batch_of(followed(pairs, lambda token: (successor(token) + 1) % SUCCESSORS))
    got = np.asarray(scored(model, {"params": known}, wrong).logps)
    assert (got[wrong.mask > 0] < -30).all()


def test_one_wrong_token_is_found_where_it_stands() -> None:
    model, known = known_model()
    pairs = followed(random_encoded(0, vocab_size=SUCCESSORS))
    index = next(i for i, pair in enumerate(pairs.groups) if len(pair.rejected) >= 4)
    rejected = pairs.groups[index].rejected.copy()
    rejected[1] = (rejected[1] + 1) % SUCCESSORS
    spoilt = list(pairs.groups)
    spoilt[index] = dataclasses.replace(spoilt[index], responses=(spoilt[index].chosen, rejected))
    batch = batch_of(dataclasses.replace(pairs, groups=tuple(spoilt)))
    low = np.asarray(scored(model, {"params": known}, batch).logps) < -1.0
    expected = np.zeros_like(low)
    expected[index, 1, 1:3] = True  # the wrong token itself, and the next, which does not follow it
    np.testing.assert_array_equal(low, expected)


@pytest.mark.parametrize("family", ["qwen3", "smollm2"])
def test_scores_are_entries_of_the_log_softmax_of_all_logits(family: str) -> None:
    model = Model(FAMILIES[family])
    pairs = ENCODED
    variables = {"params": random_params(0, model.config)}
    got = scored(model, variables, batch_of(pairs), chunk=7)
    assert got.kl is None
    np.testing.assert_allclose(got.logps, by_hand(model, variables, pairs), atol=2e-5)


def test_padding_of_rows_changes_nothing() -> None:
    pairs, variables = ENCODED, {"params": params()}
    batch, longer = batch_of(pairs, multiple=1), batch_of(pairs, multiple=32)
    view = longer.views["main"]
    assert view.rows.tree is not None and view.rows.tokens.size > batch.views["main"].rows.tokens.size
    filled = view.rows._replace(tokens=np.where(view.rows.tree.pair == 0, 7, view.rows.tokens))
    expected = scored(MODEL, variables, batch).logps
    for other in (longer, longer._replace(views={"main": view._replace(rows=filled)})):
        np.testing.assert_allclose(scored(MODEL, variables, other).logps, expected, atol=1e-5)


@pytest.mark.parametrize("packed", [True, False])
def test_full_rows_and_prompts_and_responses_of_one_token(packed: bool) -> None:
    """Both ends of the range of positions: nothing is clipped that counts."""
    pairs = random_encoded(3, elements=6, prompts={"main": 1})
    one = np.asarray([5], np.int32)
    short = dataclasses.replace(pairs.groups[0], responses=(one, pairs.groups[0].rejected))
    pairs = dataclasses.replace(pairs, groups=(*pairs.groups, short))
    batch = batch_of(pairs, multiple=1, packed=packed)
    rows = batch.views["main"].slots.elements
    assert (rows[:, -1] >= 0).any() and (rows[:, 0] >= 0).all()
    got = scored(MODEL, {"params": params()}, batch).logps
    np.testing.assert_allclose(got, by_hand(MODEL, {"params": params()}, pairs), atol=2e-5)


def test_contrast_lines_up_responses_behind_prompts_of_different_lengths() -> None:
    """What follows is decided by the last prompt token alone here, so equal last tokens must give equal scores."""
    model, known = known_model()
    pairs = random_encoded(4, vocab_size=SUCCESSORS, prompts={"plus": 3, "minus": 9})
    for pair in pairs.groups:
        for prompt in pair.prompts.values():
            prompt[-1] = 11
    variables = {"params": known}
    batch = batch_of(pairs)
    positive, negative = (scored(model, variables, batch, view=view).logps for view in ("plus", "minus"))
    np.testing.assert_allclose(positive, negative, atol=1e-5)
    np.testing.assert_allclose(positive, by_hand(model, variables, pairs, "minus"), atol=1e-5)
    assert (np.asarray(positive) < -1.0).any(), "random responses: there is something to line up"


@pytest.mark.parametrize("direction", ["policy||reference", "reference||policy"])
def test_two_models_over_one_view(direction: Any) -> None:
    pairs, batch = ENCODED, batch_of(ENCODED)
    policy, reference = {"params": params(1)}, {"params": params(2)}
    got, reference_logps = scored_pair(MODEL, policy, reference, batch, direction=direction, chunk=7)
    np.testing.assert_allclose(got.logps, by_hand(MODEL, policy, pairs), atol=2e-5)
    np.testing.assert_allclose(reference_logps, by_hand(MODEL, reference, pairs), atol=2e-5)
    ours, theirs = (jnp.asarray(logits_by_hand(MODEL, v, pairs)) for v in (policy, reference))
    expected = kl_from_logits(ours, theirs, direction=direction) * batch.mask
    np.testing.assert_allclose(got.kl, expected, rtol=1e-4, atol=1e-5)


def test_the_reference_may_be_known_by_its_last_hidden_states() -> None:
    """What it says of the batch and the KL are the same, and its layers are not run."""
    batch, policy, reference = batch_of(ENCODED), {"params": params(1)}, {"params": params(2)}
    states = jax.jit(read, static_argnums=0)(MODEL, reference, batch.views["main"]).hidden
    expected, expected_reference = scored_pair(MODEL, policy, reference, batch, chunk=7)
    head_alone = {"params": {"head": params(2)["head"]}}
    got, reference_logps = scored_pair(MODEL, policy, head_alone, batch._replace(states=states), chunk=7)
    np.testing.assert_allclose(got.kl, expected.kl, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(reference_logps, expected_reference, rtol=1e-5, atol=1e-6)


def test_the_same_model_twice_is_at_distance_zero_exactly() -> None:
    batch, variables = batch_of(ENCODED), {"params": params()}
    got, reference_logps = scored_pair(MODEL, variables, variables, batch, chunk=7)
    np.testing.assert_array_equal(got.kl, 0.0)
    np.testing.assert_array_equal(got.logps, reference_logps)
    out = losses.tisdpo_loss(got.logps, reference_logps, batch.mask, weights=3.0 * batch.mask, token_kl=got.kl)
    np.testing.assert_array_equal(out.loss, np.float32(np.log(2.0)))


def test_gradients_go_to_the_policy_alone() -> None:
    batch = batch_of(ENCODED)

    def total(policy: Any, reference: Any) -> jax.Array:
        got, reference_logps = score_pair_of_models(MODEL, policy, reference, batch)
        assert got.kl is not None
        return (got.logps + got.kl + reference_logps).sum()

    grads = jax.jit(jax.grad(total, argnums=(0, 1)))({"params": params(1)}, {"params": params(2)})
    assert all(bool((leaf != 0).any()) for leaf in jax.tree.leaves(grads[0]))
    for leaf in jax.tree.leaves(grads[1]):
        np.testing.assert_array_equal(leaf, 0.0)


def test_with_adapters_the_reference_is_the_base() -> None:
    batch = batch_of(ENCODED)
    lora = random_adapters(0, params())
    zero = jax.tree_util.tree_map_with_path(lambda path, x: jnp.zeros_like(x) if path[-1].key == "b" else x, lora)
    base = {"params": params()}
    got, reference_logps = scored_pair(MODEL, {"params": params(), "lora": zero}, base, batch)
    np.testing.assert_array_equal(got.kl, 0.0)
    np.testing.assert_array_equal(got.logps, reference_logps)
    got, _ = scored_pair(MODEL, {"params": params(), "lora": lora}, base, batch)
    assert got.kl is not None and float(got.kl.min(where=batch.mask > 0, initial=1.0)) > 0


def test_fillers_score_zero_and_leave_no_gradient() -> None:
    pairs = random_encoded(10, pairs=2)
    indices = np.asarray([0, 1, -1, -1])
    batch = make_batch(pairs, indices, layout=fit(pairs, [indices], elements=6, shards=4))
    reference = {"params": params(2)}

    def total(params: Params, batch: Any) -> tuple[jax.Array, jax.Array]:
        got, reference_logps = score_pair_of_models(MODEL, {"params": params}, reference, batch)
        out = losses.tisdpo_loss(got.logps, reference_logps, batch.mask, weights=batch.mask, token_kl=got.kl)
        return out.loss[:2].sum() + out.loss[2:].sum(), got.logps

    gradient = jax.jit(jax.grad(total, has_aux=True))
    grad, logps = gradient(params(1), batch)
    np.testing.assert_array_equal(logps[2:], 0.0)
    alone, _ = gradient(params(1), batch_of(pairs, elements=6))
    # rows without any pair, whatever stands in them
    rows = batch.views["main"].rows
    assert rows.tree is not None and (rows.tree.pair == 0).all(1).sum() == 2
    filled = batch.views["main"]._replace(rows=rows._replace(tokens=np.where(rows.tree.pair == 0, 9, rows.tokens)))
    other, _ = gradient(params(1), batch._replace(views={"main": filled}))
    for one, two, three in zip(*map(jax.tree.leaves, (grad, alone, other)), strict=True):
        assert np.isfinite(one).all()
        np.testing.assert_allclose(one, two, atol=1e-5 * np.abs(two).max())
        np.testing.assert_allclose(one, three, atol=1e-6)


def test_no_logits_of_all_positions_in_the_gradient_of_a_loss() -> None:
    batch, chunk = random_batch(11, pairs=16, elements=8), 40
    variables = {"params": params()}

    def total(params: Params) -> jax.Array:
        got, reference_logps = score_pair_of_models(MODEL, {"params": params}, variables, batch, chunk=chunk)
        return losses.tisdpo_loss(
            got.logps, reference_logps, batch.mask, weights=batch.mask, token_kl=got.kl
        ).loss.sum()

    vocabulary = MODEL.config.vocab_size
    program = jax.make_jaxpr(jax.value_and_grad(total))(params()).jaxpr
    rows = {math.prod(a.shape[:-1]) for a in arrays(program) if a.shape[-1:] == (vocabulary,)}
    slots = batch.views["main"].slots.targets.size
    assert slots > 2 * chunk and max(rows) == math.ceil(slots / math.ceil(slots / chunk))


@pytest.mark.parametrize("family", [pytest.param("llama3", marks=pytest.mark.slow), "smollm2"])
def test_bfloat16_compute_still_gives_float32_scores(family: str) -> None:
    """With a tied head too, whose product some versions of XLA for CPUs do not have in bfloat16."""
    model = Model(FAMILIES[family])
    low = dataclasses.replace(model, compute=dataclasses.replace(model.compute, dtype="bfloat16"))
    batch = random_batch(12)

    def total(params: Params, model: Model) -> tuple[jax.Array, jax.Array]:
        got = score(model, {"params": params}, batch).logps
        return got.sum(), got

    gradient = jax.jit(jax.grad(total, has_aux=True), static_argnums=1)
    weights = random_params(0, model.config)
    (grad, got), (exact_grad, exact) = gradient(weights, low), gradient(weights, model)
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got, exact, atol=0.02 * np.abs(exact).max())
    for (path, one), other in zip(jax.tree_util.tree_leaves_with_path(grad), jax.tree.leaves(exact_grad), strict=True):
        assert one.dtype == jnp.float32, path
        distance = np.linalg.norm(one - other) / np.linalg.norm(other)
        assert distance < 0.1, f"{jax.tree_util.keystr(path)}: {distance}"


def test_the_room_says_what_it_offers() -> None:
    assert all(callable(getattr(scoring, name)) for name in scoring.__all__)
