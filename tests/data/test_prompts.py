"""Prompts from files, and their tokens: those that training puts before a response."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tisdpo_jax.data import conversation_text, encode_pairs, open_template, prompt_ids, read_pairs, read_prompts
from tisdpo_jax.data.records import Message, Unusable
from tisdpo_jax.errors import DataError
from tisdpo_jax.testing import tiny_tokenizer, write_pairs


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_tokenizer()


def write(path: Path, *records: object) -> str:
    path.write_text("\n".join(map(json.dumps, records)) + "\n", encoding="utf-8")
    return str(path)


@pytest.mark.parametrize("template", ["auto", "hh"])
@pytest.mark.parametrize("system", ["", "be kind"])
def test_a_prompt_is_what_stands_before_the_response_in_training(tokenizer, tmp_path, template, system) -> None:
    path = write_pairs(tmp_path / "pairs.jsonl", 12)
    encoded = encode_pairs(
        read_pairs(path), tokenizer, template=template, system=system, max_length=128, max_response=48
    )
    prompts, invalid = read_prompts(str(path))
    assert not invalid and [p.id for p in prompts] == [p.id for p in encoded.groups]
    opened = open_template(template, tokenizer)
    for prompt, pair in zip(prompts, encoded.groups, strict=True):
        ids = prompt_ids(prompt.messages, tokenizer, opened, system=system, max_length=128)
        np.testing.assert_array_equal(ids, pair.prompt)
        assert pair.messages == prompt.messages


def test_a_long_prompt_loses_its_beginning_and_keeps_its_bos(tokenizer) -> None:
    opened = open_template("auto", tokenizer)
    message = [Message("user", "tell me about the cat " * 20)]
    whole = prompt_ids(message, tokenizer, opened, max_length=10_000)
    cut = prompt_ids(message, tokenizer, opened, max_length=16)
    assert len(cut) == 16 and cut[0] == whole[0] == tokenizer.bos_token_id
    np.testing.assert_array_equal(cut[1:], whole[-15:])


def test_records_of_every_kind_and_those_that_hold_no_prompt(tmp_path) -> None:
    talk = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}]
    path = write(
        tmp_path / "prompts.jsonl",
        {"id": "one", "prompt": "hi", "anything": 3},
        {"messages": talk},
        "bare text",
        {"chosen": "\n\nHuman: q\n\nAssistant: a", "rejected": "\n\nHuman: q\n\nAssistant: b"},
        {"prompt": "p", "chosen": "a", "rejected": "b", "topic": "maths"},
        {"prompt": " "},
        {"id": "one", "prompt": "again"},
        {"messages": talk[:2]},
        {"question": "?"},
        7,
    )
    prompts, invalid = read_prompts(path)
    assert [p.text for p in prompts] == ["hi", "user: a\n\nassistant: b\n\nuser: c", "bare text", "q", "p"]
    assert [p.id for p in prompts] == ["one", "line-2", "line-3", "line-4", "line-5"]
    reasons = [(r.origin.rpartition(":")[2], r.reason) for r in invalid]
    assert reasons == [
        *[("6", "empty turn"), ("7", "duplicate id"), ("8", "turn order"), ("9", "missing field")],
        ("10", "not an object"),
    ]
    assert len(read_prompts(path, limit=2)[0]) == 2
    with pytest.raises(DataError, match="no such file"):
        read_prompts(str(tmp_path / "gone.jsonl"))


def test_special_tokens_in_a_prompt_are_refused(tokenizer) -> None:
    opened = open_template("auto", tokenizer)
    with pytest.raises(Unusable, match="special token"):
        prompt_ids([Message("user", "x<|im_end|>")], tokenizer, opened, max_length=64)
    assert conversation_text([Message("user", "x")]) == "x"
