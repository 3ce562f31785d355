"""Ways in which a checkpoint can be wrong: each has its own error, which names key, file and remedy."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from tiny_decoders import BASE, FAMILIES, assert_trees_equal, random_params

from tisdpo_jax.errors import (
    CheckpointError,
    DuplicateKeyError,
    MissingKeyError,
    ShapeMismatchError,
    UnexpectedKeyError,
)
from tisdpo_jax.interchange import check_params, load_params, load_tokenizer, read_config, save_huggingface
from tisdpo_jax.interchange._safetensors import INDEX, WEIGHTS
from tisdpo_jax.models import TransformerConfig, abstract_params
from tisdpo_jax.partitioning import make_mesh, param_shardings

Checkpoint = Callable[..., tuple[Path, dict]]
NORM = "model.layers.1.input_layernorm.weight"
EXACTLY = {MissingKeyError, UnexpectedKeyError, ShapeMismatchError, DuplicateKeyError, CheckpointError}


def edit(directory: Path, change: Callable[[dict[str, np.ndarray]], object], file: str = WEIGHTS) -> None:
    tensors = load_file(directory / file)
    change(tensors)
    save_file(tensors, directory / file)


def failure(directory: Path, config: TransformerConfig = BASE, monkeypatch: pytest.MonkeyPatch | None = None) -> str:
    with pytest.raises(CheckpointError) as caught:
        load_params(directory, config, dtype="float32")
    assert "\n" not in str(caught.value)
    failure.kind = type(caught.value)  # type: ignore[attr-defined]  # a function that carries what it caught
    return str(caught.value)


def raised() -> type:
    return failure.kind  # type: ignore[attr-defined, no-any-return]  # set above


def test_missing_key(checkpoint: Checkpoint) -> None:
    directory, _ = checkpoint()
    edit(directory, lambda tensors: tensors.pop(NORM))
    message = failure(directory)
    assert raised() is MissingKeyError
    assert (
        NORM in message
        and str(directory) in message
        and "layers/attention_norm/scale" in message
        and "again" in message
    )


def test_missing_key_names_its_near_relative(checkpoint: Checkpoint) -> None:
    directory, _ = checkpoint()
    edit(directory, lambda tensors: tensors.update({f"transformer.{NORM}": tensors.pop(NORM)}))
    assert f"transformer.{NORM}" in failure(directory)


def test_unexpected_key(checkpoint: Checkpoint) -> None:
    directory, _ = checkpoint()
    edit(directory, lambda tensors: tensors.update({"score.weight": np.zeros((2, 32), np.float32)}))
    message = failure(directory)
    assert raised() is UnexpectedKeyError
    assert "score.weight" in message and WEIGHTS in message and "export it again" in message


def test_mis_shaped_key(checkpoint: Checkpoint) -> None:
    directory, _ = checkpoint()
    name = "model.layers.0.mlp.up_proj.weight"
    edit(directory, lambda tensors: tensors.update({name: np.zeros((32, 48), np.float32)}))
    message = failure(directory)
    assert raised() is ShapeMismatchError
    assert (
        name in message and WEIGHTS in message and "[32, 48]" in message and "[48, 32]" in message and "Mend" in message
    )


def test_duplicate_key(checkpoint: Checkpoint) -> None:
    directory, _ = checkpoint(max_shard_bytes=20_000)
    first, second = sorted(directory.glob("*.safetensors"))[:2]
    (directory / INDEX).unlink()
    edit(directory, lambda tensors: tensors.update(load_file(second)), first.name)
    message = failure(directory)
    assert raised() is DuplicateKeyError
    assert first.name in message and second.name in message and "remove" in message


def test_a_whole_file_beside_shards_is_a_duplicate(checkpoint: Checkpoint) -> None:
    directory, params = checkpoint(max_shard_bytes=20_000)
    save_huggingface(directory.parent / "whole", params, BASE)
    shutil.copy(directory.parent / "whole" / WEIGHTS, directory)
    assert WEIGHTS in failure(directory)
    assert raised() is DuplicateKeyError


def test_nothing_is_allocated_or_read_before_all_is_checked(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory, _ = checkpoint()
    edit(directory, lambda tensors: tensors.update({"zz": np.zeros(1, np.float32)}))

    def never(*_: object) -> None:
        raise AssertionError("read before the last key was checked")

    monkeypatch.setattr("tisdpo_jax.interchange._assemble.tensor_part", never)
    monkeypatch.setattr(jax, "make_array_from_callback", never)
    assert "zz" in failure(directory)


def test_harmless_extras_are_let_pass(checkpoint: Checkpoint) -> None:
    config = FAMILIES["smollm2"]
    directory, params = checkpoint(config)
    extras = {
        "lm_head.weight": np.asarray(params["embed"]["embedding"]),
        "model.layers.0.self_attn.rotary_emb.inv_freq": np.zeros(4, np.float32),
    }
    edit(directory, lambda tensors: tensors.update(extras))
    assert_trees_equal(load_params(directory, config, dtype="float32"), params)
    # an untied head is no extra where the config has none
    assert not BASE.tied_head
    edit(directory, lambda tensors: tensors.pop("lm_head.weight"))
    failure(directory, FAMILIES["llama2"])
    assert raised() in (MissingKeyError, ShapeMismatchError)


@pytest.mark.parametrize(
    ("name", "value"),
    [(NORM, np.nan), ("model.layers.2.mlp.up_proj.weight", np.inf), ("lm_head.weight", -np.inf)],
)
@pytest.mark.parametrize("mesh", [(1, 4, 2), None])
def test_values_that_are_not_finite(checkpoint: Checkpoint, name: str, value: float, mesh: tuple | None) -> None:
    directory, _ = checkpoint()
    edit(directory, lambda tensors: tensors[name].reshape(-1).__setitem__(-1, value))
    shardings = param_shardings(abstract_params(BASE), make_mesh(*mesh)) if mesh else None
    with pytest.raises(CheckpointError, match=f"{WEIGHTS}: tensor '{name}'.*NaN or infinity"):
        load_params(directory, BASE, dtype="float32", shardings=shardings)
    check_params(directory, BASE)  # headers are in order


@pytest.mark.parametrize("keep", [5, 100, -1])
def test_truncated_shard(checkpoint: Checkpoint, keep: int) -> None:
    directory, _ = checkpoint()
    file = directory / WEIGHTS
    file.write_bytes(file.read_bytes()[:keep])
    message = failure(directory)
    assert raised() is CheckpointError and WEIGHTS in message and "fetch it again" in message


@pytest.mark.parametrize("outside", ["../evil.safetensors", "/evil.safetensors", "a/../../evil.safetensors"])
def test_index_entry_outside_the_directory(checkpoint: Checkpoint, outside: str) -> None:
    directory, _ = checkpoint(max_shard_bytes=20_000)
    index = json.loads((directory / INDEX).read_text())
    index["weight_map"][NORM] = outside
    (directory / INDEX).write_text(json.dumps(index))
    message = failure(directory)
    assert raised() is CheckpointError
    assert "outside the directory" in message and NORM in message and outside in message


def test_index_that_names_an_absent_file(checkpoint: Checkpoint) -> None:
    directory, _ = checkpoint(max_shard_bytes=20_000)
    gone = sorted(directory.glob("*.safetensors"))[1]
    gone.unlink()
    assert gone.name in failure(directory)
    assert raised() is CheckpointError


def test_index_that_promises_a_tensor_in_another_file(checkpoint: Checkpoint) -> None:
    directory, _ = checkpoint(max_shard_bytes=20_000)
    index = json.loads((directory / INDEX).read_text())
    index["weight_map"]["absent"] = next(iter(index["weight_map"].values()))
    (directory / INDEX).write_text(json.dumps(index))
    assert "absent" in failure(directory)
    assert raised() is MissingKeyError


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"weight_map": 3}', "[" * 100_000])
def test_index_that_is_none(checkpoint: Checkpoint, content: str) -> None:
    directory, _ = checkpoint(max_shard_bytes=20_000)
    (directory / INDEX).write_text(content)
    assert INDEX in failure(directory)
    assert raised() is CheckpointError


def test_index_of_pickles(checkpoint: Checkpoint) -> None:
    directory, _ = checkpoint(max_shard_bytes=20_000)
    (directory / INDEX).write_text(json.dumps({"weight_map": {NORM: "pytorch_model-1.bin"}}))
    assert "only safetensors and GGUF are read" in failure(directory)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "consolidated.00.pth", "model.pt", "weights.pkl"])
def test_pickled_weights_are_refused(checkpoint: Checkpoint, name: str) -> None:
    directory, _ = checkpoint()
    (directory / WEIGHTS).rename(directory / name)
    for path in (directory, directory / name):
        message = failure(path)
        assert raised() is CheckpointError
        assert "only safetensors and GGUF are read" in message and "save_pretrained" in message


def test_directories_without_weights(checkpoint: Checkpoint) -> None:
    directory, _ = checkpoint()
    (directory / WEIGHTS).unlink()
    assert "no weights" in failure(directory) and WEIGHTS in failure(directory)
    (directory / "model-q8.gguf").write_bytes(b"GGUF")
    assert "model-q8.gguf" in failure(directory)
    (directory / "adapter_model.safetensors").write_bytes(b"")
    assert "LoRA adapter" in failure(directory)


def test_quantised_safetensors_are_refused(checkpoint: Checkpoint) -> None:
    directory, _ = checkpoint()
    edit(directory, lambda tensors: tensors.update({NORM: np.zeros(32, np.int8)}))
    assert NORM in failure(directory) and "I8" in failure(directory)


def test_paths_that_are_no_model(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such file"):
        read_config(tmp_path / "nowhere")
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(CheckpointError, match="name the directory"):
        read_config(tmp_path / "notes.txt")
    with pytest.raises(CheckpointError, match=r"no config\.json"):
        read_config(tmp_path)
    for content in ("{", "[]", "[" * 100_000, '{"vocab_size": ' + "9" * 5000 + "}"):
        (tmp_path / "config.json").write_text(content)
        with pytest.raises(CheckpointError, match=r"config\.json"):
            read_config(tmp_path)


def test_tokenizer_that_is_missing_or_broken(checkpoint: Checkpoint) -> None:
    directory, _ = checkpoint()
    with pytest.raises(CheckpointError, match=r"no tokenizer .*tokenizer\.json.*model\.tokenizer"):
        load_tokenizer(directory)
    (directory / "tokenizer.json").write_text("{}")
    with pytest.raises(CheckpointError, match="cannot be read") as caught:
        load_tokenizer(directory)
    assert "\n" not in str(caught.value)


def test_export_leaves_foreign_directories_alone(tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.txt").write_text("x")
    with pytest.raises(CheckpointError, match="not an earlier export"):
        save_huggingface(tmp_path / "home", random_params(BASE), BASE)
    assert [entry.name for entry in tmp_path.rglob("*")] == ["home", "thesis.txt"]


def test_export_replaces_its_own_and_never_looks_finished(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory, params = checkpoint()
    doubled = jax.tree.map(lambda x: 2 * x, params)

    def dies(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("tisdpo_jax.interchange._fields.json.dumps", dies)  # weights are written, config.json is not
        with pytest.raises(KeyboardInterrupt):
            save_huggingface(directory, doubled, BASE)
        with pytest.raises(KeyboardInterrupt):
            save_huggingface(directory.parent / "new", doubled, BASE)
    assert [entry.name for entry in directory.parent.iterdir()] == ["model"]
    assert_trees_equal(load_params(directory, BASE, dtype="float32"), params)

    save_huggingface(directory, doubled, BASE)
    assert [entry.name for entry in directory.parent.iterdir()] == ["model"]
    assert_trees_equal(load_params(directory, BASE, dtype="float32"), doubled)


def test_parameters_of_another_model_are_a_programming_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="head/kernel"):
        save_huggingface(tmp_path / "model", random_params(FAMILIES["smollm2"]), BASE)
    assert not list(tmp_path.iterdir())
