"""What judges say, and what two orders of the same question say together."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tisdpo_jax.judging.verdicts import outcomes_of_orders, outcomes_of_scores, parse_verdict
from tisdpo_jax.metrics import win_rate

verdicts = st.sampled_from(["first", "second", "tie", "unparsable", "filtered", "failed"])
WORDS = {"first": "second", "second": "first", "tie": "tie", "unparsable": "unparsable"}


@pytest.mark.parametrize(
    ("reply", "verdict"),
    [
        ("The first is kinder.\nverdict: first", "first"),
        ("Verdict: SECOND.", "second"),
        ("**Verdict:** tie", "tie"),
        ("verdict: first at first sight, but no.\nVerdict - second", "second"),
        ("tie", "tie"),
        (" 'First'. ", "first"),
        ("The first answer is better.", "unparsable"),
        ("verdict: neither", "unparsable"),
        ("<think>Verdict: first? No.</think>\nBoth.\n**Verdict: Second**", "second"),
        ("it began in the prompt, verdict: first</think>verdict: tie", "tie"),
        ("<thinking>verdict: first", "unparsable"),
        ("[THINK]verdict: first[/THINK]", "unparsable"),
        ("<|channel|>analysis<|message|>verdict: first<|end|><|channel|>final<|message|>second", "second"),
        ("The first answer only has <think> in it.\nverdict: second", "second"),
        ("verdict: firstly", "unparsable"),
        ("", "unparsable"),
    ],
)
def test_verdicts_are_read_from_the_end(reply: str, verdict: str) -> None:
    assert parse_verdict(reply) == verdict


@given(st.lists(st.tuples(verdicts, verdicts), min_size=1, max_size=20))
def test_swapping_the_models_turns_every_outcome(pairs) -> None:
    straight, swapped = zip(*pairs, strict=True)
    one, other = outcomes_of_orders(straight, swapped), outcomes_of_orders(swapped, straight)
    np.testing.assert_array_equal(one.values, 1.0 - other.values)
    np.testing.assert_array_equal(one.inconsistent, other.inconsistent)


@pytest.mark.parametrize("always", ["first", "second"])
def test_a_judge_that_looks_at_the_place_alone_finds_nothing_but_ties(always: str) -> None:
    found = outcomes_of_orders([always] * 7, [always] * 7)
    rate = win_rate("a", "b", found)
    assert rate.rate.value == 0.5 and (rate.wins, rate.ties, rate.losses) == (0, 7, 0)
    assert rate.inconsistent == 7 and rate.undecided == 0


def test_what_orders_say_together() -> None:
    straight = ["first", "first", "tie", "first", "tie", "unparsable", "second"]
    swapped = ["second", "first", "tie", "tie", "unparsable", "first", "first"]
    found = outcomes_of_orders(straight, swapped)
    np.testing.assert_array_equal(found.values, [1.0, 0.5, 0.5, 0.5, np.nan, np.nan, 0.0])
    np.testing.assert_array_equal(found.inconsistent, [False, True, False, True, False, False, False])
    rate = win_rate("a", "b", found)
    assert (rate.wins, rate.ties, rate.losses, rate.undecided) == (1, 3, 1, 2) and rate.rate.value == 0.5


def test_scores_within_the_band_are_a_tie() -> None:
    first, second = [1.0, 1.0, 1.0, np.nan, 2.0], [1.0, 1.1, 0.5, 1.0, 2.2]
    np.testing.assert_array_equal(outcomes_of_scores(first, second).values, [0.5, 0.0, 1.0, np.nan, 0.0])
    np.testing.assert_array_equal(outcomes_of_scores(first, second, tie_band=0.15).values, [0.5, 0.5, 1.0, np.nan, 0.0])
