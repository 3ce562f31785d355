"""Checkpoints: the only module that knows Orbax.

A directory holds one folder a step, named by its number; Orbax writes a step under a temporary name and renames
it, so a name without a temporary suffix is a whole step. Beside the arrays lies a record: the identity of what was
saved, and a fingerprint of every leaf, since Orbax does not notice a flipped byte.

Three things that a step can be are kept apart, and only the third moves anything:
another configuration    refused, with what differs, before anything is read further
out of reach             no permission, no memory, a store that fails for a fresh file too: refused
damaged                  set aside as `NAME.quarantined`, once an older step is known to be whole
"""

from __future__ import annotations

import hashlib
import itertools
import json
import logging
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from orbax.checkpoint import v1 as ocp

from tisdpo_jax.artifacts import differences, plain
from tisdpo_jax.errors import CheckpointError, DamagedError

log = logging.getLogger(__name__)

FORMAT = "tisdpo_jax checkpoint 2"
QUARANTINED = ".quarantined"
TEMPORARY = ".orbax-checkpoint-tmp"
CONTROL = ".control"  # a tree that is saved and read back, to know whether the store works at all
TRIES = 3  # failed saves in a row that training bears


def fingerprint(tree: Any) -> dict[str, str]:
    """Shape, dtype and 64 bits of hash for each leaf, by its path; the same on every mesh.

    Every bit counts at its place: a sum, modulo 2^32, over elements of a hash of (place, bits), so the order of
    summation does not matter, while a change of sign, a transposition or two layers changed over do.
    """
    sums = jax.device_get(_hashes(jax.tree.leaves(tree)))
    kinds = zip(_kinds(tree).items(), sums, strict=True)
    return {path: f"{kind} {int(high):08x}{int(low):08x}" for (path, kind), (high, low) in kinds}


