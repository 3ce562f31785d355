"""Signals that ask a run to stop."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from tisdpo_jax.training.interrupt import Interrupt, Interrupted, listening


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGHUP"])
def test_a_signal_is_noted_and_polled(name: str) -> None:
    number = getattr(signal, name)
    before, interrupt = signal.getsignal(number), Interrupt()
    with listening(interrupt):
        interrupt.poll("waiting")
        os.kill(os.getpid(), number)
        if name == "SIGHUP":  # a closed terminal sends two
            os.kill(os.getpid(), number)
        with pytest.raises(Interrupted, match="stopped on request while waiting"):
            interrupt.poll("waiting")
    assert signal.getsignal(number) == before


def test_under_nohup_a_hangup_stays_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        interrupt = Interrupt()
        with listening(interrupt):
            os.kill(os.getpid(), signal.SIGHUP)
            assert not interrupt.asked()
    finally:
        signal.signal(signal.SIGHUP, before)


CLOSED = """
import os, signal, sys
from tisdpo_jax.training.interrupt import Interrupt, listening
interrupt = Interrupt()
with listening(interrupt):
    os.write(1, b"ready\\n")
    while not interrupt.asked():
        signal.pause()
    print("written to nobody", flush=True)
    print("written to nobody", file=sys.stderr, flush=True)
    os._exit(42)
"""


def test_a_run_whose_terminal_is_closed_comes_to_its_end() -> None:
    parent, child = os.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", CLOSED], stdin=child, stdout=child, stderr=child, start_new_session=True
    )
    os.close(child)
    assert os.read(parent, 5) == b"ready"
    os.close(parent)  # nobody reads any more: writing would be an error
    process.send_signal(signal.SIGHUP)
    assert process.wait(timeout=60) == 42
