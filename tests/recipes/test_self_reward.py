"""From answers to pairs: who stands where, what is left out and why, and how origins are told apart."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from tisdpo_jax.config import DlmaSection
from tisdpo_jax.data import Message, Prompt
from tisdpo_jax.generation import Response
from tisdpo_jax.scoring import contrast_scores
from tisdpo_jax.stages.self_reward import candidates, select, taken, turned_columns
from tisdpo_jax.testing import random_encoded, random_pairs
from tisdpo_jax.weights import token_rewards

PROMPTS = [Prompt(f"p{n}", (Message("user", f"question {n}"),), f"file:{n}") for n in range(7)]


def answered(*rows):
    """Responses to the prompts in turn: (positive, negative), each text or (text, finish)."""
    found = {}
    for prompt, row in zip(PROMPTS, rows, strict=False):
        for view, said in zip(("plus", "minus"), row, strict=True):
            text, finish = (said, "stop") if isinstance(said, str) else said
            found[f"{prompt.id}/{view}/0"] = Response(f"{prompt.id}/{view}/0", text, finish)
    return found


def test_each_kind_of_useless_answer_is_counted():
    rows = (
        ("good", "bad"),
        ("", "bad"),
        ("same", "same"),
        (("cut", "length"), "bad"),
        (("", "too long"), ("", "too long")),
        ("good", " \n"),
    )
    for policy, kept in (("keep", ["p0/0", "p3/0"]), ("drop", ["p0/0"])):
        found = candidates(PROMPTS, answered(*rows), 1, unfinished=policy)
        assert [pair.id for pair in found.pairs] == kept
        reasons = [invalid_record.reason for invalid_record in found.invalid]
        unfinished = ["unfinished answer"] if policy == "drop" else []
        assert reasons == ["empty answer", "duplicate", *unfinished, "prompt too long", "empty answer"]
    pair = candidates(PROMPTS, answered(*rows), 1, unfinished="keep").pairs[0]
    assert (pair.chosen, pair.rejected, pair.origin) == ("good", "bad", "file:0 sample 0")


def test_the_same_pair_twice_is_a_duplicate_and_other_samples_are_not():
    twice = {f"p0/{view}/{n}": Response(f"p0/{view}/{n}", view) for view in ("plus", "minus") for n in range(2)}
    found = candidates(PROMPTS[:1], twice, 2, unfinished="keep")
    assert len(found.pairs) == 1 and [r.reason for r in found.invalid] == ["duplicate"]
    twice["p0/minus/1"] = Response("p0/minus/1", "other")
    assert [pair.id for pair in candidates(PROMPTS[:1], twice, 2, unfinished="keep").pairs] == ["p0/0", "p0/1"]


SCORES = np.array([[3.0, 1.0], [1.0, 3.0], [0.5, 0.2], [2.0, -2.0], [-1.0, 4.0]])
TOKENS = np.array([[10, 10], [10, 12], [10, 10], [40, 10], [9, 9]])


@pytest.mark.parametrize(
    ("options", "indices", "flipped", "dropped"),
    [
        ({}, [0, 1, 2, 3, 4], [0, 1, 0, 0, 1], {}),
        ({"relabel": False}, [0, 1, 2, 3, 4], [0, 0, 0, 0, 0], {}),
        ({"tie_band": 0.5}, [0, 1, 3, 4], [0, 1, 0, 1], {2: "tie"}),
        ({"length_ratio": 3.0}, [0, 1, 2, 4], [0, 1, 0, 1], {3: "length ratio"}),
        ({"tie_band": 4.0, "length_ratio": 1.1}, [4], [1], {0: "tie", 1: "tie", 2: "tie", 3: "tie"}),
    ],
)
def test_filters_and_labels(options, indices, flipped, dropped):
    found = select(SCORES, TOKENS, dataclasses.replace(DlmaSection(), **options))
    assert found.indices.tolist() == indices and found.flipped.tolist() == [bool(x) for x in flipped]
    assert found.dropped == dropped


def test_turning_a_pair_turns_its_tokens_and_its_columns_alike():
    encoded = random_encoded(0, pairs=5)
    selection = select(SCORES, TOKENS, DlmaSection(tie_band=0.5))
    column = np.arange(5 * 2 * 3).reshape(5, 2, 3)
    assert [(r.origin, r.reason) for r in taken(encoded, selection).invalid] == [("random:2", "tie")]
    pairs, columns = taken(encoded, selection).groups, turned_columns({"c": column}, selection)["c"]
    for row, (index, flip) in enumerate(zip(selection.indices, selection.flipped, strict=True)):
        before = encoded.groups[index]
        sides = (before.rejected, before.chosen) if flip else (before.chosen, before.rejected)
        assert pairs[row].id == before.id
        np.testing.assert_array_equal(pairs[row].chosen, sides[0])
        np.testing.assert_array_equal(pairs[row].rejected, sides[1])
        np.testing.assert_array_equal(columns[row], column[index][::-1] if flip else column[index])


def test_the_score_is_the_sum_of_token_rewards():
    p = random_pairs(3)
    summed = contrast_scores(p.positive_logps, p.negative_logps, p.mask)
    np.testing.assert_allclose(summed, token_rewards(p.positive_logps, p.negative_logps, p.mask).sum(-1), atol=1e-5)
    mean = contrast_scores(p.positive_logps, p.negative_logps, p.mask, average=True)
    np.testing.assert_allclose(mean * np.asarray(p.mask).sum(-1), summed, rtol=1e-12)
    assert contrast_scores(np.full((2, 3), -np.inf), np.zeros((2, 3)), np.zeros((2, 3))).tolist() == [0.0, 0.0]
