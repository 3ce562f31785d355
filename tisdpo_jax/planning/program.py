"""What a compiled program does on one device: flops, traffic between devices, cycles, memory, largest buffers.

`cost_analysis()` counts the body of a loop once and a kernel as nothing, so the text of the program is walked
instead: every computation as often as it runs. Memory is the compiler's own.
"""

from __future__ import annotations

import collections
import dataclasses
import math
import re
from pathlib import Path
from typing import Any

from tisdpo_jax.planning._hlo import (
    Instruction,
    Shape,
    SourceFrame,
    convolution_flops,
    dot_flops,
    parse,
    splash_flops,
)

COLLECTIVES = (
    *("all-gather", "reduce-scatter", "all-reduce", "all-to-all", "ragged-all-to-all"),
    *("collective-permute", "collective-broadcast"),
)
# What only names, takes apart or carries memory that something else has made.
_VIEWS = {
    *("parameter", "constant", "get-tuple-element", "tuple", "bitcast", "while", "conditional", "call"),
    *("optimization-barrier", "after-all", "partition-id", "replica-id"),
}


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes on one device, from `memory_analysis()`."""

    arguments: int
    temporaries: int
    outputs: int
    aliased: int  # outputs that lie where arguments lay
    code: int
    peak: int = 0  # the most alive at once, arguments and on-chip memory included; 0 where the compiler does not say
    reserved: int = 0  # what the compiler for TPUs lays out in HBM, arguments included; 0 where it did not say

    @property
    def hbm(self) -> int:
        """Arguments + temporaries + outputs - aliased: an upper bound.

        The compiler for TPUs counts some of what loops fill twice among its temporaries: it accepts programs for which
        this sum is larger than the memory of the chip (docs/performance.md). `reserved` has no such excess.
        """
        return self.arguments + self.temporaries + self.outputs - self.aliased


@dataclasses.dataclass(frozen=True)
class Collective:
    """All operations of a kind, on one device."""

    kind: str
    count: int
    bytes: int  # the larger of what goes in and what comes out
    wire_bytes: int  # that a device sends when the operation goes round a ring


@dataclasses.dataclass(frozen=True)
class Kernel:
    """Calls of a kernel of our own (Pallas), which the compiler does not see into."""

    name: str
    count: int
    flops: int | None  # of all calls; None for a kernel that is not known here


@dataclasses.dataclass(frozen=True)
class Buffer:
    """Results of one type and shape that are written to memory."""

    dtype: str
    shape: tuple[int, ...]
    count: int  # places in the program that make one, however often they run
    bytes: int  # of one, padding of its layout not counted


@dataclasses.dataclass(frozen=True)
class Program:
    """One device's share of a compiled program. Flops are 2 for a multiplication and an addition."""

    matmul_flops: int
    cycles: int  # sum of the compiler's own estimates; 0 where it makes none
    collectives: tuple[Collective, ...]
    kernels: tuple[Kernel, ...]
    buffers: tuple[Buffer, ...]  # the largest first
    memory: Memory | None
    unknown_loops: tuple[str, ...] = ()  # loops of unknown length, taken as run once
    unknown_kernels: tuple[str, ...] = ()  # custom calls of unknown work, taken as none

    @property
    def kernel_flops(self) -> int:
        return sum(kernel.flops or 0 for kernel in self.kernels)

    @property
    def flops(self) -> int:
        return self.matmul_flops + self.kernel_flops

    @property
    def collective_bytes(self) -> int:
        return sum(collective.bytes for collective in self.collectives)

    @property
    def wire_bytes(self) -> int:
        return sum(collective.wire_bytes for collective in self.collectives)


def read_program(compiled: Any, dump: Path | None = None) -> Program:
    """Reads an executable, `jax.jit(...).lower(...).compile()`, and what was written to `dump` on the way."""
    stats = compiled.memory_analysis()
    memory = None
    if stats is not None:
        memory = Memory(
            arguments=stats.argument_size_in_bytes,
            temporaries=stats.temp_size_in_bytes,
            outputs=stats.output_size_in_bytes,
            aliased=stats.alias_size_in_bytes,
            code=stats.generated_code_size_in_bytes,
            peak=stats.peak_memory_in_bytes,
            reserved=0 if dump is None else reserved(dump),
        )
    return dataclasses.replace(read_text(compiled.as_text()), memory=memory)


def dump_options(directory: Path) -> dict[str, str | bool]:
    """Options for `compile`, with which XLA writes what it knows of a program to a directory."""
    return {"xla_dump_to": str(directory), "xla_dump_hlo_as_text": True}


def reserved(directory: Path) -> int:
    """Bytes that the compiler for TPUs lays out in a chip's memory, from its report there; 0 where it wrote none."""
    reports = (file.read_text() for file in directory.glob("*memory-usage-report.txt"))
    totals = (re.search(r"^Memory Space: default.*\nTotal bytes: (\d+)", report, re.MULTILINE) for report in reports)
    return max((int(total.group(1)) for total in totals if total), default=0)


