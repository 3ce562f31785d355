"""Real files and real tokenizers, where a development machine has them."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tisdpo_jax.config import ContrastSection
from tisdpo_jax.data import apply_policy, encode_pairs, read_pairs, split_by_prompt
from tisdpo_jax.errors import DataError

CONTRAST = (ContrastSection().positive_prompt, ContrastSection().negative_prompt)


@pytest.fixture(scope="module")
def hh_file(shared: Path) -> Path:
    path = shared / "data" / "hh-harmless" / "pairs.jsonl.gz"
    if not path.is_file():
        pytest.skip(f"needs {path}")
    return path


@pytest.fixture(scope="module")
def stories(shared: Path) -> Any:
    path = shared / "models" / "stories260k"
    if not path.is_dir():
        pytest.skip(f"needs {path}")
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(path)


@pytest.fixture(scope="module")
def smollm() -> Any:
    """SmolLM2's tokenizer out of its GGUF file."""
    name = "SmolLM2-135M-Instruct.Q4_1.gguf"
    path = Path(os.environ.get("TISDPO_SMOLLM2_GGUF") or Path.home() / ".cache" / "tisdpo_jax" / name)
    if not path.is_file():
        pytest.skip(f"needs {name}: set TISDPO_SMOLLM2_GGUF, or run `make demo` once")
    pytest.importorskip("torch")
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)


def test_dirty_records_of_hh_are_reported(hh_file: Path) -> None:
    found = read_pairs(hh_file)
    lines = {int(invalid_record.origin.rpartition(":")[2]): invalid_record.reason for invalid_record in found.invalid}
    assert lines == {
        **dict.fromkeys((408, 727), "empty response"),
        **dict.fromkeys((986, 1329, 1531, 1533, 1596), "prompts differ"),
        **dict.fromkeys((531, 605, 1038, 1455), "turn order"),
    }
    assert len(found.pairs) == 1800
    with pytest.raises(DataError, match="11 of 1811 records invalid"):
        apply_policy(found, "fail", 1.0)
    assert apply_policy(found, "skip", 0.01) is found


def test_held_out_prompts_of_hh(hh_file: Path) -> None:
    found = read_pairs(hh_file)
    repeated = Counter(pair.messages for pair in found.pairs)
    assert max(repeated.values()) > 1  # the file repeats prompts: a split by record would leak
    train, held_out = split_by_prompt(found, 0.1, 0)
    assert not {pair.messages for pair in train.pairs} & {pair.messages for pair in held_out.pairs}
    assert len({pair.messages for pair in held_out.pairs}) == round(0.1 * len(repeated))


def test_hh_with_the_tokenizer_of_stories260k(hh_file: Path, stories: Any) -> None:
    pair_set = read_pairs(hh_file, limit=500)
    found = encode_pairs(pair_set, stories, template="hh", max_length=512, max_response=256, contrast=CONTRAST)
    assert found.invalid == pair_set.invalid  # every pair that can be read can be encoded
    assert {name: found.counts()[name] for name in ("usable", "truncated_prompt", "truncated_chosen")} == {
        "usable": 499,
        "truncated_prompt": 135,
        "truncated_chosen": 32,
    }
    for got, pair in zip(found.groups, pair_set.pairs, strict=True):
        assert got.prompt[0] == stories.bos_token_id
        assert len(got.prompt) + max(len(got.chosen), len(got.rejected)) <= 512
        if not got.truncated[0]:
            assert got.chosen[-1] == stories.eos_token_id
            assert stories.decode(got.chosen[:-1]).strip() == pair.chosen
        if not got.truncated_prompt:
            assert stories.decode(got.prompt).endswith("\n\nAssistant:")


def test_sharegpt_demo_file(shared: Path, stories: Any) -> None:
    path = shared / "data" / "dpo-en-demo" / "pairs.json"
    if not path.is_file():
        pytest.skip(f"needs {path}")
    pair_set = read_pairs(path)
    assert (len(pair_set.pairs), len(pair_set.invalid)) == (300, 0)
    assert sum(pair.messages[0].role == "system" for pair in pair_set.pairs) == 80
    found = encode_pairs(pair_set, stories, template="hh", max_length=512, max_response=256)
    assert not found.invalid


@pytest.mark.slow
def test_hh_with_the_chat_template_of_smollm2(hh_file: Path, smollm: Any) -> None:
    pair_set = read_pairs(hh_file, limit=300)
    found = encode_pairs(pair_set, smollm, template="auto", max_length=512, max_response=256, contrast=CONTRAST)
    assert found.invalid == pair_set.invalid
    for got, pair in zip(found.groups, pair_set.pairs, strict=True):
        if not got.truncated[0]:
            assert smollm.decode(got.chosen) == f"{pair.chosen}<|im_end|>"
        if not got.truncated_prompt:
            conversation = [{"role": message.role, "content": message.content} for message in pair.messages]
            expected = smollm.apply_chat_template(conversation, add_generation_prompt=True, return_dict=True)
            assert got.prompt.tolist() == expected["input_ids"]
