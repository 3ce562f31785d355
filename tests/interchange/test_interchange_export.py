"""An export is what was trained, for whoever talks to it: ends of answers, template, files that others can read."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_decoders import BASE, random_adapter, random_params

from tisdpo_jax.data import open_template
from tisdpo_jax.data.records import Message
from tisdpo_jax.data.template import write_hh
from tisdpo_jax.errors import CheckpointError
from tisdpo_jax.interchange import load_tokenizer, save_huggingface, save_peft, stop_ids
from tisdpo_jax.interchange.generation import exported_generation, special_ids
from tisdpo_jax.testing.tokenizer import tiny_tokenizer

OWN = "{% for m in messages %}{{ '[' + m.role + '] ' + m.content + '<|im_end|>\n' }}{% endfor %}"
CONVERSATION = [
    {"role": "system", "content": "Be brief. "},
    {"role": "user", "content": "Hi, {{ you }}"},
    {"role": "assistant", "content": "Hello."},
    {"role": "user", "content": " \n two"},
]


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return tiny_tokenizer()


@pytest.fixture
def base(tmp_path: Path) -> Callable[..., Path]:
    def make(config: dict[str, Any] | None = None, generation: dict[str, Any] | None = None) -> Path:
        for name, content in (("config.json", config), ("generation_config.json", generation)):
            if content is not None:
                (tmp_path / name).write_text(json.dumps(content))
        return tmp_path

    return make


@pytest.mark.parametrize(
    ("config", "generation", "expected"),
    [
        ({"eos_token_id": 5}, {"eos_token_id": [7, 6]}, [7, 6, 5, 1]),
        ({"eos_token_id": [5, 1]}, None, [5, 1]),
        ({"eos_token_id": None}, {}, [1]),
        ({"eos_token_id": -1}, {"eos_token_id": 0}, [0, 1]),
        (None, None, [1]),
    ],
)
def test_ends_are_those_of_all_files(
    base: Callable[..., Path], tokenizer: Any, config: Any, generation: Any, expected: list[int]
) -> None:
    assert tokenizer.eos_token_id == 1
    assert stop_ids(base(config, generation), tokenizer) == expected


@pytest.mark.parametrize("nonsense", ["</s>", [1, "2"], {"id": 1}, True, 1.5])
def test_ends_that_are_none(base: Callable[..., Path], nonsense: Any) -> None:
    for files in ({"config": {"eos_token_id": nonsense}}, {"config": {}, "generation": {"eos_token_id": nonsense}}):
        with pytest.raises(CheckpointError, match=r"config\.json: field eos_token_id is"):
            stop_ids(base(**files))


def test_an_adapter_ends_as_its_base(base: Callable[..., Path], tmp_path: Path) -> None:
    under = base({"eos_token_id": 5}, {"eos_token_id": [7, 6]})
    save_peft(tmp_path / "adapter", random_adapter(), BASE, rank=3, alpha=6.0, base_model=str(under), stops=[9])
    written = json.loads((tmp_path / "adapter" / "generation_config.json").read_text())
    assert written == {"eos_token_id": [7, 6, 9]}
    assert stop_ids(tmp_path / "adapter") == [7, 6, 9, 5]


def test_generation_config_travels(base: Callable[..., Path], tokenizer: Any) -> None:
    settings = {"do_sample": True, "temperature": 0.7, "pad_token_id": 0, "eos_token_id": [3, 1]}
    directory = base({"eos_token_id": 3, "bos_token_id": None}, settings)
    special = special_ids(directory, tokenizer)
    assert special == {"bos_token_id": None, "eos_token_id": 3, "pad_token_id": tokenizer.pad_token_id}
    assert exported_generation(directory, special, [3, 1]) == settings
    assert exported_generation(directory, special, [1, 4])["eos_token_id"] == [3, 1, 4]  # type: ignore[index]  # not None


def test_generation_config_is_made_where_config_json_says_too_little(base: Callable[..., Path], tokenizer: Any) -> None:
    directory = base({"eos_token_id": 1})
    special = special_ids(directory, tokenizer)
    assert exported_generation(directory, special, [1]) is None
    assert exported_generation(directory, special, [3, 1]) == {"bos_token_id": 0, "eos_token_id": [1, 3]}
    derived = base({"eos_token_id": 1}, {"_from_model_config": True, "eos_token_id": 1})
    assert exported_generation(derived, special, [3]) == {"eos_token_id": [1, 3]}


def templated(tokenizer: Any, choice: str, directory: Path) -> Any:
    """The tokenizer of an export that was trained with `data.template: choice`."""
    source = open_template(choice, tokenizer).source
    save_peft(
        directory, random_adapter(), BASE, rank=3, alpha=6.0, base_model="b", tokenizer=tokenizer, chat_template=source
    )
    return load_tokenizer(directory)


def test_hh_travels_as_a_chat_template(tmp_path: Path) -> None:
    """A tokenizer that has none renders the same text then, and the tokens that are trained, BOS included."""
    for adds_bos in (False, True):
        tokenizer = tiny_tokenizer(chat_template=False, adds_bos=adds_bos)
        exported = templated(tokenizer, "hh", tmp_path / f"adapter-{adds_bos}")
        for count in (2, 3, 4):
            shown = CONVERSATION[:count]
            expected = write_hh([Message(one["role"], one["content"]) for one in shown])
            ids = exported.apply_chat_template(shown, return_dict=False)
            assert ids == tokenizer(expected).input_ids
        asked = exported.apply_chat_template(CONVERSATION, tokenize=False, add_generation_prompt=True)
        assert asked == ("<s>" if adds_bos else "") + expected + "\n\nAssistant:"
    with pytest.raises(Exception, match="no role tool"):
        exported.apply_chat_template([{"role": "tool", "content": "x"}], tokenize=False)


def test_the_template_that_was_trained_travels(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    own = tmp_path / "own.jinja"
    own.write_text(OWN)
    exported = templated(tokenizer, str(own), tmp_path / "adapter")
    text = exported.apply_chat_template(CONVERSATION[1:2], tokenize=False)
    assert text == "[user] Hi, {{ you }}<|im_end|>\n"
    assert (tmp_path / "adapter" / "chat_template.jinja").read_text() == OWN
    assert templated(tokenizer, "auto", tmp_path / "auto").chat_template == tokenizer.chat_template
    # of several templates of the base, only what was trained
    tokenizer.chat_template = {"default": tokenizer.chat_template, "tool_use": "tools"}
    exported = templated(tokenizer, str(own), tmp_path / "several")
    assert exported.chat_template == OWN


@pytest.fixture
def umask() -> Iterator[None]:
    old = os.umask(0o027)
    yield
    os.umask(old)


@pytest.mark.usefixtures("umask")
def test_files_are_as_readable_as_the_umask_says(tmp_path: Path, tokenizer: Any) -> None:
    save_huggingface(tmp_path / "model", random_params(BASE), BASE, tokenizer=tokenizer)
    modes = {entry.stat().st_mode & 0o777 for entry in (tmp_path / "model").iterdir()}
    assert modes == {0o640} and (tmp_path / "model").stat().st_mode & 0o777 == 0o750


def test_leftovers_of_killed_exports_are_removed(tmp_path: Path) -> None:
    names = [
        ".model.0123abcd.unfinished",
        ".model.0123abcd.old",
        ".model.89abcdef.unfinished",
        ".model.mine.unfinished",
    ]
    for name in (*names, ".other.0123abcd.unfinished"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").write_bytes(b"half")
    alive = os.open(tmp_path / names[2], os.O_RDONLY)
    try:
        fcntl.flock(alive, fcntl.LOCK_EX)
        save_huggingface(tmp_path / "model", random_params(BASE), BASE)
    finally:
        os.close(alive)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == [
        names[2],
        names[3],
        ".other.0123abcd.unfinished",
        "model",
    ]


def test_they_stop_where_the_base_stops(tmp_path: Path, tokenizer: Any) -> None:
    torch, transformers = (pytest.importorskip(name) for name in ("torch", "transformers"))
    (tmp_path / "base").mkdir()
    ids = [tokenizer.convert_tokens_to_ids("<|im_end|>"), tokenizer.eos_token_id]
    (tmp_path / "base" / "config.json").write_text(json.dumps({"eos_token_id": ids[0]}))
    settings = {"eos_token_id": ids, "do_sample": True, "temperature": 0.7, "top_k": 3}
    (tmp_path / "base" / "generation_config.json").write_text(json.dumps(settings))
    save_huggingface(
        tmp_path / "export", random_params(BASE), BASE, tokenizer=tokenizer, base=tmp_path / "base", stops=ids
    )
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "export", dtype=torch.float32)
    assert model.config.eos_token_id == ids[0] and model.generation_config.eos_token_id == ids
    assert (model.generation_config.temperature, model.generation_config.top_k) == (0.7, 3)

    def always(token: int) -> Callable[..., Any]:
        return lambda _, scores: torch.full_like(scores, -1e9).index_fill_(1, torch.tensor([token]), 0.0)

    for end in ids:
        processors = transformers.LogitsProcessorList([always(end)])
        prompt = torch.from_numpy(np.asarray([[5, 6, 7]]))
        new = model.generate(prompt, max_new_tokens=9, do_sample=False, pad_token_id=0, logits_processor=processors)
        assert new.shape[1] == 4
