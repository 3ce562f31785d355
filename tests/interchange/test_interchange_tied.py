"""Tied heads: what the files hold decides, whatever config.json says, as in transformers 5."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from tiny_decoders import BASE, FAMILIES, assert_trees_equal, random_params

from tisdpo_jax.errors import MissingKeyError, ShapeMismatchError
from tisdpo_jax.interchange import check_params, load_params, read_config, save_huggingface
from tisdpo_jax.models import Model, TransformerConfig, logits
from tisdpo_jax.types import Params

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
TOKENS = np.random.default_rng(3).integers(0, 96, (2, 12))
TIED, UNTIED = FAMILIES["smollm2"], dataclasses.replace(FAMILIES["smollm2"], tied_head=False)


@pytest.fixture
def model(tmp_path: Path) -> Callable[..., Path]:
    """A model directory whose config.json says what `says`, and whose files hold the tensors that `change` leaves."""

    def write(config: TransformerConfig, says: bool, change: Callable[[dict[str, Any]], object], **save: Any) -> Path:
        directory = tmp_path / "model"
        save_huggingface(directory, random_params(config), config, **save)
        raw = json.loads((directory / "config.json").read_text())
        (directory / "config.json").write_text(json.dumps({**raw, "tie_word_embeddings": says}))
        for file in directory.glob("*.safetensors"):
            tensors = load_file(file)
            change(tensors)
            save_file(tensors, file, metadata={"format": "pt"})
        return directory

    return write


def ours(directory: Path) -> np.ndarray:
    config = read_config(directory)
    check_params(directory, config)
    params = load_params(directory, config, dtype="float32")
    return np.asarray(jax.jit(logits, static_argnums=0)(Model(config), {"params": params}, TOKENS))


def theirs(directory: Path) -> np.ndarray:
    torch, transformers = (pytest.importorskip(name) for name in ("torch", "transformers"))
    found = transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    with torch.no_grad():
        return np.asarray(found(torch.from_numpy(TOKENS)).logits)


def test_a_head_that_differs_is_kept(model: Callable[..., Path], caplog: pytest.LogCaptureFixture) -> None:
    directory = model(UNTIED, True, lambda tensors: None)
    config = read_config(directory)
    assert config == UNTIED
    assert_trees_equal(load_params(directory, config, dtype="float32"), random_params(UNTIED))
    assert caplog.text.count("are both there and differ") == 1 and str(directory) in caplog.text
    with pytest.raises(ShapeMismatchError, match="head is not tied"):  # by a config that was not read there
        load_params(directory, TIED, dtype="float32")


def test_one_value_of_a_shard_is_a_difference(model: Callable[..., Path]) -> None:
    def change(tensors: dict[str, Any]) -> None:
        if HEAD in tensors:
            tensors[HEAD] = np.asarray(random_params(TIED)["embed"]["embedding"]).copy()
            tensors[HEAD][-1, -1] += 1e-3

    assert not read_config(model(UNTIED, True, change, max_shard_bytes=8_000)).tied_head


def test_heads_that_are_equal_are_tied(model: Callable[..., Path], caplog: pytest.LogCaptureFixture) -> None:
    same = np.asarray(random_params(TIED)["embed"]["embedding"])
    directory = model(TIED, True, lambda tensors: tensors.update({HEAD: same}))
    assert read_config(directory) == TIED and not caplog.text
    assert_trees_equal(load_params(directory, TIED, dtype="float32"), random_params(TIED))


@pytest.mark.parametrize("name", [EMBEDDING, HEAD])
def test_one_of_the_two_names_is_a_whole_tied_model(model: Callable[..., Path], name: str) -> None:
    directory = model(TIED, True, lambda tensors: tensors.update({name: tensors.pop(EMBEDDING)}))
    assert read_config(directory) == TIED
    check_params(directory, TIED)
    assert_trees_equal(load_params(directory, TIED, dtype="float32"), random_params(TIED))


@pytest.mark.parametrize(("says", "gone"), [(False, HEAD), (False, EMBEDDING), (True, "both")])
def test_what_is_missing_is_named(model: Callable[..., Path], says: bool, gone: str) -> None:
    names = [EMBEDDING, HEAD] if gone == "both" else [gone]
    directory = model(UNTIED, says, lambda tensors: [tensors.pop(name) for name in names])
    with pytest.raises(MissingKeyError, match=names[0]):
        check_params(directory, read_config(directory))


def test_a_directory_without_weights_is_as_its_config_says(model: Callable[..., Path]) -> None:
    directory = model(UNTIED, True, lambda tensors: None)
    for file in directory.glob("*.safetensors"):
        file.unlink()
    assert read_config(directory).tied_head


@pytest.mark.parametrize("case", ["both differ", "both equal", "head alone"])
def test_logits_are_those_of_transformers(model: Callable[..., Path], tmp_path: Path, case: str) -> None:
    def change(tensors: dict[str, Any]) -> None:
        if case == "both equal":
            tensors[HEAD] = tensors[EMBEDDING].copy()
        elif case == "head alone":
            del tensors[EMBEDDING]

    directory = model(dataclasses.replace(BASE, tied_head=False), True, change)
    expected = theirs(directory)
    np.testing.assert_allclose(ours(directory), expected, atol=1e-4, rtol=0)
    config = read_config(directory)
    params: Params = load_params(directory, config, dtype="float32")
    save_huggingface(tmp_path / "export", params, config)
    np.testing.assert_allclose(theirs(tmp_path / "export"), expected, atol=1e-4, rtol=0)
