"""Tokenizers and templates are identified by what they do, not by what they are called."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tisdpo_jax.data import open_template, tokenizer_identity
from tisdpo_jax.testing.tokenizer import CHAT_TEMPLATE, tiny_tokenizer


def changed(change: Any) -> Any:
    """A tiny tokenizer whose JSON was changed."""
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    plain = tiny_tokenizer()
    content = json.loads(plain.backend_tokenizer.to_str())
    change(content)
    backend = Tokenizer.from_str(json.dumps(content))
    made = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>")
    made.chat_template = plain.chat_template
    return made


def swap(content: Any) -> None:
    vocab = content["model"]["vocab"]
    vocab["a"], vocab["b"] = vocab["b"], vocab["a"]


def fewer(content: Any) -> None:
    content["model"]["merges"].pop()


def lower(content: Any) -> None:
    content["normalizer"] = {"type": "Lowercase"}


def test_a_tokenizer_is_its_content(tmp_path: Path) -> None:
    plain = tiny_tokenizer()
    expected = tokenizer_identity(plain)
    named = tiny_tokenizer()
    named.name_or_path = "/some/where"
    named(
        ["a", "b c d"], padding=True, pad_to_multiple_of=8, truncation=True, max_length=2
    ) if named.pad_token else None
    named.backend_tokenizer.enable_truncation(7)
    assert tokenizer_identity(named) == expected == tokenizer_identity(changed(lambda content: None))
    from transformers import PreTrainedTokenizerFast

    plain.save_pretrained(tmp_path / "moved")
    assert tokenizer_identity(PreTrainedTokenizerFast.from_pretrained(tmp_path / "moved")) == expected
    others = [changed(swap), changed(fewer), changed(lower), *(tiny_tokenizer() for _ in range(3))]
    others[3].add_tokens(["word"])
    others[4].chat_template += " "
    others[5].eos_token = "<|im_end|>"
    assert len({expected, *map(tokenizer_identity, others)}) == len(others) + 1


def test_a_template_is_its_text(tmp_path: Path) -> None:
    made = tiny_tokenizer()
    for name in ("one.jinja", "two.jinja"):
        (tmp_path / name).write_text(CHAT_TEMPLATE, encoding="utf-8")
    (tmp_path / "other.jinja").write_text(CHAT_TEMPLATE + " ", encoding="utf-8")
    choices = ["auto", *(str(tmp_path / name) for name in ("one.jinja", "two.jinja", "other.jinja")), "hh"]
    found = [open_template(choice, made).identity for choice in choices]
    assert found[0] == found[1] == found[2]
    assert len(set(found)) == 3
    made.chat_template = {"default": CHAT_TEMPLATE, "tool_use": CHAT_TEMPLATE + "tools"}
    assert open_template("auto", made).identity not in found


def test_the_tokenizer_of_tests_is_a_proper_one() -> None:
    plain, bare = tiny_tokenizer(), tiny_tokenizer(chat_template=False, adds_bos=False)
    assert bare.get_vocab() == plain.get_vocab() and len(plain) == 400 and bare.chat_template is None
    for text in ("", "hi there", " Ünïcode 😀\n\t\0", "<s>"):
        assert plain.decode(plain(text).input_ids[1:]) == plain.decode(bare(text).input_ids) == text
        assert plain(text).input_ids[0] == plain.bos_token_id != plain.eos_token_id
    assert len(bare("<|im_start|><|im_end|></s>").input_ids) == 3
    assert len(bare(" harmless").input_ids) < len(" harmless")
