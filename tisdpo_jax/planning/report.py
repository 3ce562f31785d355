"""A plan as numbers, and as a table for people.

Numbers are per step. What is derived is derived here, and nowhere else, from what the compiler said.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from tisdpo_jax.planning.program import Program
from tisdpo_jax.planning.resident import Resident
from tisdpo_jax.planning.topology import GIB, Spec
from tisdpo_jax.planning.useful import Flops

KERNEL_EFFICIENCY = 0.4  # of the peak, that attention kernels are taken to reach: an assumption, not a measurement
BLIND_SPOTS = (
    "The time is the compiler's own estimate of each operation, in a row: it does not see how much of the interconnect "
    "time stays exposed, the host, input, or checkpoints; differences below 10 % mean nothing."
)


@dataclasses.dataclass(frozen=True)
class StagePlan:
    """What one step of one stage needs on one topology."""

    spec: Spec
    stage: str
    mesh: dict[str, int]
    model: str
    pairs: int  # of a step
    rows: tuple[tuple[str, int, int], ...]  # view, rows, tokens a row
    lengths: str  # where lengths of pairs come from
    resident: tuple[Resident, ...]
    useful: Flops  # of all devices
    recomputed: Flops
    program: Program | None  # None: the compiler refused, for want of memory
    needed: int | None  # bytes on a chip, where the compiler refused
    compile_seconds: float
    note: str = ""
    advice: tuple[str, ...] = ()

    @property
    def chips(self) -> int:
        return self.spec.count

    @property
    def hbm(self) -> int | None:
        """Bytes on one chip: arguments + temporaries + outputs - aliased, an upper bound."""
        memory = None if self.program is None else self.program.memory
        return self.needed if memory is None else memory.hbm

    @property
    def peak(self) -> int | None:
        """Bytes on one chip that are in use at once, by the compiler for TPUs; `hbm` where another stands in."""
        memory = None if self.program is None or self.spec.chip is None else self.program.memory
        return memory.peak if memory is not None and memory.peak else self.hbm

    @property
    def reserved(self) -> int | None:
        """Bytes on one chip that the compiler for TPUs lays out; `peak` where it did not say."""
        memory = None if self.program is None else self.program.memory
        return memory.reserved if memory is not None and memory.reserved else self.peak

    @property
    def capacity(self) -> int | None:
        return None if self.spec.chip is None else self.spec.chip.hbm

    @property
    def fits(self) -> bool | None:
        """None where the capacity is not known."""
        if self.program is None:
            return False
        return None if self.capacity is None or self.reserved is None else self.reserved <= self.capacity

    @property
    def flops(self) -> float | None:
        """Of all devices."""
        return None if self.program is None else float(self.program.flops) * self.chips

    @property
    def waste(self) -> float | None:
        """Compiled over useful flops."""
        return None if self.flops is None else self.flops / self.useful.total

    @property
    def waste_beside_remat(self) -> float | None:
        """The same, with what `model.remat` asked for counted as useful."""
        return None if self.flops is None else self.flops / (self.useful + self.recomputed).total

    @property
    def seconds(self) -> float | None:
        """Estimate of a step, interconnect not in it."""
        if self.program is None or self.spec.chip is None or not self.program.cycles:
            return None
        chip = self.spec.chip
        return self.program.cycles / chip.clock + self.program.kernel_flops / (chip.flops * KERNEL_EFFICIENCY)

    @property
    def interconnect_seconds(self) -> float | None:
        """The least that the traffic takes, if every link of a chip is busy all the time."""
        if self.program is None or self.spec.chip is None:
            return None
        return self.program.wire_bytes / self.spec.chip.ici

    @property
    def mfu(self) -> float | None:
        """Useful flops over those of the chips in the estimated time."""
        if self.seconds is None or self.spec.chip is None:
            return None
        return self.useful.total / (self.seconds * self.chips * self.spec.chip.flops)

    @property
    def pairs_per_second(self) -> float | None:
        return None if self.seconds is None else self.pairs / self.seconds

    def as_json(self) -> dict[str, Any]:
        """Plain values; bytes, flops, seconds."""
        program = None
        if self.program is not None:
            fields = dataclasses.asdict(self.program)
            program = fields | {"buffers": fields["buffers"][:16], "flops": self.program.flops}
        derived = (
            *("chips", "hbm", "peak", "reserved", "capacity", "fits"),
            *("flops", "waste", "waste_beside_remat", "seconds"),
            *("interconnect_seconds", "mfu", "pairs_per_second"),
        )
        return {
            "topology": self.spec.name,
            "stage": self.stage,
            "model": self.model,
            "mesh": self.mesh,
            "pairs": self.pairs,
            "rows": [{"view": view, "rows": rows, "tokens": tokens} for view, rows, tokens in self.rows],
            "lengths": self.lengths,
            **{name: getattr(self, name) for name in derived},
            "useful_flops": dataclasses.asdict(self.useful) | {"total": self.useful.total},
            "recomputed_flops": self.recomputed.total,
            "kernel_efficiency": KERNEL_EFFICIENCY,
            "resident": [dataclasses.asdict(item) for item in self.resident],
            "program": program,
            "compile_seconds": round(self.compile_seconds, 1),
            "note": self.note,
            "advice": list(self.advice),
            "blind_spots": BLIND_SPOTS,
        }


def plan_text(plans: Sequence[StagePlan]) -> str:
    """The plans as text, one block each."""
    return "\n\n".join([*(_block(plan) for plan in plans), BLIND_SPOTS])


def _block(plan: StagePlan) -> str:
    mesh = " x ".join(f"{name} {size}" for name, size in plan.mesh.items() if size > 1) or "one device"
    lines = [f"{plan.spec.name}  stage {plan.stage}  {plan.model}  {plan.chips} chips ({mesh})"]
    rows = "; ".join(f"{view} {count} rows of {tokens} tokens" for view, count, tokens in plan.rows)
    lines.append(f"  {'step':<16}{plan.pairs} pairs: {rows}; lengths: {plan.lengths}")
    lines.append(f"  {'HBM a chip':<16}{_memory(plan)}")
    lines += _residents(plan)
    if plan.program is not None:
        lines += _program(plan, plan.program)
    lines.append(f"  {'compiled in':<16}{plan.compile_seconds:.0f} s")
    if plan.note:
        lines.append(f"  {'note':<16}{plan.note}")
    for number, advice in enumerate(plan.advice):
        lines.append(f"  {'what to change' if number == 0 else '':<16}{advice}")
    return "\n".join(lines)


def _memory(plan: StagePlan) -> str:
    if plan.hbm is None or plan.peak is None or plan.reserved is None:
        return "more than there is: the compiler refused" if plan.program is None else "the compiler does not say"
    verdict = {True: "fits", False: "DOES NOT FIT", None: "capacity not known"}[plan.fits]
    of = "" if plan.capacity is None else f" of {_gib(plan.capacity)}"
    memory = None if plan.program is None else plan.program.memory
    more = ""
    if memory is not None and memory.reserved:
        more = f" ({_gib(plan.peak)} in use at the peak; sum of the parts {_gib(plan.hbm)})"
    elif plan.hbm != plan.peak:
        more = f" (in use at the peak; sum of the parts {_gib(plan.hbm)})"
    return f"{_gib(plan.reserved)}{of}: {verdict}{more}"


def _residents(plan: StagePlan) -> list[str]:
    lines = [f"  {'  resident':<16}{'':<26}{'a chip':>12}{'in all':>12}"]
    for item in plan.resident:
        used = f" ({', '.join(item.used_by)})" if item.used_by and item.name != "trained" else ""
        lines.append(f"  {'':<16}{item.name + ' ' + item.term + used:<26}{_gib(item.chip):>12}{_gib(item.total):>12}")
    memory = None if plan.program is None else plan.program.memory
    if memory is not None:
        lines.append(f"  {'':<16}{'temporaries':<26}{_gib(memory.temporaries):>12}")
        lines.append(f"  {'':<16}{'program':<26}{_gib(memory.code):>12}")
    return lines


def _program(plan: StagePlan, program: Program) -> list[str]:
    assert plan.flops is not None
    remat = f", {plan.waste_beside_remat:.2f} beside remat" if plan.recomputed.total else ""
    flops, useful = _flops(plan.flops), _flops(plan.useful.total)
    lines = [f"  {'flops':<16}{flops} compiled, {useful} useful: waste {plan.waste:.2f}{remat}"]
    kinds = ", ".join(f"{item.kind} {_gb(item.bytes)} ({item.count})" for item in program.collectives)
    lines.append(f"  {'collectives':<16}{_gb(program.collective_bytes)} a chip{': ' if kinds else ''}{kinds}")
    if plan.seconds is not None and plan.interconnect_seconds is not None:
        lines.append(
            f"  {'time':<16}{plan.seconds * 1e3:.0f} ms a step (interconnect at least "
            f"{plan.interconnect_seconds * 1e3:.0f} ms); {plan.pairs_per_second:.1f} pairs/s, MFU {plan.mfu:.2f}"
        )
    doubts = []
    if program.unknown_loops:
        doubts.append(f"{len(program.unknown_loops)} loops of unknown length, counted once")
    if program.unknown_kernels:
        doubts.append(f"kernels of unknown work, counted as none: {', '.join(program.unknown_kernels)}")
    if program.kernel_flops:
        doubts.append(f"attention kernels taken to reach {KERNEL_EFFICIENCY:.0%} of the peak")
    if doubts:
        lines.append(f"  {'':<16}{'; '.join(doubts)}")
    return lines


def _gib(size: float) -> str:
    return f"{size / GIB:.2f} GiB" if size >= 0.005 * GIB else f"{size / 2**20:.2f} MiB"


def _gb(size: float) -> str:
    return f"{size / 1e9:.2f} GB" if size >= 5e6 else f"{size / 1e6:.2f} MB"


def _flops(count: float) -> str:
    return f"{count / 1e12:.1f} TF" if count >= 1e11 else f"{count / 1e9:.2f} GF"
