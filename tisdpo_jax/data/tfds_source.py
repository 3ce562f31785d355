"""Records of a TFDS data set as plain dicts, through random access to array_record: no TensorFlow."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tisdpo_jax.data.records import InvalidRecord
from tisdpo_jax.data.tfds_builders import SOURCES, make_builder
from tisdpo_jax.errors import DataError

VERSION = re.compile(r"\d+\.\d+\.\d+")


class PlainRecords:
    """A sequence of dicts of str, numbers and lists, whatever TFDS made of them."""

    def __init__(self, source: Any) -> None:
        self._source = source

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> Any:
        return plain_record(self._source[index])


def plain_record(value: Any) -> Any:
    """bytes -> str, arrays -> lists, a sequence of messages that TFDS stores by field -> a list of dicts."""
    if isinstance(value, bytes):
        return value.decode("utf-8")
    if isinstance(value, Mapping):
        fields = {str(name): plain_record(item) for name, item in value.items()}
        columns = list(fields.values())
        if columns and all(isinstance(column, list) for column in columns):
            return [dict(zip(fields, row, strict=True)) for row in zip(*columns, strict=True)]
        return fields
    if hasattr(value, "tolist"):
        value = value.tolist()
        return plain_record(value) if isinstance(value, bytes | list) else value
    return [plain_record(item) for item in value] if isinstance(value, list | tuple) else value


def open_tfds(spec: str, name: str, data_dir: str | None) -> tuple[PlainRecords, list[InvalidRecord]]:
    """The records that `NAME[/CONFIG][:VERSION][:SPLIT]` stands for, and those that its builder left out.

    NAME is one of `tfds_builders.SOURCES`, a data set that TFDS knows, or the directory of a prepared one.
    What was left out is told of whole splits ("train", "train+test"), not of slices ("train[:10%]").
    """
    try:
        import tensorflow_datasets as tfds
    except ImportError:
        raise DataError(f"{name}: needs the package `tensorflow-datasets`") from None
    data_set, version, split = _parse(spec)
    try:
        builder = _builder(tfds, data_set, version, data_dir)
        builder.download_and_prepare()
        if split not in builder.info.splits and re.fullmatch(r"\w+", split):
            raise DataError(f"{name}: no split {split!r}; there are {', '.join(builder.info.splits)}")
        records = builder.as_data_source(split=split)
    except DataError:
        raise
    except tfds.core.DatasetNotFoundError:
        near = difflib.get_close_matches(data_set.split("/")[0], SOURCES, n=1)
        hint = f"did you mean tfds:{near[0]}?" if near else f"those of this package are {', '.join(SOURCES)}"
        raise DataError(f"{name}: TFDS has no data set {data_set!r}; {hint}") from None
    except NotImplementedError:
        raise DataError(f"{name}: is not stored as array_record; prepare it with file_format='array_record'") from None
    except (OSError, ValueError, AssertionError, RuntimeError, tfds.download.DownloadError) as error:
        raise DataError(f"{name}: cannot be prepared or read: {error}") from None
    noted = (builder.info.metadata or {}).get("invalid", {})
    invalid = [
        InvalidRecord(f"{name}:{key}", reason, detail)
        for part, entries in noted.items()
        if part in split.split("+")
        for key, reason, detail in entries
    ]
    return PlainRecords(records), invalid


def _parse(spec: str) -> tuple[str, str, str]:
    data_set, *rest = spec.split(":", 1)
    tail = rest[0] if rest else ""
    version = ""
    if VERSION.match(tail):
        version, _, tail = tail.partition(":")
    return data_set, version, tail or "train"


def _builder(tfds: Any, data_set: str, version: str, data_dir: str | None) -> Any:
    if (Path(data_set) / "dataset_info.json").is_file():
        return tfds.builder_from_directory(data_set)
    base, _, config = data_set.partition("/")
    if base in SOURCES and not version:
        return make_builder(SOURCES[base], config, data_dir=data_dir)
    full = f"{data_set}:{version}" if version else data_set
    return tfds.builder(full, data_dir=data_dir, file_format="array_record")
