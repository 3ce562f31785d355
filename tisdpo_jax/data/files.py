"""Raw records out of .jsonl, .jsonl.gz, .json and .json.gz files, each with the place it stands at.

A record that cannot be decoded comes out as the `Unusable` that says why, in its place: whether it
stops the run is for `apply_policy` to say. A file that is damaged as a whole is a `DataError`.
"""

from __future__ import annotations

import codecs
import difflib
import gzip
import itertools
import json
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, cast

from tisdpo_jax.data.records import Unusable
from tisdpo_jax.errors import DataError

SUFFIXES = (".jsonl", ".jsonl.gz", ".json", ".json.gz")
LINE_LIMIT, FILE_LIMIT = 2**26, 2**31  # bytes of a record in a line, and of a list; more is no preference data


class Row(NamedTuple):
    """One record as it was found."""

    place: str  # "12" for line 12, "record 12" where there are no lines
    value: Any  # the decoded record, or the `Unusable` that says why there is none


def read_file(path: Path, name: str, limit: int = 0, kind: str = "") -> list[Row]:
    """The first `limit` records (0: all) of a file that is called `name` in messages.

    `kind` is one of SUFFIXES; "" goes by the end of the path.
    """
    _check_exists(path, name)
    suffix = kind or next((suffix for suffix in SUFFIXES if path.name.lower().endswith(suffix)), "")
    if not suffix:
        raise DataError(f"{name}: cannot tell what kind of file this is; it must end in {', '.join(SUFFIXES)}")
    try:
        with cast(BinaryIO, gzip.open(path) if suffix.endswith(".gz") else open(path, "rb")) as file:
            rows = _lines(file, name) if suffix.startswith(".jsonl") else _list(file, name)
            first = list(itertools.islice(rows, limit or None))
    except OSError as error:
        raise DataError(f"{name}: cannot be read: {error}") from None
    if not first:
        raise DataError(f"{name}: holds no records")
    return first


def _check_exists(path: Path, name: str) -> None:
    if path.is_dir():
        raise DataError(f"{name}: is a directory; name a file in it, or load it with hf:{name} or tfds:{name}")
    if path.is_file():
        return
    parent = path.parent
    if not parent.is_dir():
        raise DataError(f"{name}: no such file, and no directory {parent} either")
    names = [entry.name for entry in parent.iterdir()]
    near = difflib.get_close_matches(path.name, names, n=1, cutoff=0.5)
    raise DataError(f"{name}: no such file" + (f"; did you mean {parent / near[0]}?" if near else f" in {parent}"))


def _lines(file: BinaryIO, name: str) -> Iterator[Row]:
    for number in itertools.count(1):
        hint = f"longer than {LINE_LIMIT >> 20} MiB; is this one record a line?"
        line = _checked(file.readline, LINE_LIMIT, f"{name}:{number}", hint)
        if not line:
            return
        if number == 1:
            line = line.removeprefix(codecs.BOM_UTF8)
        if line.strip():
            try:
                yield Row(str(number), json.loads(line.decode("utf-8")))
            except (ValueError, RecursionError) as error:
                yield Row(str(number), _why(error))


def _list(file: BinaryIO, name: str) -> Iterator[Row]:
    hint = f"holds more than {FILE_LIMIT >> 30} GiB; write one record a line (.jsonl)"
    content = _checked(file.read, FILE_LIMIT, name, hint)
    try:
        text = content.decode("utf-8-sig")
        value = json.loads(text) if text.strip() else []
    except (ValueError, RecursionError) as error:
        problem, place, hint = _why(error), name, ""
        if isinstance(error, json.JSONDecodeError):
            place = f"{name}:{error.lineno}"
            hint = "; one record a line is called .jsonl" if error.msg == "Extra data" else ""
        raise DataError(f"{place}: {problem.reason}: {problem.detail}{hint}") from None
    if not isinstance(value, list):
        raise DataError(f"{name}: a .json file must hold a list of records; this one holds a {type(value).__name__}")
    for number, record in enumerate(value, start=1):
        yield Row(f"record {number}", record)


def _checked(read: Callable[[int], bytes], limit: int, place: str, hint: str) -> bytes:
    """At most `limit` bytes. What is lost of a damaged file cannot be counted, so on_error skip cannot cover it."""
    try:
        content = read(limit + 1)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataError(f"{place}: the compressed file is cut off or damaged here: {error}") from None
    if len(content) > limit:
        raise DataError(f"{place}: {hint}")
    return content


def _why(error: Exception) -> Unusable:
    if isinstance(error, UnicodeDecodeError):
        return Unusable("not UTF-8", f"byte {error.start + 1}")
    if isinstance(error, json.JSONDecodeError):
        return Unusable("not JSON", f"{error.msg} at column {error.colno}")
    # the last is a number of thousands of digits
    return Unusable("not JSON", "nested too deeply" if isinstance(error, RecursionError) else str(error).split(":")[0])
