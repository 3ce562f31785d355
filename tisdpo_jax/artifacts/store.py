"""Files that are whole or not there: written beside their place, on disk before they get their name.

And files of records, a line of JSON each, that grow: a writer that was killed leaves their last line torn.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tisdpo_jax.errors import DataError

log = logging.getLogger(__name__)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A new name beside `path` to write to; when the block ends well, it is flushed to disk and takes its place.

    Nothing that lies under the new name is written through, links included: the name is not known before.
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}.unfinished")
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            temporary.unlink()


def write_text(path: Path, text: str) -> None:
    """A whole text file, UTF-8, in one step; a lone surrogate, which a model can write, as its escape."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")


def write_jsonl(path: Path, records: Iterable[Mapping[str, Any]]) -> None:
    """A whole file of records, in one step."""
    write_text(path, "".join(json.dumps(record) + "\n" for record in records))


def append_jsonl(path: Path, records: Iterable[Mapping[str, Any]], *, flush: bool = True) -> None:
    """Adds records to a file, which need not be there; with `flush` they are on the disk when this returns.

    Lines are ASCII: a lone surrogate, which a model can write, is no UTF-8.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="ascii") as file:
        file.writelines(json.dumps(record) + "\n" for record in records)
        if flush:
            file.flush()
            os.fsync(file.fileno())


def read_jsonl(path: Path, *, mend: bool = False) -> list[tuple[str, dict[str, Any]]]:
    """The records of a file, each with its place, FILE:LINE; blank lines count, and hold none.

    A last line that was not written to its end is left out, and with `mend`, for who goes on writing, cut off the file.

    Raises: DataError for a file that cannot be read, and for any other line that is no JSON object.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from None
    records: list[tuple[str, dict[str, Any]]] = []
    *whole, last = content.split(b"\n")  # alone: JSON may hold other line ends as they are
    for number, line in enumerate([*whole, last], start=1):
        if not line.strip():
            continue
        try:
            record, reason = json.loads(line), ""
        except (ValueError, RecursionError) as error:
            record, reason = None, f" ({error})"
        if isinstance(record, dict):
            records.append((f"{path}:{number}", record))
        elif number <= len(whole):
            raise DataError(f"{path}:{number}: not a JSON object{reason}; mend or remove the line")
        elif mend:
            log.warning("%s: the last line was not written to its end and is dropped", path)
            os.truncate(path, len(content) - len(last))
            return records
    if mend and last.strip():  # whole but for its newline
        with path.open("ab") as file:
            file.write(b"\n")
    return records


def clean(directory: Path) -> None:
    """Removes what writers that were killed have left in a directory. For its holder alone."""
    for path in directory.glob(".*.unfinished"):
        if path.is_file() or path.is_symlink():
            path.unlink()


def sha256(path: Path, poll: Callable[[], None] = lambda: None) -> str:
    """Hexadecimal digest of a file's bytes; `poll` is called between pieces of 64 MiB."""
    found = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(1 << 26):
            found.update(piece)
            poll()
    return found.hexdigest()