def _kinds(tree: Any) -> dict[str, str]:
    """Path -> dtype and shape, `float32[64,48]`, of every leaf."""
    return {
        jax.tree_util.keystr(path): f"{np.dtype(leaf.dtype).name}[{','.join(map(str, leaf.shape))}]"
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


@jax.jit
def _hashes(leaves: list[jax.Array]) -> list[tuple[jax.Array, jax.Array]]:
    return [_hash(leaf) for leaf in leaves]


def _hash(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    if x.dtype == jnp.bool_:
        x = x.astype(jnp.uint8)
    width = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32, 8: jnp.uint32}[x.dtype.itemsize]
    bits = jax.lax.bitcast_convert_type(x, width).astype(jnp.uint32)
    place = jnp.zeros((), jnp.uint32)
    for axis, size in enumerate(bits.shape):  # an axis at a time: a flat index would not fit into 32 bits
        along = _mixed(jnp.arange(size, dtype=jnp.uint32) + np.uint32((axis + 1) * 0x9E3779B9 % 2**32))
        place = (place * np.uint32(0x85EBCA6B)) ^ along.reshape(-1, *[1] * (bits.ndim - axis - 1))
    lanes = [
        jnp.sum(_mixed(bits ^ _mixed(place ^ np.uint32(seed))), dtype=jnp.uint32) for seed in (0x243F6A88, 0xB7E15162)
    ]
    return lanes[0], lanes[1]


def _mixed(x: jax.Array) -> jax.Array:
    """A bijection of 32-bit integers in which every bit of the result depends on every bit given."""
    x = (x ^ (x >> np.uint32(16))) * np.uint32(0x7FEB352D)
    x = (x ^ (x >> np.uint32(15))) * np.uint32(0x846CA68B)
    return x ^ (x >> np.uint32(16))


def abstract(tree: Any) -> Any:
    """Shapes, dtypes and shardings of a tree of arrays: what `load_tree` needs to know."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree)


def save_tree(path: Path, tree: Any, identity: Mapping[str, Any]) -> None:
    """One tree, written and waited for. Raises: CheckpointError when that fails, tried TRIES times."""
    for number in range(1, TRIES + 1):
        try:
            _writer(path, tree, identity).result()
            return
        except Exception as error:  # whatever the file system or Orbax says
            _discard(path)
            if number == TRIES:
                raise CheckpointError(
                    f"{path}: cannot be written: {_line(error)}; make room, or permit it, and start again"
                ) from error
            log.warning("%s: could not be written: %s; tried again", path, _line(error))
            time.sleep(number)


def load_tree(path: Path, like: Any, identity: Mapping[str, Any] | None) -> tuple[Any, dict[str, Any]]:
    """The tree as `like` describes it (shapes, dtypes, shardings), and the identity that it was saved with.

    Args:
      identity: what it must have been saved with; None takes any.

    Raises: DamagedError when it does not hold what was saved; CheckpointError when it was made with another
      configuration, has other shapes or dtypes, or is out of reach.
    """
    record = _read_record(path)
    _check_record(path, record, like, identity)
    return _read_state(path, record, like), record["identity"]


def load_identity(path: Path) -> dict[str, Any]:
    """What a tree was saved with, without the tree. Raises: as `load_tree`."""
    identity: dict[str, Any] = _read_record(path)["identity"]
    return identity


def other_configuration(
    path: Path, changed: Sequence[str], what: str = "was made with another configuration"
) -> CheckpointError:
    """The refusal of what was made with something else; `changed` as `artifacts.differences` gives it."""
    return _refused(f"{path}: {what}: {'; '.join(changed)}", "go back to those values")


def _refused(what: str, remedy: str = "use the version that wrote it") -> CheckpointError:
    return CheckpointError(f"{what}. Nothing was changed: {remedy}, or use a new run_dir")


class Checkpoints:
    """The steps of one training. Saving is asynchronous; `wait` or the next save finishes it."""

    def __init__(self, directory: Path, *, keep: int) -> None:
        self.directory = directory
        self._keep = keep
        self._pending: tuple[int, Any] | None = None
        self._failures = 0

    def steps(self) -> list[int]:
        """Steps on disk, oldest first."""
        return sorted(int(path.name) for path in self._entries() if _is_step(path))

    def set_aside(self) -> list[str]:
        """Names of what was found damaged earlier, and is still there."""
        return sorted(path.name for path in self._entries() if QUARANTINED in path.name)

    def _entries(self) -> list[Path]:
        return list(self.directory.iterdir()) if self.directory.is_dir() else []

    def save(self, step: int, state: Any, identity: Mapping[str, Any]) -> None:
        """Begins to write a step. One that fails is told and borne, TRIES times in a row.

        Raises: CheckpointError after that.
        """
        self.wait()
        if step in self.steps():
            return
        try:
            self._pending = step, _writer(self.directory / str(step), state, identity)
        except Exception as error:  # whatever the file system or Orbax says: the training is worth more than a step
            self._bear(step, error)

    def save_now(self, step: int, state: Any, identity: Mapping[str, Any]) -> None:
        """Writes a step and waits for it. Raises: CheckpointError when that fails, tried several times."""
        self.wait()
        if step not in self.steps():
            save_tree(self.directory / str(step), state, identity)
            self._prune()

    def wait(self) -> None:
        """Until what was saved is on disk, then removes what is older than the newest `keep`."""
        if self._pending is None:
            return
        (step, pending), self._pending = self._pending, None
        try:
            pending.result()
        except Exception as error:  # as in `save`
            self._bear(step, error)
            return
        self._failures = 0
        self._prune()

    def _prune(self) -> None:
        if jax.process_index() == 0:
            for step in self.steps()[: -self._keep]:
                shutil.rmtree(self.directory / str(step))

    def _bear(self, step: int, error: Exception) -> None:
        self._failures += 1
        _discard(self.directory / str(step))
        reason = f"{self.directory}: checkpoint {step} could not be written: {_line(error)}"
        if self._failures >= TRIES:
            newest = f"step {self.steps()[-1]}" if self.steps() else "the start of the stage"
            raise CheckpointError(
                f"{reason}; that was number {self._failures} in a row. Make room, or permit it, and start again: "
                f"it goes on from {newest}"
            ) from error
        log.warning("%s; training goes on, and the next checkpoint tries again", reason)

    def restore(self, like: Any, identity: Mapping[str, Any]) -> tuple[int, Any] | None:
        """(step, state) of the newest step that can be trusted; None when nothing was ever saved here.

        Nothing is touched before a step has been found whole; then the damaged ones after it are set aside.

        Raises: CheckpointError when a step was made with another configuration, when one is out of reach, and when
          there are steps, or some that were set aside, but none that can be trusted.
        """
        self._clean()
        steps = {step: self.directory / str(step) for step in self.steps()}
        records, damaged = dict[int, dict[str, Any]](), dict[int, DamagedError]()
        for step, path in steps.items():
            try:
                records[step] = _read_record(path)
            except DamagedError as error:
                damaged[step] = error
        for step, record in records.items():
            _check_record(steps[step], record, like, identity)
        for step in reversed(records):
            try:
                state = _read_state(steps[step], records[step], like)
            except DamagedError as error:
                damaged[step] = error
                continue
            for other in sorted(other for other in damaged if other > step):
                log.warning("checkpoint set aside: %s", damaged[other])
                quarantine(steps[other])
            return step, state
        for reason in damaged.values():
            log.warning("%s", reason)
        if there := [*map(str, steps), *self.set_aside()]:
            raise CheckpointError(
                f"{self.directory}: there are checkpoints ({', '.join(there)}), but none that can be restored; nothing "
                "was changed. Bring one back (from a copy, or by its old name), or delete that directory to train this "
                "stage from its start"
            )
        return None

    def _clean(self) -> None:
        """Removes what saves of runs that were killed have left unfinished, and tells what else lies about."""
        if jax.process_index() != 0:
            return
        for path in self._entries():
            if TEMPORARY in path.name or path.name == CONTROL:
                shutil.rmtree(path, ignore_errors=True)
            elif not _is_step(path) and QUARANTINED not in path.name:
                log.warning("%s: not the name of a checkpoint; left alone", path)


def quarantine(path: Path) -> None:
    """Renames what is damaged, to a name that is free. Every process calls it."""
    if jax.process_index() == 0:
        endings = itertools.chain([""], (f"-{number}" for number in itertools.count(2)))
        names = (path.with_name(f"{path.name}{QUARANTINED}{ending}") for ending in endings)
        path.rename(next(name for name in names if not name.exists()))
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(f"quarantine {path.name}")


def _is_step(path: Path) -> bool:
    name = path.name
    return name.isascii() and name.isdigit() and str(int(name)) == name and path.is_dir()


def _writer(path: Path, tree: Any, identity: Mapping[str, Any]) -> Any:
    """Begins to save. A directory that cannot be written is found out here: Orbax would wait for minutes."""
    content = {"format": FORMAT, "fingerprint": fingerprint(tree), "identity": plain(dict(identity))}
    record = json.dumps(content, sort_keys=True).encode()
    # as an array: of a tree of strings alone Orbax says at every save that it has nothing to merge
    info = {"record": np.frombuffer(hashlib.sha256(record).digest() + record, np.uint8)}
    place = path.resolve()  # relative paths can be written by Orbax, but not read
    place.parent.mkdir(parents=True, exist_ok=True)
    if jax.process_index() == 0:
        probe = place.with_name(f".{place.name}{TEMPORARY}-probe")
        probe.mkdir(exist_ok=True)
        probe.rmdir()
    return ocp.save_checkpointables_async(place, {"state": tree, "info": info})


def _discard(path: Path) -> None:
    """Removes what a save that failed has left: on a full disk it is in the way of the next."""
    if jax.process_index() == 0:
        for leftover in path.parent.glob(f"{path.name}{TEMPORARY}*"):
            shutil.rmtree(leftover, ignore_errors=True)


def _read_record(path: Path) -> dict[str, Any]:
    """What a step says of itself. Raises: DamagedError; CheckpointError for another version's, or out of reach."""
    try:
        info: dict[str, Any] = ocp.load_checkpointables(path.resolve(), {"info": None})["info"]
    except Exception as error:  # Orbax raises many kinds; _fault tells them apart
        raise _fault(path, error) from error
    if set(info) == {"fingerprint", "run"}:
        raise _refused(f"{path}: made by an older version of this program, which this one does not read")
    stored = info.get("record")
    content = stored.tobytes() if isinstance(stored, np.ndarray | jax.Array) else b""
    if hashlib.sha256(content[32:]).digest() != content[:32]:
        raise DamagedError(f"{path}: its record does not match its digest: damaged")
    record: dict[str, Any] = json.loads(content[32:])
    if record["format"] != FORMAT:
        raise _refused(f"{path}: its format is {record['format']!r}, this version reads {FORMAT!r}")
    return record


def _check_record(path: Path, record: Mapping[str, Any], like: Any, identity: Mapping[str, Any] | None) -> None:
    """Raises: CheckpointError where a step is whole, but of another configuration."""
    changed = [] if identity is None else differences(record["identity"], identity)
    if changed:
        raise other_configuration(path, changed)
    kinds = {key: value.rpartition(" ")[0] for key, value in record["fingerprint"].items()}
    changed = differences(kinds, _kinds(like))
    if changed:
        more = [f"and {len(changed) - 3} more"] if len(changed) > 3 else []
        raise other_configuration(path, changed[:3] + more, "holds other arrays than this configuration trains")


def _read_state(path: Path, record: Mapping[str, Any], like: Any) -> Any:
    tree, failure = None, None
    try:
        tree = ocp.load_checkpointables(path.resolve(), {"state": like})["state"]
    except Exception as error:  # Orbax raises many kinds; _fault tells them apart
        failure = error
    everywhere = failure is None
    if jax.process_count() > 1:
        everywhere = bool(multihost_utils.process_allgather(np.asarray(everywhere)).all())
    if not everywhere:
        if failure is None:
            raise CheckpointError(f"{path}: another process could not read its part; nothing was changed")
        raise _fault(path, failure) from failure
    actual = fingerprint(tree)
    wrong = sorted(key for key, value in record["fingerprint"].items() if actual.get(key) != value)
    if wrong:
        raise DamagedError(f"{path}: {len(wrong)} arrays do not match their fingerprints, first {wrong[0]}: damaged")
    return tree


def _fault(path: Path, error: Exception) -> CheckpointError:
    """Damage, or something that stands between us and a step that may be whole: only the first moves anything."""
    what = f"{path}: cannot be restored: {_line(error)}"
    if unreadable := _unreadable(path):
        return CheckpointError(f"{path}: cannot be read ({unreadable}); nothing was changed: permit it, or try again")
    if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error):
        return CheckpointError(f"{what}. Memory ran out; nothing was changed")
    if jax.process_count() == 1 and (reason := _store_fails(path.parent)):
        return CheckpointError(f"{what}. A fresh file fails in the same way ({reason}), so nothing was changed")
    return DamagedError(f"{what}: damaged")


def _unreadable(path: Path) -> str:
    """Why a file below `path` cannot be read by this process; "" when all can be."""
    try:
        for file in [entry for entry in path.rglob("*") if entry.is_file()]:
            with file.open("rb") as opened:
                while opened.read(1 << 24):
                    pass
    except OSError as error:
        return f"{error.filename or path}: {error.strerror}"
    return ""


def _store_fails(directory: Path) -> str:
    """The control: why a small tree, saved here now, does not come back; "" when it does."""
    place = directory.resolve() / CONTROL
    try:
        shutil.rmtree(place, ignore_errors=True)
        tree = {"x": jnp.arange(3.0)}
        ocp.save_checkpointables_async(place, {"state": tree}).result()
        ocp.load_checkpointables(place, {"state": abstract(tree)})
    except Exception as error:  # any failure at all means that the step is not to blame
        return _line(error)
    finally:
        shutil.rmtree(place, ignore_errors=True)
    return ""


def _line(error: BaseException) -> str:
    """An exception in one line; of Orbax's wrappers, what they wrap."""
    while error.__cause__ is not None and not isinstance(error, OSError):
        error = error.__cause__
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0][:200]}" if text else type(error).__name__
