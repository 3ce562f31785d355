"""Stopping on request: SIGTERM, SIGINT or SIGHUP is noted and every loop polls it; a second one ends at once."""

from __future__ import annotations

import contextlib
import functools
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec


class Interrupted(Exception):
    """The run was asked to stop, and has saved what it needs to go on: exit code 42."""


class Interrupt:
    """Whether the run should stop. All processes agree on the answer, and so on the step that is saved."""

    def __init__(self) -> None:
        self._asked = False
        self._answer: Any = None  # what all processes said when `asked_late` was called last

    def ask(self) -> None:
        self._asked = True

    def asked(self) -> bool:
        """Every process must call this at the same points."""
        if jax.process_count() == 1:
            return self._asked
        return bool(multihost_utils.process_allgather(np.asarray(self._asked)).any())

    def asked_late(self) -> bool:
        """`asked`, of several processes as they answered one call ago, so that none waits for work under way."""
        if jax.process_count() == 1:
            return self._asked
        before, self._answer = self._answer, _any_process(self._asked)
        return before is not None and bool(before)

    def poll(self, doing: str) -> None:
        """Raises Interrupted between two units of work that need no saving."""
        if self.asked():
            raise Interrupted(f"stopped on request while {doing}")


def _any_process(flag: bool) -> jax.Array:
    """Whether it is set in any process; the answer is on its way."""
    flags, gather = _gathering()
    return gather(jax.make_array_from_callback((jax.device_count(),), flags, lambda _: np.asarray([flag])))


@functools.lru_cache(maxsize=1)
def _gathering() -> tuple[Any, Any]:
    mesh = Mesh(np.asarray(jax.devices()), ("device",))
    return NamedSharding(mesh, PartitionSpec("device")), jax.jit(
        jnp.any, out_shardings=NamedSharding(mesh, PartitionSpec())
    )


@contextmanager
def listening(interrupt: Interrupt) -> Iterator[None]:
    """SIGTERM, SIGINT and SIGHUP ask `interrupt`; a second one exits with 42 without saving anything more.

    A SIGHUP that is ignored, as under nohup, stays ignored. With one that is not, the terminal is gone: what would be
    written to it goes nowhere, so that the run comes to its checkpoint. Kernel and shell both send one when a terminal
    is closed, so a second SIGHUP says nothing new.
    """
    terminals = [number for number in (0, 1, 2) if _is_terminal(number)]

    def handle(number: int, frame: FrameType | None) -> None:
        if number == signal.SIGHUP:
            _let_go(terminals)
        elif interrupt._asked:
            os._exit(42)
        interrupt.ask()

    heard = [signal.SIGTERM, signal.SIGINT]
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
        heard.append(signal.SIGHUP)
    previous = {number: signal.signal(number, handle) for number in heard}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _is_terminal(number: int) -> bool:
    try:
        return os.isatty(number)
    except OSError:
        return False


def _let_go(terminals: list[int]) -> None:
    with contextlib.suppress(OSError):
        nowhere = os.open(os.devnull, os.O_RDWR)
        for number in terminals:
            os.dup2(nowhere, number)
        os.close(nowhere)
