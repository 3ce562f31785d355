"""When bad records stop a run, and which prompts are held out."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tisdpo_jax.data import InvalidRecord, Message, Pair, PairSet, apply_policy, split_by_prompt
from tisdpo_jax.errors import ConfigError, DataError


def pair(number: int, prompt: str) -> Pair:
    return Pair(f"id{number}", (Message("user", prompt),), "a", "b", f"f.jsonl:{number}")


def made(prompts: list[str], bad: int = 0) -> PairSet:
    pairs = tuple(pair(i, prompt) for i, prompt in enumerate(prompts))
    reasons = ["empty response", "prompts differ", "prompts differ"]
    invalid = tuple(InvalidRecord(f"f.jsonl:{100 + i}", reasons[i % 3], f"d{i}") for i in range(bad))
    return PairSet(pairs, invalid, "f.jsonl")


def test_clean_data_passes_either_way() -> None:
    data = made(["p", "q"])
    assert apply_policy(data, "fail", 0.0) is data
    assert apply_policy(data, "skip", 0.0) is data


def test_fail_lists_what_is_wrong_and_says_what_to_do() -> None:
    with pytest.raises(DataError) as caught:
        apply_policy(made(["p"] * 88, bad=12), "fail", 1.0)
    first, *rest = str(caught.value).splitlines()
    assert first.startswith("f.jsonl: 12 of 100 records invalid (8 prompts differ, 4 empty response)")
    assert "data.on_error skip" in first
    assert rest[0] == "  f.jsonl:100: empty response (d0)"
    assert len(rest) == 11
    assert rest[-1] == "  ... and 2 more"


def test_skip_goes_on_up_to_the_cap() -> None:
    data = made(["p"] * 95, bad=5)
    assert apply_policy(data, "skip", 0.05) is data
    with pytest.raises(DataError, match=r"5 of 100 records invalid .* data\.max_invalid 0\.04"):
        apply_policy(data, "skip", 0.04)


def test_nothing_usable_is_an_error_even_where_everything_may_be_rejected() -> None:
    with pytest.raises(DataError, match="no usable records"):
        apply_policy(made([], bad=3), "skip", 1.0)
    with pytest.raises(ConfigError, match=r"data\.on_error"):
        apply_policy(made(["p"]), "ignore", 1.0)


prompts = st.lists(st.sampled_from("abcdefgh"), min_size=1, max_size=40).filter(lambda found: len(set(found)) > 1)


@given(prompts, st.floats(0.01, 0.6), st.integers(0, 5))
def test_held_out_prompts_are_never_trained_on(found: list[str], fraction: float, seed: int) -> None:
    data = made(found, bad=2)
    try:
        train, held_out = split_by_prompt(data, fraction, seed)
    except DataError:
        assert max(1, round(fraction * len(set(found)))) >= len(set(found))
        return
    assert not {p.messages for p in train.pairs} & {p.messages for p in held_out.pairs}
    assert sorted(train.pairs + held_out.pairs, key=lambda p: int(p.id[2:])) == list(data.pairs)
    assert len({p.messages for p in held_out.pairs}) == max(1, round(fraction * len(set(found))))
    assert train.invalid == data.invalid
    assert not held_out.invalid
    # The choice is of prompts: it does not depend on the order of the records.
    again = split_by_prompt(PairSet(data.pairs[::-1], (), "x"), fraction, seed)[1]
    assert {p.id for p in again.pairs} == {p.id for p in held_out.pairs}


def test_split_depends_on_the_seed_and_may_be_empty() -> None:
    data = made([str(i) for i in range(40)])
    choices = {tuple(p.id for p in split_by_prompt(data, 0.25, seed)[1].pairs) for seed in range(4)}
    assert len(choices) == 4
    train, held_out = split_by_prompt(data, 0.0, 0)
    assert train.pairs == data.pairs
    assert not held_out.pairs
    with pytest.raises(ConfigError, match=r"data\.eval_fraction"):
        split_by_prompt(data, 1.0, 0)
    with pytest.raises(DataError, match="too few"):
        split_by_prompt(made(["p"]), 0.5, 0)
