"""What the benchmarks share: a table for people, a JSON file for programs, and the machine that both belong to."""

from __future__ import annotations

import contextlib
import ctypes
import importlib.metadata
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

GIB = 2**30


def table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A Markdown table in columns that line up, words to the left; None is an empty cell, floats get three digits."""
    cells = [[cell(value) for value in row] for row in (header, *rows)]
    if any(len(row) != len(header) for row in cells):
        raise ValueError(f"a row has {len(header)} cells, as the header")
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
    words = [all(value is None or isinstance(value, str) for value in column) for column in zip(*rows, strict=True)]
    words = words or [True] * len(header)
    text = [
        [c.ljust(w) if left else c.rjust(w) for c, w, left in zip(row, widths, words, strict=True)] for row in cells
    ]
    rule = ["-" * w if left else "-" * (w - 1) + ":" for w, left in zip(widths, words, strict=True)]
    return "\n".join("| " + " | ".join(row) + " |" for row in (text[0], rule, *text[1:]))


def cell(value: Any) -> str:
    """One value as text."""
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}" if abs(value) < 100 else f"{value:.0f}"
    return str(value)


def machine(packages: Sequence[str]) -> dict[str, Any]:
    """Where and with what a result was made: processor, cores, versions of installed packages."""
    versions = {}
    for package in packages:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = None
    return {
        "python": platform.python_version(),
        "processor": processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "versions": versions,
    }


def processor() -> str:
    """The processor's name; Linux tells it in a file, others through `platform`."""
    file = Path("/proc/cpuinfo")
    names = [line for line in file.read_text().splitlines() if line.startswith("model name")] if file.is_file() else []
    return names[0].partition(":")[2].strip() if names else platform.processor() or platform.machine()


def peak_memory() -> int | None:
    """Bytes of the largest resident set this process has had; None where the system does not tell."""
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if platform.system() == "Darwin" else peak * 1024


def in_own_process(script: str, work: Any, timeout: float, out_of_memory: Sequence[str] = ()) -> dict[str, Any]:
    """What `script --worker JSON` prints last, as JSON; `error` instead where it failed or took too long.

    Where it says one of `out_of_memory`, or the system killed it, the error is "out of memory".
    """
    command = [sys.executable, script, "--worker", json.dumps(work)]
    with tempfile.TemporaryDirectory(prefix="tisdpo-benchmark-") as scratch:  # of a process that may be killed
        try:
            done = subprocess.run(
                command,
                capture_output=True,
                text=True,
                timeout=timeout,
                check=False,
                env={**os.environ, "TMPDIR": scratch},
            )
        except subprocess.TimeoutExpired:
            return {"error": f"more than {timeout} s"}
    if done.returncode == 0:
        found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return found
    if out_of_memory and (done.returncode == -9 or any(mark in done.stderr for mark in out_of_memory)):
        return {"error": "out of memory"}
    return {"error": failure(done.stderr, done.returncode)}


def failure(stderr: str, code: int) -> str:
    """One line that says why a process failed: the error at the end of a traceback, or the last line."""
    lines = [line for line in stderr.strip().splitlines() if line.strip()]
    errors = [line for line in lines if re.match(r"[\w.]*(Error|Exception)\b|error:", line)]
    return [f"exit {code}", *lines[-1:], *errors[-1:]][-1][:200]


def give_back_memory() -> None:
    """Returns freed memory to the system where glibc keeps it: two frameworks in one process would keep it twice."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def write_json(path: Path | None, report: Any) -> None:
    """The report, unless no file was asked for."""
    if path is None:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print(f"wrote {path}")
