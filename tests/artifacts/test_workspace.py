"""One run a directory: two starts, a holder that died, a container with the same numbers, another host."""

from __future__ import annotations

import contextlib
import json
import os
import threading
from pathlib import Path
from typing import Any

import pytest

from tisdpo_jax.artifacts import lease, workspace
from tisdpo_jax.errors import ConfigError


def left_behind(directory: Path, **fields: Any) -> Path:
    """A lock whose holder is gone or, at least, holds no `flock` that can be seen from here."""
    path = directory / ".lock"
    path.write_text(json.dumps({"host": "there", "pid": 7, "since": "yesterday", "token": "x", **fields}))
    return path


def test_the_second_of_two_is_refused_and_the_first_leaves_nothing(tmp_path: Path) -> None:
    with lease(tmp_path):
        said = rf"in use by process {os.getpid()} on .*use another run_dir"
        with pytest.raises(ConfigError, match=said), lease(tmp_path):
            pass
        assert (tmp_path / ".lock").exists()
    assert list(tmp_path.iterdir()) == []


def test_of_many_starts_at_one_moment_one_wins(tmp_path: Path) -> None:
    """Also over a stale lock, which all of them find stale at once."""
    left_behind(tmp_path, kernel=workspace._kernel())
    ready, over, wins, losses = threading.Barrier(8), threading.Barrier(8), [], []

    def start() -> None:
        with contextlib.ExitStack() as stack:
            ready.wait()
            try:
                wins.append(stack.enter_context(lease(tmp_path)))
            except ConfigError as error:
                losses.append(error)
            over.wait()  # the winner holds it until all have tried

    threads = [threading.Thread(target=start) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(wins), len(losses)) == (1, 7)


@pytest.mark.parametrize("pid", [1, os.getpid(), 999_999_999], ids=["init", "our own", "nobody's"])
def test_a_lock_of_this_machine_without_a_holder_is_no_obstacle(tmp_path: Path, pid: int) -> None:
    """A container started again has the same host name and the same process numbers as the one that was killed."""
    left_behind(tmp_path, kernel=workspace._kernel(), pid=pid)
    with lease(tmp_path):
        assert json.loads((tmp_path / ".lock").read_text())["pid"] == os.getpid()


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"pid": "many"}'])
def test_a_lock_that_says_nothing_is_old_and_taken_over(tmp_path: Path, text: str) -> None:
    (tmp_path / ".lock").write_text(text)
    os.utime(tmp_path / ".lock", (1, 1))
    with lease(tmp_path):
        pass


def test_another_host_that_left_no_sign_of_life_is_gone(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    os.utime(left_behind(tmp_path, kernel="another"), (1, 1))
    with lease(tmp_path):
        assert "taken over from process 7 on there" in caplog.text


def test_another_host_is_waited_for_and_refuses_when_it_shows_life(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, waits = left_behind(tmp_path, kernel="another"), []

    def sleep(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) == 2:
            os.utime(path)  # the other one's thread

    monkeypatch.setattr(workspace.time, "sleep", sleep)
    with pytest.raises(ConfigError, match="in use by process 7 on there since yesterday"), lease(tmp_path):
        pass
    assert len(waits) == 2 and json.loads(path.read_text())["pid"] == 7


def test_another_host_that_has_just_died_is_waited_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = left_behind(tmp_path, kernel="another")
    monkeypatch.setattr(workspace, "LEASE", 0.05)
    with lease(tmp_path):
        assert json.loads(path.read_text())["pid"] == os.getpid()


def test_a_holder_that_was_taken_for_dead_learns_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It was stopped, say; two writers are worse than none."""
    monkeypatch.setattr(workspace, "BEAT", 0.01)
    lost, told = threading.Event(), []

    def learn(reason: str) -> None:
        told.append(reason)
        lost.set()

    with lease(tmp_path, learn):
        path = left_behind(tmp_path)
        assert lost.wait(30)
    assert "taken over by process 7 on there" in told[0]
    assert json.loads(path.read_text())["pid"] == 7  # and does not take the lock away from the other


def test_a_planted_link_is_not_written_through(tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.write_text("mine")
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    (run_dir / ".lock").symlink_to(precious)
    with pytest.raises(ConfigError, match="cannot be written"), lease(run_dir):
        pass
    assert precious.read_text() == "mine"
