"""Public data sets through TFDS and array_record: conversion, building, reading back, damage.

TensorFlow is not needed for any of it, nor is it there where these tests usually run.
"""

from __future__ import annotations

import dataclasses
import gzip
import http.server
import json
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from tisdpo_jax.data import read_pairs
from tisdpo_jax.data.records import Unusable
from tisdpo_jax.data.tfds import SOURCES, convert_record, make_builder
from tisdpo_jax.errors import DataError

pytest.importorskip("tensorflow_datasets")
pytest.importorskip("array_record")

# Conversion

SAFE = {
    "prompt": "How?",
    "response_0": "like so",
    "response_1": "better not",
    "is_response_0_safe": False,
    "is_response_1_safe": True,
    "better_response_id": 0,
    "safer_response_id": 1,
}
ULTRA = {
    "source": "evol_instruct",
    "instruction": "Say it.",
    "completions": [
        {"model": "a", "response": "fair", "overall_score": 6.0},
        {"model": "b", "response": "worst", "overall_score": 2},
        {"model": "c", "response": "best", "overall_score": 8.5},
        {"model": "d", "response": "good", "overall_score": 7.0},
    ],
}
TLDR = {
    "info": {"id": "t3_x", "post": "My dog ran away.", "title": "Dog", "subreddit": "pets"},
    "summaries": [{"text": " Dog gone.", "policy": "sup1"}, {"text": " Dog.", "policy": "ref"}],
    "choice": 1,
    "worker": "w",
    "split": "train",
}


def converted(name: str, record: Any, config: str = "") -> dict[str, Any]:
    return convert_record(SOURCES[name], config, record, "k")


def test_conversions() -> None:
    hh = converted("hh", {"chosen": "\n\nHuman: q\n\nAssistant: a", "rejected": "\n\nHuman: q\n\nAssistant: b"})
    assert hh == {"id": "k", "messages": [{"role": "user", "content": "q"}], "chosen": "a", "rejected": "b"}
    for config, chosen in (("safer", "better not"), ("better", "like so")):
        found = converted("safe_rlhf", SAFE, config)
        assert found["messages"][0]["content"] == "How?"
        assert found["chosen"] == chosen
        assert {found["chosen"], found["rejected"]} == {"like so", "better not"}
    ultra = converted("ultrafeedback", ULTRA)
    assert (ultra["chosen"], ultra["rejected"], ultra["margin"]) == ("best", "worst", 6.5)
    tldr = converted("tldr", TLDR)
    assert tldr["messages"][0]["content"] == "SUBREDDIT: r/pets\n\nTITLE: Dog\n\nPOST: My dog ran away.\n\nTL;DR:"
    assert (tldr["chosen"], tldr["rejected"]) == (" Dog.", " Dog gone.")


@pytest.mark.parametrize(
    ("name", "record", "reason"),
    [
        ("safe_rlhf", {**SAFE, "safer_response_id": -1}, "no preference"),
        ("safe_rlhf", {**SAFE, "response_1": "like so"}, "responses equal"),
        ("safe_rlhf", {**SAFE, "prompt": None}, "missing field"),
        ("ultrafeedback", {**ULTRA, "completions": ULTRA["completions"][:1]}, "no preference"),
        ("ultrafeedback", {**ULTRA, "completions": [ULTRA["completions"][0]] * 2}, "no preference"),
        ("ultrafeedback", {**ULTRA, "completions": [{"response": "x"}] * 2}, "no preference"),
        ("tldr", {**TLDR, "info": {"article": "News."}}, "not a post"),
        ("tldr", {**TLDR, "summaries": []}, "missing field"),
        ("tldr", {**TLDR, "choice": None}, "no preference"),
        ("hh", {"chosen": "x", "rejected": "y"}, "not a transcript"),
        ("hh", ["x"], "not an object"),
    ],
)
def test_records_without_a_preference(name: str, record: Any, reason: str) -> None:
    with pytest.raises(Unusable) as caught:
        converted(name, record, "safer")
    assert caught.value.reason == reason


# Building and reading back

HH = [
    {"chosen": f"\n\nHuman: q{i} é\n\nAssistant: a{i}\n\nHuman: more\n\nAssistant: good {i}",
     "rejected": f"\n\nHuman: q{i} é\n\nAssistant: a{i}\n\nHuman: more\n\nAssistant: bad {i}"}
    for i in range(6)
]  # fmt: skip
HH_BAD = {"chosen": "\n\nHuman: q\n\nAssistant: a", "rejected": "\n\nHuman: p\n\nAssistant: b"}


def write_lines(path: Path, records: list[Any]) -> Path:
    lines = "".join(json.dumps(record) + "\n" for record in records).encode()
    path.write_bytes(gzip.compress(lines) if path.suffix == ".gz" else lines)
    return path


def build_hh(folder: Path) -> Any:
    path = write_lines(folder / "train.jsonl.gz", [*HH[:3], HH_BAD, *HH[3:]])
    builder = make_builder(SOURCES["hh"], data_dir=folder, files={"train": (str(path),)})
    builder.download_and_prepare()
    return builder