def read_text(text: str) -> Program:
    """Reads `compiled.as_text()`; memory is not in it."""
    entry = parse(text)
    walk = _Walk(entry.module.devices)
    tally = walk.scope(entry)
    kernels = []
    for name in sorted(key[1] for key in tally if key[0] == "kernel"):
        flops = None if tally["unknown", name] else tally["kernel flops", name]
        kernels.append(Kernel(name, tally["kernel", name], flops))
    collectives = (
        Collective(kind, tally["collective", kind], tally["bytes", kind], tally["wire", kind])
        for kind in sorted(key[1] for key in tally if key[0] == "collective")
    )
    buffers = (Buffer(shape.dtype, shape.dims, count, shape.bytes) for shape, count in walk.buffers.items())
    return Program(
        matmul_flops=tally["flops", ""],
        cycles=tally["cycles", ""],
        collectives=tuple(collectives),
        kernels=tuple(kernels),
        buffers=tuple(sorted(buffers, key=lambda buffer: (-buffer.bytes, buffer.dtype, buffer.shape))),
        memory=None,
        unknown_loops=tuple(walk.unknown_loops),
        unknown_kernels=tuple(kernel.name for kernel in kernels if kernel.flops is None),
    )


_Tally = collections.Counter[tuple[str, str]]
"""(what, of which kind) -> how often or how much, over a computation and what it calls."""


def _size(tally: _Tally) -> tuple[int, int, int]:
    """By which the branches of a conditional are compared."""
    return tally["cycles", ""], tally["flops", ""], sum(value for key, value in tally.items() if key[0] == "bytes")


class _Walk:
    """Goes through a program once, and collects on the way what is not a sum."""

    def __init__(self, devices: int) -> None:
        self.devices = devices
        self.buffers = collections.Counter[Shape]()
        self.unknown_loops: list[str] = []

    def scope(self, frame: SourceFrame) -> _Tally:
        """A computation that runs as a whole: the entry, the body of a loop, a branch."""
        tally = _Tally()
        self._visit(frame, tally, seen=set(), fused=False)
        return tally

    def _visit(self, frame: SourceFrame, tally: _Tally, *, seen: set[Any], fused: bool) -> None:
        for instruction in frame.computation.instructions.values():
            opcode = instruction.opcode
            if not fused:
                cycles = re.search(r'estimated_cycles\\?"?:\\?"?(\d+)', instruction.attributes)
                tally["cycles", ""] += int(cycles[1]) if cycles else 0
                if opcode not in _VIEWS and not opcode.endswith("-done"):
                    self.buffers.update(set(instruction.results))
            kind = opcode.removesuffix("-start")
            if opcode == "while":
                trips = frame.trips(instruction)
                if trips is None:
                    self.unknown_loops.append(instruction.name)
                body = self.scope(frame.enter(instruction, instruction.names("body")[0]))
                tally.update({key: value * (1 if trips is None else trips) for key, value in body.items()})
            elif opcode == "conditional":
                names = instruction.names("branch_computations") or [
                    *instruction.names("true_computation"),
                    *instruction.names("false_computation"),
                ]
                largest = max((self.scope(frame.enter(instruction, name)) for name in names), key=_size)
                tally.update(largest)
            elif opcode in ("fusion", "call", "async-start"):
                for name in instruction.names("calls", "to_apply"):
                    inside = fused or opcode == "fusion"
                    self._visit(frame.enter(instruction, name), tally, seen=seen, fused=inside)
            elif opcode == "dot":
                tally["flops", ""] += dot_flops(frame, instruction)
            elif opcode == "convolution":
                tally["flops", ""] += convolution_flops(frame, instruction)
            elif opcode == "custom-call" and 'custom_call_target="tpu_custom_call"' in instruction.attributes:
                name = re.sub(r"[.\d]+$", "", instruction.name)
                flops = splash_flops(instruction.name, frame.computation.shapes(instruction))
                tally.update({("kernel", name): 1, ("kernel flops", name): flops or 0})
                tally["unknown", name] += flops is None
            elif kind in COLLECTIVES:
                self._collective(frame, instruction, kind, tally, seen=seen, fused=fused)

    def _collective(
        self, frame: SourceFrame, instruction: Instruction, kind: str, tally: _Tally, *, seen: set[Any], fused: bool
    ) -> None:
        """Counts it once. The TPU compiler deals an asynchronous one out over several fusions, each with a copy."""
        scattered = kind == "all-reduce" and fused and "all-reduce-scatter" in frame.computation.name
        if fused and not scattered:
            key = (kind, instruction.attribute("channel_id"), instruction.results)
            if key in seen:
                return
            seen.add(key)
        taken = sum(shape.bytes for operand in frame.computation.operands(instruction) for shape in operand.results)
        returned = sum(shape.bytes for shape in instruction.results)
        if instruction.opcode.endswith("-start") and kind != "all-reduce":
            returned = max(returned - taken, 0)  # the results of a start hold its operands too
            if kind == "collective-permute":  # and flags of a few bytes
                returned = taken
        size = max(taken, returned)
        kind = "reduce-scatter" if scattered else kind
        group = _group(instruction, self.devices)
        share = {"all-reduce": 2 * (group - 1) / group, "collective-permute": 1.0, "collective-broadcast": 1.0}
        wire = round(size * share.get(kind, (group - 1) / group))
        tally.update({("collective", kind): 1, ("bytes", kind): size, ("wire", kind): wire})


def _group(instruction: Instruction, devices: int) -> int:
    """Devices that take part in one run of a collective."""
    text = instruction.attributes
    if mesh := re.search(r"replica_groups=(?:@?\w*)?mesh\[([^\]]*)\]\s*\{([^}]*)\}", text):
        sizes = {name: int(size) for name, size in re.findall(r"'([^']+)'=(\d+)", mesh[1])}
        return math.prod(sizes.get(name, 1) for name in re.findall(r"'([^']+)'", mesh[2])) or 1
    if iota := re.search(r"replica_groups=\[(\d+),(\d+)\]<=", text):
        return int(iota[2])
    listed = re.search(r"replica_groups=\{\{([\d,]*)\}", text)
    return len(listed[1].split(",")) if listed else devices
