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
from collections.abc import Iterator
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
            found = list(itertools.islice(rows, limit or None))
    except OSError as error:
        raise DataError(f"{name}: cannot be read: {error}") from None
    if not found:
        raise DataError(f"{name}: holds no records")
    return found


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
        try:
            line = file.readline(LINE_LIMIT + 1)
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            # What is lost cannot be counted, so on_error skip cannot cover it.
            raise DataError(f"{name}:{number}: the compressed file is cut off or damaged here: {error}") from None
        if not line:
            return
        if len(line) > LINE_LIMIT:
            raise DataError(f"{name}:{number}: longer than {LINE_LIMIT >> 20} MiB; is this one record a line?")
        if number == 1:
            line = line.removeprefix(codecs.BOM_UTF8)
        if line.strip():
            yield Row(str(number), _decode(line))


def _decode(line: bytes) -> Any:
    try:
        return json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        return Unusable("not UTF-8", f"byte {error.start + 1} of the line")
    except json.JSONDecodeError as error:
        return Unusable("not JSON", f"{error.msg} at column {error.colno}")
    except RecursionError:
        return Unusable("not JSON", "nested too deeply")
    except ValueError as error:  # a number of thousands of digits
        return Unusable("not JSON", str(error).partition(":")[0])


def _list(file: BinaryIO, name: str) -> Iterator[Row]:
    try:
        content = file.read(FILE_LIMIT + 1)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataError(f"{name}: the compressed file is cut off or damaged: {error}") from None
    if len(content) > FILE_LIMIT:
        raise DataError(f"{name}: holds more than {FILE_LIMIT >> 30} GiB; write one record a line (.jsonl)")
    try:
        text = content.decode("utf-8-sig")
        value = json.loads(text) if text.strip() else []
    except UnicodeDecodeError as error:
        raise DataError(f"{name}: not UTF-8 at byte {error.start + 1}") from None
    except json.JSONDecodeError as error:
        hint = "; one record a line is called .jsonl" if error.msg == "Extra data" else ""
        raise DataError(f"{name}:{error.lineno}: not JSON: {error.msg} at column {error.colno}{hint}") from None
    except RecursionError:
        raise DataError(f"{name}: not JSON: nested too deeply") from None
    except ValueError as error:  # a number of thousands of digits
        reason = str(error).partition(":")[0]
        raise DataError(f"{name}: not JSON: {reason}") from None
    if not isinstance(value, list):
        raise DataError(f"{name}: a .json file must hold a list of records; this one holds a {type(value).__name__}")
    for number, record in enumerate(value, start=1):
        yield Row(f"record {number}", record)
