"""The lease on a run's directory: one run writes at a time, and a run that is gone is no obstacle.

`.lock` is held by `flock`, which the kernel gives back however a process ends, in any container. Where the holder
ran under another kernel (another host, or this one before a restart), `flock` may not reach; there its sign of
life decides: a holder touches the file every BEAT seconds, and one that has not for LEASE seconds is gone. Times
are those of the file system alone, so clocks of hosts need not agree.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tisdpo_jax.errors import ConfigError

log = logging.getLogger(__name__)

NAME = ".lock"
BEAT, LEASE = 10.0, 45.0  # seconds


class Lease:
    """A held lock: an open file, and a thread that touches it."""

    def __init__(self, path: Path, file: int, token: str, lost: Callable[[str], None]) -> None:
        self.path, self._file, self._token, self._lost = path, file, token, lost
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="tisdpo-lease", daemon=True)
        self._thread.start()

    def _beat(self) -> None:
        while not self._done.wait(BEAT):
            try:
                os.utime(self._file)
            except OSError as error:  # a file system that is away for a moment; the next beat tries again
                log.warning("%s: no sign of life could be left (%s)", self.path, error.strerror)
                continue
            holder = _read(self.path)
            if holder.get("token") != self._token and not self._done.is_set():
                self._lost(f"{self.path}: taken over by {_named(holder)}, which saw no sign of life from here")
                return

    def release(self) -> None:
        self._done.set()
        self._thread.join()
        if _read(self.path).get("token") == self._token:
            self.path.unlink(missing_ok=True)
        os.close(self._file)


@contextmanager
def lease(directory: Path, lost: Callable[[str], None] | None = None) -> Iterator[Lease]:
    """Holds `directory`, which must be there, until the block ends.

    Args:
      lost: called from a thread when another run has taken the directory over; by default the process ends, since
        two writers are worse than none.

    Raises: ConfigError when another run holds it, or it cannot be written.
    """
    path = directory / NAME
    token = uuid.uuid4().hex
    held = Lease(path, _take(path, token), token, lost or _end)
    try:
        yield held
    finally:
        held.release()


def _take(path: Path, token: str) -> int:
    while True:
        try:
            file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | getattr(os, "O_NOFOLLOW", 0), 0o666)
        except OSError as error:
            raise ConfigError(
                f"run_dir {path.parent}: cannot be written: {error.strerror}; choose another run_dir"
            ) from None
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(file)
            raise _in_use(path, _read(path)) from None
        except OSError as error:
            os.close(file)
            raise ConfigError(
                f"run_dir {path.parent}: its file system takes no locks ({error.strerror}); choose another run_dir"
            ) from None
        try:
            if not _same_file(file, path):  # given back, and taken away, between opening and locking
                os.close(file)
                continue
            holder = _read(path)
            if holder and holder.get("kernel") != _kernel():
                _wait_until_gone(path, holder)
                if not _same_file(file, path):
                    os.close(file)
                    continue
            mine = {
                "host": socket.gethostname(),
                "pid": os.getpid(),
                "since": time.strftime("%Y-%m-%d %H:%M:%S"),
                "kernel": _kernel(),
                "token": token,
            }
            os.ftruncate(file, 0)
            os.pwrite(file, json.dumps(mine).encode(), 0)
        except BaseException:
            os.close(file)
            raise
        return file


def _wait_until_gone(path: Path, holder: dict[str, Any]) -> None:
    """Returns when the holder has left no sign of life for LEASE seconds. Raises: ConfigError when it leaves one."""
    first = path.stat().st_mtime_ns
    said = False
    while (age := _now(path.parent) - path.stat().st_mtime) < LEASE:
        if path.stat().st_mtime_ns != first:
            raise _in_use(path, holder)
        if not said:
            log.info("%s: held by %s; it is taken over in %.0f s without a sign of life", path, _named(holder), LEASE)
            said = True
        time.sleep(min(1.0, max(LEASE - age, 0.01)))
    log.warning("%s: taken over from %s, which has left no sign of life", path, _named(holder))


def _now(directory: Path) -> float:
    """The time by the clock that stamps files of this directory."""
    probe = directory / f"{NAME}.{uuid.uuid4().hex}"
    probe.touch(exist_ok=False)
    try:
        return probe.stat().st_mtime
    finally:
        probe.unlink()


def _same_file(file: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file), os.stat(path))
    except FileNotFoundError:
        return False


def _in_use(path: Path, holder: dict[str, Any]) -> ConfigError:
    return ConfigError(f"run_dir {path.parent} is in use by {_named(holder)}; wait for it, or use another run_dir")


def _named(holder: dict[str, Any]) -> str:
    known = {name: holder.get(name, "unknown") for name in ("pid", "host", "since")}
    return "process {pid} on {host} since {since}".format(**known)


def _read(path: Path) -> dict[str, Any]:
    """What a lock says; empty when it says nothing that can be read."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _kernel() -> str:
    """A name of the running kernel: containers on one machine share it, a restart changes it."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return socket.gethostname()


def _end(reason: str) -> None:
    log.error("error: %s; this one ends without another word", reason)
    os._exit(1)
