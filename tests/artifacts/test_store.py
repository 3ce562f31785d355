"""A file is whole or not there, whatever lay where it is written, and as readable as others."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tisdpo_jax.artifacts import clean, replacing, write_text


def test_a_write_that_fails_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    write_text(path, "first")
    with pytest.raises(RuntimeError), replacing(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert path.read_text() == "first" and os.listdir(tmp_path) == ["result.json"]


def test_a_link_in_the_place_of_the_result_is_replaced_not_followed(tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.write_text("mine")
    (tmp_path / "config.yaml").symlink_to(other)
    write_text(tmp_path / "config.yaml", "theirs")
    assert other.read_text() == "mine" and not (tmp_path / "config.yaml").is_symlink()


def test_files_are_readable_as_the_umask_says(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        write_text(tmp_path / "x", "")
    finally:
        os.umask(before)
    assert (tmp_path / "x").stat().st_mode & 0o777 == 0o644


def test_leftovers_of_killed_writers_go_and_nothing_else(tmp_path: Path) -> None:
    for name in (".scores.0123456789ab.unfinished", "x.unfinished", ".hidden"):
        (tmp_path / name).touch()
    clean(tmp_path)
    assert sorted(os.listdir(tmp_path)) == [".hidden", "x.unfinished"]
