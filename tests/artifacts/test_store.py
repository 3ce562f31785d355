"""A file is whole or not there, whatever lay where it is written, and as readable as others."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tisdpo_jax.artifacts import append_jsonl, clean, read_jsonl, replacing, write_jsonl, write_text
from tisdpo_jax.errors import DataError


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


ROWS = [{"id": "é\u2028", "n": 1}, {"id": "\ud800", "n": None}]


def test_records_are_added_and_read_with_their_places(tmp_path: Path) -> None:
    path = tmp_path / "new" / "rows.jsonl"
    append_jsonl(path, ROWS[:1])
    append_jsonl(path, ROWS[1:], flush=False)
    assert read_jsonl(path) == [(f"{path}:1", ROWS[0]), (f"{path}:2", ROWS[1])]
    write_jsonl(path, [])
    assert read_jsonl(path) == [] and os.listdir(path.parent) == ["rows.jsonl"]


@pytest.mark.parametrize("torn", ['{"id": "x"', '{"id": "é'.encode()[:-1], b"\0\0\0"])
def test_a_last_line_that_is_torn_is_left_out_and_mended(
    tmp_path: Path, torn: str | bytes, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "rows.jsonl"
    append_jsonl(path, ROWS)
    whole = path.read_bytes()
    path.write_bytes(whole + (torn if isinstance(torn, bytes) else torn.encode()))
    assert [row for _, row in read_jsonl(path)] == ROWS and path.read_bytes() != whole
    assert [row for _, row in read_jsonl(path, mend=True)] == ROWS
    assert path.read_bytes() == whole and "was not written to its end" in caplog.text
    path.write_bytes(whole[:-1])  # whole but for its newline: a record is not lost
    assert [row for _, row in read_jsonl(path, mend=True)] == ROWS and path.read_bytes() == whole


@pytest.mark.parametrize(("line", "said"), [("{", r"Expecting"), ("[1]", "remove"), ("[" * 100_000, "recursion")])
def test_another_line_that_is_no_record_is_named(tmp_path: Path, line: str, said: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(f'\n{line}\n{{"a": 1}}')
    with pytest.raises(DataError, match=rf"rows\.jsonl:2: not a JSON object.*{said}"):
        read_jsonl(path)
    with pytest.raises(DataError, match="gone: cannot be read: No such file"):
        read_jsonl(tmp_path / "gone")
