"""A lowered step through the compiler: the program, or the memory that it would have needed."""

from __future__ import annotations

import contextlib
import logging
import re
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax

from tisdpo_jax.errors import UserError
from tisdpo_jax.planning.program import Program, dump_options, read_program

log = logging.getLogger(__name__)


class Compiled(NamedTuple):
    """What came of it."""

    program: Program | None  # None: it was refused
    needed: int | None  # bytes on a chip that a refused program asked for, where the compiler says it
    seconds: float


def compile_step_program(lowered: Any, *, report: bool, resident: int) -> Compiled:
    """Compiles a lowered step.

    Args:
      report: whether the compiler is asked for its report of memory; the program is the same.
      resident: bytes on a chip that the step's arguments take.

    Raises: UserError for an option that the compiler does not know.
    """
    began = time.perf_counter()
    program, needed = None, None
    try:
        program = _compile(lowered, report)
    except jax.errors.JaxRuntimeError as error:
        if "compile option" in str(error).lower():
            raise UserError(f"mesh.compiler_options: {str(error).splitlines()[0]}") from None
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        needed = memory_asked(str(error), resident)
    return Compiled(program, needed, time.perf_counter() - began)


def _compile(lowered: Any, report: bool) -> Program:
    with contextlib.ExitStack() as stack:
        dump = None
        if report:
            stack.enter_context(_not_kept())
            try:
                dump = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tisdpo-plan-")))
            except OSError as error:
                log.warning("no folder for the compiler's report of memory, so the peak stands for it: %s", error)
        program = read_program(lowered.compile(dump_options(dump) if dump else None), dump)
    if dump and program.memory is not None and not program.memory.reserved:
        log.warning("the compiler wrote no report of memory, so the peak stands for it")
    return program


@contextlib.contextmanager
def _not_kept() -> Iterator[None]:
    """JAX's cache of programs stays as it is: one for devices that are not there could be written, but not read."""
    name = "jax_persistent_cache_min_compile_time_secs"
    before = getattr(jax.config, name)
    jax.config.update(name, float("inf"))
    try:
        yield
    finally:
        jax.config.update(name, before)


def memory_asked(message: str, resident: int) -> int | None:
    """Bytes on a chip that a program wants, out of what the TPU compiler says when it refuses it."""
    for pattern, besides in ((r"Used ([\d.]+)([KMGT]) of", 0), (r"temporaries \(([\d.]+)([KMGT])\)", resident)):
        if match := re.search(pattern, message):
            return besides + round(float(match.group(1)) * 1024 ** " KMGT".index(match.group(2)))
    return None
