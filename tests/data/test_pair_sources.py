"""Files, demo, memory and Hugging Face as sources; what a damaged one says."""

from __future__ import annotations

import gzip
import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tisdpo_jax.data import PairSet, read_pairs
from tisdpo_jax.errors import DataError

RECORDS = [{"prompt": f"question {i}", "chosen": f"good {i}", "rejected": f"bad {i}"} for i in range(5)]


def jsonl(records: list[Any]) -> bytes:
    return "".join(json.dumps(record) + "\n" for record in records).encode()


def write(path: Path, content: bytes) -> str:
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return str(path)


def texts(found: PairSet) -> list[tuple[str, str, str]]:
    return [(pair.messages[-1].content, pair.chosen, pair.rejected) for pair in found.pairs]


EXPECTED = [(record["prompt"], record["chosen"], record["rejected"]) for record in RECORDS]


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.json", "a.json.gz"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_all_kinds_of_file_hold_the_same_pairs(tmp_path: Path, name: str, mark: bytes) -> None:
    content = jsonl(RECORDS) if "jsonl" in name else json.dumps(RECORDS, indent=1).encode()
    found = read_pairs(write(tmp_path / name, mark + content))
    assert texts(found) == EXPECTED
    assert not found.invalid
    assert texts(read_pairs(tmp_path / name, limit=2)) == EXPECTED[:2]


def test_lines_are_counted_as_an_editor_counts_them(tmp_path: Path) -> None:
    lines = jsonl(RECORDS).splitlines()
    path = write(tmp_path / "a.jsonl", b"\n" + lines[0] + b"\r\n  \n" + lines[1] + b"\n\n" + lines[2])
    found = read_pairs(path)
    assert [pair.origin for pair in found.pairs] == [f"{path}:2", f"{path}:4", f"{path}:6"]
    assert [pair.id for pair in found.pairs] == ["line-2", "line-4", "line-6"]


def test_every_record_is_a_pair_or_a_rejection(tmp_path: Path) -> None:
    lines = jsonl(RECORDS).splitlines()
    bad = [
        b'{"prompt": "cut off',
        b'{"prompt": "\xff", "chosen": "a", "rejected": "b"}',
        b"[1, 2]",
        b"[" * 100_000,
        b'{"prompt": "p", "chosen": "\\ud800", "rejected": "b"}',
        b'{"prompt": "p", "chosen": "a", "rejected": "b", "margin": %s}' % (b"9" * 5000),
    ]
    path = write(tmp_path / "a.jsonl", b"\n".join([lines[0], *bad, *lines[1:]]) + b"\n")
    found = read_pairs(path)
    assert texts(found) == EXPECTED
    assert [(str(invalid_record).split(": ")[0], invalid_record.reason) for invalid_record in found.invalid] == [
        (f"{path}:2", "not JSON"),
        (f"{path}:3", "not UTF-8"),
        (f"{path}:4", "not an object"),
        (f"{path}:5", "not JSON"),
        (f"{path}:6", "invalid text"),
        (f"{path}:7", "not JSON"),
    ]
    assert "byte 13" in str(found.invalid[1])
    summary = found.summary()
    assert "11 records, 5 usable, 6 invalid" in summary
    assert "3  not JSON" in summary


def test_ids_are_unique(tmp_path: Path) -> None:
    records = [{**record, "id": name} for record, name in zip(RECORDS, ["a", "b", "a", "line-5", None], strict=True)]
    path = write(tmp_path / "a.jsonl", jsonl(records))
    found = read_pairs(path)
    assert [pair.id for pair in found.pairs] == ["a", "b", "line-5"]
    assert [invalid_record.reason for invalid_record in found.invalid] == ["duplicate id", "duplicate id"]
    assert f"as at {path}:1" in str(found.invalid[0])


