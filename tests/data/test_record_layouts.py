"""Records to pairs: what each layout means, and what each kind of bad record is called."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tisdpo_jax.data.layouts import detect_layout, read_record
from tisdpo_jax.data.records import Pair, Unusable

USER, ASSISTANT, SYSTEM = "user", "assistant", "system"


def read(record: Any, layout: str = "") -> Pair:
    found = layout or detect_layout(record)
    assert found is not None
    return read_record(record, found, origin="file:7", default_id="line-7")


def reason(record: Any, layout: str = "") -> tuple[str, str]:
    with pytest.raises(Unusable) as caught:
        read(record, layout)
    return caught.value.reason, caught.value.detail


def turns(pair: Pair) -> list[tuple[str, str]]:
    return [(message.role, message.content) for message in pair.messages]


def as_dicts(*messages: tuple[str, str]) -> list[dict[str, str]]:
    return [{"role": role, "content": content} for role, content in messages]


def hh(*messages: str) -> str:
    return "".join(f"\n\n{('Human', 'Assistant')[i % 2]}: {text}" for i, text in enumerate(messages))


text = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1).filter(
    lambda value: value.strip() == value and "\n\n" not in value
)
odd_turns = st.lists(text, min_size=1, max_size=5).filter(lambda values: len(values) % 2 == 1)


@given(prompt=odd_turns, chosen=text, rejected=text)
def test_every_layout_reads_the_same_pair(prompt: list[str], chosen: str, rejected: str) -> None:
    roles = [USER if i % 2 == 0 else ASSISTANT for i in range(len(prompt))]
    expected = list(zip(roles, prompt, strict=True))
    messages = as_dicts(*expected)
    froms = [{"from": "human" if role == USER else "gpt", "value": content} for role, content in expected]
    records = {
        "pairs": {"messages": messages, "chosen": chosen, "rejected": rejected},
        "hh": {"chosen": hh(*prompt, chosen), "rejected": hh(*prompt, rejected)},
        "sharegpt": {
            "conversations": froms,
            "chosen": {"from": "gpt", "value": chosen},
            "rejected": {"from": "gpt", "value": rejected},
        },
        "hf": {
            "chosen": messages + as_dicts((ASSISTANT, chosen)),
            "rejected": messages + as_dicts((ASSISTANT, rejected)),
        },
    }
    for layout, record in records.items():
        record = json.loads(json.dumps(record))
        assert detect_layout(record) == layout
        if chosen == rejected:
            assert reason(record)[0] == "responses equal"
            continue
        pair = read(record)
        assert turns(pair) == expected
        assert (pair.chosen, pair.rejected, pair.id, pair.origin) == (chosen, rejected, "line-7", "file:7")


def test_prompt_never_takes_the_shared_first_words_of_the_responses() -> None:
    record = {"chosen": hh("hi", "I am sorry, no."), "rejected": hh("hi", "I am sorry, yes.")}
    pair = read(record)
    assert turns(pair) == [(USER, "hi")]
    assert (pair.chosen, pair.rejected) == ("I am sorry, no.", "I am sorry, yes.")
    implicit = {
        "chosen": as_dicts((USER, "hi"), (ASSISTANT, "I am here")),
        "rejected": as_dicts((USER, "hi"), (ASSISTANT, "I am not")),
    }
    assert read(implicit).chosen == "I am here"


def test_pairs_optional_fields() -> None:
    record = {
        "id": 12,
        "prompt": "hi",
        "chosen": "a",
        "rejected": "b",
        "margin": 2,
        "chosen_weights": [1, 0.5],
        "rejected_weights": [0.25],
    }
    pair = read(record)
    assert (pair.id, pair.margin, pair.chosen_weights, pair.rejected_weights) == ("12", 2.0, (1.0, 0.5), (0.25,))
    assert turns(pair) == [(USER, "hi")]
    # Tables of Hugging Face hold None where a record has no such field.
    assert read({"prompt": "hi", "messages": None, "chosen": "a", "rejected": "b", "margin": None}).margin is None


@pytest.mark.parametrize("prompt", ["hi", as_dicts((USER, "hi"))])
def test_hf_with_a_separate_prompt(prompt: Any) -> None:
    apart = {"prompt": prompt, "chosen": as_dicts((ASSISTANT, "a")), "rejected": as_dicts((ASSISTANT, "b"))}
    whole = {
        "prompt": prompt,
        "chosen": as_dicts((USER, "hi"), (ASSISTANT, "a")),
        "rejected": as_dicts((USER, "hi"), (ASSISTANT, "b")),
        "score_chosen": 9.0,
    }
    for record in (apart, whole):
        assert detect_layout(record) == "hf"
        assert turns(read(record)) == [(USER, "hi")]
    foreign = {**whole, "prompt": "something else"}
    assert reason(foreign)[0] == "prompts differ"


def test_sharegpt_with_a_system_turn() -> None:
    record = {
        "conversations": [{"from": "system", "value": "Be kind."}, {"from": "human", "value": "hi"}],
        "chosen": {"from": "gpt", "value": "a"},
        "rejected": {"from": "gpt", "value": "b"},
    }
    assert turns(read(record)) == [(SYSTEM, "Be kind."), (USER, "hi")]
    record["conversations"] = record["conversations"][1:]
    assert turns(read({**record, "system": "Be kind."})) == [(SYSTEM, "Be kind."), (USER, "hi")]


BASE: dict[str, Any] = {"prompt": "hi", "chosen": "a", "rejected": "b"}
HF: dict[str, Any] = {"chosen": as_dicts((USER, "hi"), (ASSISTANT, "a"))}

BAD: list[tuple[str, Any, str, str]] = [
    ("pairs", "a string", "not an object", "str"),
    ("pairs", {**BASE, "choosen": "x"}, "unknown field", "'choosen', did you mean 'chosen'?"),
    ("pairs", {**BASE, "zzz": "x"}, "unknown field", "'zzz'"),
    ("pairs", {"prompt": "hi", "chosen": "a"}, "missing field", "'rejected'"),
    ("pairs", {"chosen": "a", "rejected": "b"}, "missing field", "'prompt'"),
    ("pairs", {**BASE, "messages": as_dicts((USER, "hi"))}, "missing field", "only one"),
    ("pairs", {**BASE, "chosen": 3}, "wrong type", "'chosen' is not text"),
    ("pairs", {**BASE, "chosen": "  \n"}, "empty response", "chosen"),
    ("pairs", {**BASE, "rejected": ""}, "empty response", "rejected"),
    ("pairs", {**BASE, "rejected": " a\n"}, "responses equal", "same text"),
    ("pairs", {**BASE, "prompt": " "}, "empty turn", "turn 1"),
    ("pairs", {**BASE, "chosen": "a\0"}, "invalid text", "NUL character in chosen"),
    ("pairs", {**BASE, "prompt": "x\ud800"}, "invalid text", "lone surrogate at character 1"),
    ("pairs", {**BASE, "id": "\udfff"}, "invalid text", "id"),
    ("pairs", {**BASE, "id": ["x"]}, "wrong type", "'id'"),
    ("pairs", {**BASE, "margin": "3"}, "wrong type", "'margin' holds '3'"),
    ("pairs", {**BASE, "margin": float("nan")}, "wrong type", "not a finite number"),
    ("pairs", {**BASE, "margin": 10**400}, "wrong type", "not a finite number"),
    ("pairs", {**BASE, "chosen_weights": [1]}, "missing field", "come together"),
    ("pairs", {**BASE, "chosen_weights": [1, None], "rejected_weights": [1]}, "wrong type", "'chosen_weights'"),
    ("pairs", {**BASE, "chosen_weights": "11", "rejected_weights": [1]}, "wrong type", "not a list"),
    ("pairs", {**BASE, "chosen_weights": [0], "rejected_weights": [0.0]}, "nothing to train on", "are 0"),
    ("pairs", {"messages": [], "chosen": "a", "rejected": "b"}, "empty prompt", ""),
    ("pairs", {"messages": as_dicts((SYSTEM, "s")), "chosen": "a", "rejected": "b"}, "empty prompt", ""),
    ("pairs", {"messages": "hi", "chosen": "a", "rejected": "b"}, "wrong type", "not a list of messages"),
    ("pairs", {"messages": [{"role": USER}], "chosen": "a", "rejected": "b"}, "wrong type", "has no text"),
    ("pairs", {"messages": ["hi"], "chosen": "a", "rejected": "b"}, "wrong type", "not an object"),
    ("pairs", {"messages": as_dicts(("boss", "x")), "chosen": "a", "rejected": "b"}, "unknown role", "'boss'"),
    ("pairs", {"messages": [{"role": [1], "content": "x"}], "chosen": "a", "rejected": "b"}, "unknown role", "[1]"),
    ("pairs", {"messages": as_dicts((ASSISTANT, "x")), "chosen": "a", "rejected": "b"}, "turn order", "turn 1"),
    ("pairs", {"messages": as_dicts((USER, "x"), (USER, "y")), "chosen": "a", "rejected": "b"}, "turn order", "turn 2"),
    (
        "pairs",
        {"messages": as_dicts((USER, "x"), (ASSISTANT, "y")), "chosen": "a", "rejected": "b"},
        "turn order",
        "does not end",
    ),
    (
        "pairs",
        {"messages": as_dicts((USER, "x"), (SYSTEM, "y"), (USER, "z")), "chosen": "a", "rejected": "b"},
        "turn order",
        "turn 2 is the system's",
    ),
    ("hh", {"chosen": hh("q", "a"), "rejected": hh("p", "b")}, "prompts differ", "before their last turn"),
    ("hh", {"chosen": hh("q", "a"), "rejected": hh("q", "a", "r", "b")}, "prompts differ", ""),
    ("hh", {"chosen": hh("q", ""), "rejected": hh("q", "b")}, "empty response", "chosen"),
    ("hh", {"chosen": hh("", "a"), "rejected": hh("", "b")}, "empty turn", "turn 1"),
    ("hh", {"chosen": hh("q", "a"), "rejected": hh("q", "b", "more")}, "turn order", "rejected does not end"),
    ("hh", {"chosen": "\n\nAssistant: a", "rejected": "\n\nAssistant: b"}, "empty prompt", ""),
    (
        "hh",
        {"chosen": "\n\nHuman: q\n\nHuman: r\n\nAssistant: a", "rejected": "\n\nHuman: q\n\nHuman: r\n\nAssistant: b"},
        "turn order",
        "turn 2",
    ),
    ("hh", {"chosen": "Dear" + hh("q", "a"), "rejected": hh("q", "b")}, "not a transcript", "chosen"),
    ("hh", {"chosen": hh("q", "a"), "rejected": "b"}, "not a transcript", "rejected"),
    ("hf", {**HF, "rejected": as_dicts((USER, "no"), (ASSISTANT, "b"))}, "prompts differ", ""),
    ("hf", {**HF, "rejected": as_dicts((USER, "hi"))}, "turn order", "rejected does not end"),
    ("hf", {**HF, "rejected": []}, "turn order", "rejected does not end"),
    ("hf", {**HF, "rejected": None}, "wrong type", "no 'rejected'"),
    ("sharegpt", {"conversations": [], "chosen": "a", "rejected": "b"}, "empty prompt", ""),
    (
        "sharegpt",
        {"conversations": [], "chosen": "a", "rejected": "b", "tools": "[x]"},
        "wrong type",
        "'tools' is text, but not JSON",
    ),
]


@pytest.mark.parametrize(("layout", "record", "phrase", "detail"), BAD)
def test_bad_records_are_named(layout: str, record: Any, phrase: str, detail: str) -> None:
    found, said = reason(record, layout)
    assert found == phrase
    assert detail in said


def test_detection_needs_both_sides() -> None:
    assert detect_layout({"prompt": "hi", "chosen": "a"}) is None
    assert detect_layout({"chosen": "a", "rejected": "b"}) is None
    assert detect_layout("text") is None


def test_a_field_may_name_the_subset_in_every_layout() -> None:
    records = {
        "pairs": {"prompt": "hi", "chosen": "a", "rejected": "b"},
        "hh": {"chosen": hh("q", "a"), "rejected": hh("q", "b")},
        "hf": {**HF, "rejected": as_dicts((USER, "hi"), (ASSISTANT, "b"))},
    }
    for layout, record in records.items():
        for value, group in (("maths", "maths"), (3, "3"), (None, None)):
            pair = read_record({**record, "topic": value}, layout, origin="x:1", default_id="1", group_field="topic")
            assert pair.group == group
    assert read_record(records["pairs"], "pairs", origin="x:1", default_id="1", group_field="topic").group is None
    # without being named it is a field that nothing reads, and a list names no subset
    assert reason({**records["pairs"], "topic": "maths"}, "pairs")[0] == "unknown field"
    with pytest.raises(Unusable, match="wrong type"):
        read_record({**records["hf"], "topic": ["a"]}, "hf", origin="x:1", default_id="1", group_field="topic")
