"""What is said of a response depends on its prompt and itself, not on what else its row holds."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import numpy as np
import pytest

from tisdpo_jax.data import EncodedSet
from tisdpo_jax.models import ComputeConfig, Model
from tisdpo_jax.scoring import score, score_pair_of_models
from tisdpo_jax.testing import FAMILIES, batch_of, random_encoded, random_params
from tisdpo_jax.types import Params

ENCODED = random_encoded(5, pairs=6, prompt=9, elements=7)
BACK_ENDS: dict[str, dict[str, Any]] = {"xla": {}, "splash": {"copies": True, "multiple": 128}}
EVERY_BACK_END = pytest.mark.parametrize("attention", BACK_ENDS)

scored_pair = jax.jit(score_pair_of_models, static_argnums=0)


@functools.cache
def params(family: str, seed: int) -> Params:
    return random_params(seed, FAMILIES[family])


def scores(
    encoded: EncodedSet, attention: str = "xla", family: str = "mistral", **layout: Any
) -> dict[str, np.ndarray]:
    model = Model(FAMILIES[family], ComputeConfig(attention=attention))  # type: ignore[arg-type]
    batch = batch_of(encoded, elements=7, **{**BACK_ENDS[attention], **layout})
    policy, reference = ({"params": params(family, seed)} for seed in (0, 1))
    got, theirs = scored_pair(model, policy, reference, batch)
    return {"policy": np.asarray(got.logps), "reference": np.asarray(theirs), "KL": np.asarray(got.kl)}


def with_pair(encoded: EncodedSet, index: int, **changes: Any) -> EncodedSet:
    pairs = list(encoded.groups)
    ids = {name: getattr(pairs[index], name) for name in ("prompt", "chosen", "rejected")} | changes
    responses = (ids["chosen"], ids["rejected"])
    pairs[index] = dataclasses.replace(pairs[index], prompts={"main": ids["prompt"]}, responses=responses)
    return dataclasses.replace(encoded, groups=tuple(pairs))


@pytest.mark.parametrize(
    ("family", "attention"),
    [  # the others of these pairs take a whole step in tests/training/test_packed_steps.py
        *(("mistral", "xla"), ("gemma2", "splash"), ("gemma3", "splash")),
        *(pytest.param(*pair, marks=pytest.mark.slow) for pair in (("gemma2", "xla"), ("gemma3", "xla"))),
    ],
)
def test_scores_of_packed_pairs_are_those_of_padded_ones(family: str, attention: str) -> None:
    found, expected = scores(ENCODED, attention, family), scores(ENCODED, family=family, packed=False)
    for name, values in expected.items():
        np.testing.assert_allclose(found[name], values, atol=2e-5, err_msg=name)


@EVERY_BACK_END
@pytest.mark.parametrize("changed", ["prompt", "chosen", "rejected"])
def test_other_tokens_change_their_own_scores_alone(changed: str, attention: str) -> None:
    """Other pairs of the row, and the other side of the pair, are the same to the last bit."""
    before = scores(ENCODED, attention)
    assert len(batch_of(ENCODED).views["main"].rows.tokens) < 3, "several pairs a row"
    index = int(np.argmax(ENCODED.lengths()))  # the first of its row: the others stand behind it
    tokens = (getattr(ENCODED.groups[index], changed) + 11) % 64
    after = scores(with_pair(ENCODED, index, **{changed: tokens}), attention)
    touched = np.zeros((6, 2), bool)
    touched[index] = {"prompt": (True, True), "chosen": (True, False), "rejected": (False, True)}[changed]
    for name, values in before.items():
        np.testing.assert_array_equal((after[name] != values).any(-1), touched, err_msg=name)


@EVERY_BACK_END
def test_a_token_of_a_response_changes_what_comes_from_it_on(attention: str) -> None:
    before = scores(ENCODED, attention)["policy"]
    index = next(i for i, pair in enumerate(ENCODED.groups) if len(pair.chosen) >= 5)
    chosen = ENCODED.groups[index].chosen.copy()
    chosen[2] = (chosen[2] + 11) % 64
    after = scores(with_pair(ENCODED, index, chosen=chosen), attention)["policy"]
    where = np.argwhere(after != before)
    assert {tuple(x[:2]) for x in where} == {(index, 0)} and sorted(x[2] for x in where) == list(range(2, len(chosen)))


@EVERY_BACK_END
def test_the_order_of_the_pairs_does_not_matter(attention: str) -> None:
    order = np.asarray([3, 0, 5, 1, 4, 2])
    permuted = dataclasses.replace(ENCODED, groups=tuple(ENCODED.groups[i] for i in order))
    before, after = scores(ENCODED, attention), scores(permuted, attention)
    for name, values in before.items():
        np.testing.assert_allclose(after[name], values[order], atol=1e-5, err_msg=name)


def test_how_rows_are_cut_does_not_matter() -> None:
    expected = scores(ENCODED)
    for layout in ({"shards": 2}, {"width": 1, "multiple": 1}, {"multiple": 64}):
        for name, values in scores(ENCODED, **layout).items():
            np.testing.assert_allclose(values, expected[name], atol=1e-5, err_msg=f"{layout} {name}")


def test_swapped_and_single_sides_are_those_of_both() -> None:
    both = scores(ENCODED)
    for sides in ((1, 0), (1,)):
        for name, values in scores(ENCODED, sides=sides).items():
            np.testing.assert_allclose(values, both[name][:, list(sides)], atol=1e-5, err_msg=f"{sides} {name}")


def test_responses_are_the_same_behind_the_prompts_of_a_view() -> None:
    """A view that shows the main prompts scores what main scores, though it is packed by itself."""
    pairs = tuple(
        dataclasses.replace(pair, prompts=dict.fromkeys(("main", "plus", "minus"), pair.prompt))
        for pair in ENCODED.groups
    )
    batch = batch_of(dataclasses.replace(ENCODED, groups=pairs))
    model = Model(FAMILIES["llama3"])
    run = jax.jit(score, static_argnums=0, static_argnames="view")
    found = [run(model, {"params": params("llama3", 0)}, batch, view=view).logps for view in ("main", "plus", "minus")]
    np.testing.assert_array_equal(found[0], found[1])
    np.testing.assert_array_equal(found[0], found[2])


# Groups of any number of responses.

GROUPS = random_encoded(7, pairs=5, responses=4, prompt=9, elements=7)


def with_responses(encoded: EncodedSet, change: Any) -> EncodedSet:
    changed = tuple(dataclasses.replace(one, responses=tuple(change(one.responses))) for one in encoded.groups)
    return dataclasses.replace(encoded, groups=changed)


@EVERY_BACK_END
def test_groups_of_four_score_as_their_responses_alone(attention: str) -> None:
    found = scores(GROUPS, attention)
    for name, values in scores(GROUPS, packed=False).items():
        np.testing.assert_allclose(found[name], values, atol=2e-5, err_msg=name)
    for s in range(4):
        one = with_responses(GROUPS, lambda responses, s=s: responses[s : s + 1])
        alone = scores(one, packed=False, multiple=32)  # rows of one length: one program for all
        for name, values in alone.items():
            np.testing.assert_allclose(found[name][:, s : s + 1], values, atol=2e-5, err_msg=f"{s} {name}")


def test_permuting_responses_permutes_their_scores() -> None:
    order = [2, 0, 3, 1]
    permuted = scores(with_responses(GROUPS, lambda responses: [responses[s] for s in order]))
    for name, values in scores(GROUPS).items():
        np.testing.assert_allclose(permuted[name], values[:, order], atol=1e-5, err_msg=name)


@EVERY_BACK_END
def test_an_empty_response_says_nothing_and_changes_nothing(attention: str) -> None:
    empty = with_responses(GROUPS, lambda responses: (responses[0], responses[1][:0], *responses[2:]))
    before, after = scores(GROUPS, attention), scores(empty, attention)
    for name, values in after.items():
        np.testing.assert_array_equal(values[:, 1], 0.0)
        np.testing.assert_allclose(values[:, [0, 2, 3]], before[name][:, [0, 2, 3]], atol=1e-5, err_msg=name)
