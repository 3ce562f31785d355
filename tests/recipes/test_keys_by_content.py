"""What scores and answers are kept under holds values, no names or paths, and all that a prompt says."""

from __future__ import annotations

import dataclasses
import types
from pathlib import Path
from typing import Any

import pytest

from tisdpo_jax import generation
from tisdpo_jax.artifacts import Given, Run
from tisdpo_jax.config import GenerateRecipe, TisDpoRecipe
from tisdpo_jax.data import EncodedSet, Message, Prompt
from tisdpo_jax.errors import DataError
from tisdpo_jax.generation import Endpoint
from tisdpo_jax.roles import Role
from tisdpo_jax.stages import Encoder, Generator, Splits, keys
from tisdpo_jax.stages.prompts import answers_key
from tisdpo_jax.testing.tokenizer import CHAT_TEMPLATE, tiny_tokenizer


def session(template: str, name: str) -> Any:
    config = TisDpoRecipe()
    tokenizer = tiny_tokenizer()
    tokenizer.name_or_path = name
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, template=template))
    return types.SimpleNamespace(
        config=config,
        tokenizer=tokenizer,
        encoder=Encoder.of(config, tokenizer),
        model_path=Path("no files"),
        model=types.SimpleNamespace(
            config="llama", compute=types.SimpleNamespace(lora_scale=1.0, dtype="float32", config=None)
        ),
    )


def test_a_moved_model_or_template_is_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keys, "bind", lambda *arguments: {"params": {}})
    monkeypatch.setattr(keys, "identify", lambda tree: "values")
    texts = {"a.jinja": CHAT_TEMPLATE, "b.jinja": CHAT_TEMPLATE, "c.jinja": CHAT_TEMPLATE + " "}
    for name, text in texts.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    sessions = [session(str(tmp_path / name), f"/models/{name}") for name in texts]
    asked = [Prompt("1/main/0", (Message("user", "hi"),), "test")]
    voice = Generator(sessions[0].model, dict, {"params": "values"})
    pairs = Given("pairs", Splits(EncodedSet((), (), "none")))
    labels = [keys.whole_key(Run(each), Role("base"), {}, pairs, "train") for each in sessions]
    answers = [answers_key(each, voice, asked) for each in sessions]
    for same, moved, other in (labels, answers):
        assert same == moved
        assert {name for name in same if same[name] != other[name]} == {"template"}
    with_tools = [Prompt("1/main/0", (Message("tools", '[{"name": "f"}]'), Message("user", "hi")), "test")]
    assert answers_key(sessions[0], voice, with_tools)["prompts"] != answers[0]["prompts"]


def test_an_endpoint_is_not_asked_with_half_a_prompt() -> None:
    left = [Prompt("1/main/0", (Message("user", "hi", '{"name": "Bob"}'),), "test")]
    with pytest.raises(DataError, match=r"1/main/0: sampling\.engine http sends roles and text"):
        options = generation.options_of(GenerateRecipe().sampling, "auto")
        generation.ask_endpoint(Endpoint("http://127.0.0.1:1/v1", "m"), left, options, take=print)
