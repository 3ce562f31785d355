"""What every export shares: arrays brought to the host one by one, and directories that appear whole or not at all."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from tisdpo_jax.errors import CheckpointError
from tisdpo_jax.interchange._assemble import Layout
from tisdpo_jax.models import flatten
from tisdpo_jax.types import Params

MARK = ".tisdpo_export"


def host_tensors(layout: Layout, params: Params, dtype: np.dtype) -> Iterator[tuple[str, np.ndarray]]:
    """The checkpoint's tensors in the order of `layout`: the inverse of reading.

    Every process must walk through all of it: an array that spans processes is gathered one layer at
    a time, by all of them, so that no device ever holds a whole stack.
    """
    leaves = flatten(params)
    for path, leaf in layout.items():
        array = leaves[path]
        spans_processes = isinstance(array, jax.Array) and not array.is_fully_addressable
        whole = array if spans_processes else np.asarray(array)
        for layer, name in enumerate(leaf.names):
            value = whole[layer] if leaf.stacked else whole
            if spans_processes:
                value = multihost_utils.process_allgather(value, tiled=True)
            value = np.asarray(value).astype(dtype, copy=False)
            yield name, value.T if leaf.transposed else value


def tensor_bytes(layout: Layout, params: Params, dtype: np.dtype) -> dict[str, int]:
    """Bytes of each tensor that `host_tensors` will yield, in the same order."""
    leaves = flatten(params)
    return {
        name: int(np.prod(leaf.tensor_shape(leaves[path].shape))) * dtype.itemsize
        for path, leaf in layout.items()
        for name in leaf.names
    }


def check_tree(layout: Layout, params: Params, what: str) -> None:
    """Raises ValueError when the tree is not the one that the layout describes."""
    if (paths := flatten(params).keys()) != layout.keys():
        raise ValueError(f"{what} and the model's layout differ in {sorted(paths ^ layout.keys())}")


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
    for folder, _, files in os.walk(directory):
        for file in files:
            os.chmod(Path(folder) / file, mode)
            _sync(Path(folder) / file)
        _sync(Path(folder))


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def finish_together(name: str) -> None:
    """All processes wait until process 0 has written."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def drain(tensors: Iterator[Any]) -> None:
    """Takes part in the gathering on a process that does not write."""
    for _ in tensors:
        pass
