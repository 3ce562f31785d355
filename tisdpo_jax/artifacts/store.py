"""Files that are whole or not there: written beside their place, on disk before they get their name."""

from __future__ import annotations

import contextlib
import hashlib
import os
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path


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