def test_hh_from_a_small_file(tmp_path: Path) -> None:
    builder = build_hh(tmp_path)
    assert "tensorflow" not in sys.modules
    for source in ("tfds:hh/harmless-base:train", "tfds:hh", f"tfds:{builder.data_path}:train"):
        found = read_pairs(source, data_dir=str(tmp_path))
        assert sorted(pair.id for pair in found.pairs) == [f"train-0-{line}" for line in (1, 2, 3, 5, 6, 7)]
        for pair in found.pairs:
            number = pair.chosen.removeprefix("good ")
            assert pair.rejected == f"bad {number}"
            expected = [("user", f"q{number} é"), ("assistant", f"a{number}"), ("user", "more")]
            assert [(message.role, message.content) for message in pair.messages] == expected
        # What the builder had to leave out is still counted, with its line.
        (invalid_record,) = found.invalid
        assert str(invalid_record).startswith(f"{source}:train-0-4: prompts differ")
        assert "7 records, 6 usable, 1 invalid" in found.summary()
    part = read_pairs("tfds:hh:train[:2]", data_dir=str(tmp_path))
    assert (len(part.pairs), len(part.invalid)) == (2, 0)
    with pytest.raises(DataError, match=r"no split 'trian'; there are train"):
        read_pairs("tfds:hh:trian", data_dir=str(tmp_path))


def test_flipped_bytes_never_change_a_pair(tmp_path: Path) -> None:
    """Fault 18: array_record says so, and the record is an invalid record with its place."""
    builder = build_hh(tmp_path)
    (shard,) = Path(builder.data_path).glob("*.array_record*")
    shard.chmod(0o644)
    whole = shard.read_bytes()
    clean = read_pairs("tfds:hh", data_dir=str(tmp_path))
    damaged = 0
    for place in range(64, 1260, 53):
        shard.write_bytes(whole[:place] + bytes([whole[place] ^ 0xFF]) + whole[place + 1 :])
        found = read_pairs("tfds:hh", data_dir=str(tmp_path))
        assert set(found.pairs) <= set(clean.pairs)
        assert len(found.pairs) + len(found.invalid) == 7
        lost = [invalid_record for invalid_record in found.invalid if invalid_record.reason == "cannot be read"]
        assert all(":record " in invalid_record.origin for invalid_record in lost)
        damaged += len(lost)
    assert damaged > 10


def test_other_sources_from_small_files(tmp_path: Path) -> None:
    files = {
        "safe_rlhf": [SAFE, {**SAFE, "safer_response_id": None}],
        "ultrafeedback": [ULTRA],
        "tldr": [TLDR, {**TLDR, "split": "valid1"}, {**TLDR, "choice": 0}, "not a record"],
    }
    for name, records in files.items():
        path = str(write_lines(tmp_path / f"{name}.jsonl", records))
        splits = {split: (path,) for split in next(iter(SOURCES[name].configs.values()))}
        make_builder(SOURCES[name], data_dir=tmp_path, files=splits).download_and_prepare()
    read = {name: read_pairs(f"tfds:{name}", data_dir=str(tmp_path)) for name in files}
    assert [pair.chosen for pair in read["safe_rlhf"].pairs] == ["better not"]
    assert [invalid_record.reason for invalid_record in read["safe_rlhf"].invalid] == ["no preference"]
    assert [pair.margin for pair in read["ultrafeedback"].pairs] == [6.5]
    assert sorted(pair.chosen for pair in read["tldr"].pairs) == [" Dog gone.", " Dog."]
    assert [invalid_record.reason for invalid_record in read["tldr"].invalid] == ["not an object"]
    validation = read_pairs("tfds:tldr:validation", data_dir=str(tmp_path))
    assert not validation.invalid
    assert [pair.chosen for pair in validation.pairs] == [" Dog."]


def test_download(tmp_path: Path) -> None:
    """The path of a real download, from a server on this machine."""
    served = tmp_path / "served"
    served.mkdir()
    write_lines(served / "train.jsonl.gz", HH)

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args, directory=str(served))

        def log_message(self, *args: Any) -> None:
            """Quiet."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        url = f"http://127.0.0.1:{server.server_port}/train.jsonl.gz"
        source = dataclasses.replace(SOURCES["hh"], configs={"harmless-base": {"train": (url,)}})
        builder = make_builder(source, data_dir=tmp_path)
        builder.download_and_prepare()
    finally:
        server.shutdown()
        server.server_close()
    found = read_pairs("tfds:hh", data_dir=str(tmp_path))
    assert sorted(pair.chosen for pair in found.pairs) == [f"good {i}" for i in range(6)]


# Names


def test_sources_point_at_the_published_files() -> None:
    assert set(SOURCES) == {"hh", "safe_rlhf", "ultrafeedback", "tldr"}
    for source in SOURCES.values():
        for config in source.configs.values():
            for urls in config.values():
                assert urls
                assert len(set(urls)) == len(urls)
                assert all(url.startswith("https://") for url in urls)
    hh = SOURCES["hh"].configs["harmless-base"]["train"]
    assert hh == ("https://huggingface.co/datasets/Anthropic/hh-rlhf/resolve/main/harmless-base/train.jsonl.gz",)


def test_unknown_names_are_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"TFDS has no data set 'hhh'; did you mean tfds:hh\?"):
        read_pairs("tfds:hhh", data_dir=str(tmp_path))
    with pytest.raises(DataError, match="tfds:hh/harmless: no such variant; there are harmless-base"):
        read_pairs("tfds:hh/harmless", data_dir=str(tmp_path))


def test_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    with pytest.raises(DataError, match="needs the package `tensorflow-datasets`"):
        read_pairs("tfds:hh")
