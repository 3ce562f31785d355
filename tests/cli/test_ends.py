"""How the program ends: quietly where its output is read no further, and always."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

PROGRAM = [sys.executable, "-m", "tisdpo_jax.cli"]


def closed_pipe() -> int:
    reader, writer = os.pipe()
    os.close(reader)
    return writer


@pytest.mark.parametrize("arguments", [["--help"], ["run", "--help"], ["--version"]])
def test_nobody_reads(arguments: list[str]) -> None:
    writer = closed_pipe()
    env = {**os.environ, "PYTHONUNBUFFERED": ""}  # as users have it: small outputs fail in the last flush
    done = subprocess.run([*PROGRAM, *arguments], stdout=writer, stderr=subprocess.PIPE, env=env, check=False)
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, b"")


def test_nobody_reads_the_errors() -> None:
    writer = closed_pipe()
    done = subprocess.run([*PROGRAM, "rum"], stdout=subprocess.PIPE, stderr=writer, check=False)
    os.close(writer)
    assert (done.returncode, done.stdout) == (2, b"")


ENDS = """
import threading
from tisdpo_jax.cli import main as program
import sys; program = sys.modules["tisdpo_jax.cli.main"]
program.LEAVE_AFTER = 0.01
threading.Thread(target=threading.Event().wait, name="somebody-elses").start()
def main(error={error}):
    raise error
program._main = lambda arguments: main()
program.command()
"""


@pytest.mark.parametrize(
    ("error", "code", "told"),
    [
        ("RuntimeError('odd')", 1, "RuntimeError: odd"),
        ("BrokenPipeError('of another pipe')", 1, "BrokenPipeError: of another pipe"),
        ("program.UserError('no')", 2, "error: no"),
        ("KeyboardInterrupt()", 130, "stopped"),
    ],
)
def test_a_thread_of_somebody_else_does_not_keep_the_process(error: str, code: int, told: str) -> None:
    script = ENDS.format(error=error)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == code and told in done.stderr
    assert (
        "leaving" in done.stderr and "somebody-elses" in done.stderr and done.stderr.count("Traceback") == (code == 1)
    )
