"""What every export shares: one process writes for all, and a directory appears whole or not at all."""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import os
import re
import shutil
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import numpy as np
from jax.experimental import multihost_utils

from tisdpo_jax.errors import CheckpointError
from tisdpo_jax.interchange._assemble import Layout, host_reader
from tisdpo_jax.interchange._safetensors import write_file
from tisdpo_jax.types import Params

MARK = ".tisdpo_export"


def write_export(
    directory: str | os.PathLike[str],
    layout: Layout,
    params: Params,
    dtype: np.dtype,
    files: dict[str, list[str]],
    companions: Callable[[Path], None],
) -> None:
    """Writes tensors, a file of them in memory at a time, and what stands beside them.

    Process 0 writes, the others attend the gathering of the same arrays; then all go on.

    Args:
      files: name of a file -> its tensors.
      companions: writes the rest into the directory that it is given.
    """
    directory, tensor = Path(directory).expanduser(), host_reader(layout, params, dtype)
    if jax.process_index() == 0:
        with whole_directory(directory) as target:
            for file, names in files.items():
                write_file(target / file, {name: tensor(name) for name in names})
            companions(target)
    else:
        for name in itertools.chain(*files.values()):
            tensor(name)
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(f"export {directory.name}")


@contextlib.contextmanager
def whole_directory(directory: Path) -> Iterator[Path]:
    """A temporary sibling to write into, renamed to `directory` at the end, or removed after an error.

    An earlier export of this package in `directory` is replaced; anything else there is left alone. What is renamed is
    on the disk, and as readable as files of this process are by its umask. Siblings that a process left which was
    killed are removed.

    Raises: CheckpointError when `directory` exists and holds something else.
    """
    if directory.exists() and not (
        directory.is_dir() and (not any(directory.iterdir()) or (directory / MARK).is_file())
    ):
        raise CheckpointError(
            f"{directory}: exists and is not an earlier export; name another directory, or remove it first"
        )
    directory.parent.mkdir(parents=True, exist_ok=True)
    _remove_leftovers(directory)
    temporary = directory.parent / f".{directory.name}.{uuid.uuid4().hex[:8]}.unfinished"
    temporary.mkdir()
    claim = _claim(temporary)
    try:
        yield temporary
        (temporary / MARK).write_text("Written by tisdpo_jax; another export to this directory replaces it.\n")
        _settle(temporary)
        if directory.exists():
            old = temporary.with_suffix(".old")
            os.rename(directory, old)
            os.rename(temporary, directory)
            shutil.rmtree(old)
        else:
            os.rename(temporary, directory)
        _sync(directory.parent)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    finally:
        if claim is not None:
            os.close(claim)


def _claim(directory: Path) -> int | None:
    """Holds `directory` for this process until the descriptor is closed; the system lets go when the process dies.

    None where another process holds it, or the file system knows no such locks.
    """
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return None
    return descriptor


def _remove_leftovers(directory: Path) -> None:
    """What exports to `directory` left behind that were killed; those that still write hold a claim."""
    name = re.compile(rf"\.{re.escape(directory.name)}\.[0-9a-f]{{8}}\.(unfinished|old)")
    for left in directory.parent.iterdir():
        if not name.fullmatch(left.name) or left.is_symlink() or not left.is_dir():
            continue
        claim = _claim(left)
        if claim is not None:
            shutil.rmtree(left, ignore_errors=True)
            os.close(claim)


def _settle(directory: Path) -> None:
    """All files as the umask says, whatever wrote them (safetensors: for the owner alone), and on the disk."""
    mode = (directory / MARK).stat().st_mode
    for path in (*directory.rglob("*"), directory):
        if path.is_file():
            path.chmod(mode)
        _sync(path)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