def test_cut_off_gzip_is_an_error_and_not_a_short_file(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl.gz"
    noisy = [{**record, "chosen": hashlib.sha256(bytes([i])).hexdigest()} for i, record in enumerate(RECORDS * 50)]
    whole = gzip.compress(jsonl(noisy))
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=rf"^{path}:\d+: the compressed file is cut off"):
        read_pairs(path)
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 0xFF
    path.write_bytes(flipped)
    with pytest.raises(DataError, match="damaged"):
        read_pairs(path)
    path.write_bytes(b"plain text")
    with pytest.raises(DataError, match=r":1: the compressed file"):
        read_pairs(path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b"", "holds no records"),
        ("a.jsonl", b"\n\n", "holds no records"),
        ("a.json", b"[]", "holds no records"),
        ("a.json", b"", "holds no records"),
        ("a.json", b'{"a": 1}', "must hold a list"),
        ("a.json", b'[{"a": 1},\n {"a" 1}]', r"a\.json:2: not JSON"),
        ("a.json", b'{"a": 1}\n{"a": 2}', r"one record a line is called \.jsonl"),
        ("a.json", b'["\xff"]', "not UTF-8: byte 3"),
        ("a.json", b"[%s]" % (b"9" * 5000), r"a\.json: not JSON: Exceeds"),
        ("a.json", b"[" * 100_000, r"a\.json: not JSON: nested too deeply"),
        ("a.csv", b"a,b", r"must end in \.jsonl"),
        ("a.jsonl", b"3\n4\n", "no record from here on is an object with fields: they are bare values"),
        ("a.jsonl", b'{"x\n', r"a\.jsonl:1: no record from here on is .*: not JSON"),
        (
            "a.jsonl",
            b'{"promt": "p", "choosen": "a", "rejected": "b"}',
            r"'promt' for 'prompt', 'choosen' for 'chosen'",
        ),
    ],
)
def test_a_source_that_is_wrong_as_a_whole(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    path = write(tmp_path / name, content)
    with pytest.raises(DataError, match=message) as caught:
        read_pairs(path)
    assert str(caught.value).startswith(path)
    assert "\n" not in str(caught.value)


def test_hostile_sizes_are_refused_before_they_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tisdpo_jax.data.files.LINE_LIMIT", 200)
    monkeypatch.setattr("tisdpo_jax.data.files.FILE_LIMIT", 200)
    long = jsonl([*RECORDS, {"prompt": "a" * 10_000}])
    with pytest.raises(DataError, match=r"a\.jsonl\.gz:6: longer than"):
        read_pairs(write(tmp_path / "a.jsonl.gz", long))
    with pytest.raises(DataError, match=r"a\.json\.gz: holds more than"):
        read_pairs(write(tmp_path / "a.json.gz", long))


def test_detection_passes_over_broken_first_records(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", b"{broken\n" + jsonl([{"prompt": "p"}, *RECORDS]))
    found = read_pairs(path)
    assert len(found.pairs) == 5
    assert [invalid_record.reason for invalid_record in found.invalid] == ["not JSON", "missing field"]


def test_a_named_format_is_kept_to(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", jsonl(RECORDS))
    assert {invalid_record.reason for invalid_record in read_pairs(path, format="hh").invalid} == {"not a transcript"}
    with pytest.raises(DataError, match=r"data\.format 'hhh'"):
        read_pairs(path, format="hhh")


def test_missing_file_names_the_nearest(tmp_path: Path) -> None:
    write(tmp_path / "pairs.jsonl", jsonl(RECORDS))
    with pytest.raises(DataError, match=r"pears\.jsonl: no such file; did you mean .*pairs\.jsonl\?"):
        read_pairs(tmp_path / "pears.jsonl")
    with pytest.raises(DataError, match="no directory"):
        read_pairs(tmp_path / "nowhere" / "pairs.jsonl")
    with pytest.raises(DataError, match="is a directory"):
        read_pairs(tmp_path)


def test_demo() -> None:
    train, held_out = read_pairs("demo:train"), read_pairs("demo:eval")
    assert not train.invalid
    assert not held_out.invalid
    assert not {pair.id for pair in train.pairs} & {pair.id for pair in held_out.pairs}
    for name in ("demo", "demo:trian"):
        with pytest.raises(DataError, match="write demo:train or demo:eval"):
            read_pairs(name)


def test_memory() -> None:
    found = read_pairs(RECORDS)
    assert texts(found) == EXPECTED
    assert found.pairs[3].origin == "memory:record 4"
    assert found.pairs[3].id == "record-4"
    with pytest.raises(DataError, match="holds no records"):
        read_pairs([])
    with pytest.raises(DataError, match="is no sequence"):
        read_pairs(iter(RECORDS))
    with pytest.raises(DataError, match="splits train"):
        read_pairs({"train": RECORDS})


def test_a_record_that_cannot_be_fetched_is_a_rejection() -> None:
    class Damaged(list[Any]):
        def __getitem__(self, index: Any) -> Any:
            if index == 2:
                raise RuntimeError("bad checksum\nand more")
            return super().__getitem__(index)

    found = read_pairs(Damaged(RECORDS))
    assert len(found.pairs) == 4
    assert [str(invalid_record) for invalid_record in found.invalid] == [
        "memory:record 3: cannot be read (bad checksum)"
    ]


def test_hugging_face_datasets(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    table = datasets.Dataset.from_list(RECORDS)
    assert texts(read_pairs(table)) == EXPECTED
    table.save_to_disk(tmp_path / "one")
    assert texts(read_pairs(f"hf:{tmp_path / 'one'}")) == EXPECTED
    splits = datasets.DatasetDict({"test": table})
    splits.save_to_disk(tmp_path / "more")
    assert texts(read_pairs(f"hf:{tmp_path / 'more'}:test", limit=2)) == EXPECTED[:2]
    with pytest.raises(DataError, match=r"^hf:.*cannot be loaded"):
        read_pairs(f"hf:{tmp_path / 'more'}:train")
    with pytest.raises(DataError, match="splits test"):
        read_pairs(splits)


def test_hugging_face_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(DataError, match="install the extra hf-data"):
        read_pairs("hf:someone/something")


def test_import_is_light() -> None:
    heavy = ("jax", "transformers", "tensorflow_datasets", "datasets", "grain", "flax", "torch")
    code = f"import sys, tisdpo_jax.data; print([name for name in {heavy!r} if name in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
