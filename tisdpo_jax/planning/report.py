"""A plan as numbers, and as a table for people: what lies in memory, what the compiled step does, and for how long.

Numbers are per step. What is derived is derived here, and nowhere else, from what the compiler said.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax

from tisdpo_jax.planning.program import Memory, Program
from tisdpo_jax.planning.topology import GIB, Spec
from tisdpo_jax.planning.useful import Flops
from tisdpo_jax.roles import TRAINED, Frozen, Roles
from tisdpo_jax.types import TrainState

KERNEL_EFFICIENCY = 0.4  # of the peak, that attention kernels are taken to reach: an assumption, not a measurement
BLIND_SPOTS = (
    "The time is the compiler's own estimate of each operation, in a row: it does not see how much of the interconnect "
    "time stays exposed, the host, input, or checkpoints; differences below 10 % mean nothing."
)


@dataclasses.dataclass(frozen=True)
class Resident:
    """One tree of arrays that lies in memory between two steps."""

    name: str  # "trained", "base", "plus", ..., "batch"
    term: str  # "parameters", "adapters", "optimizer", "tokens", "states", "columns"
    used_by: tuple[str, ...]  # roles that read it
    total: int  # bytes of the arrays, each counted once
    chip: int  # bytes on one device


def resident(state: TrainState | None, frozen: Frozen, batch: Any, roles: Roles) -> tuple[Resident, ...]:
    """Everything that the step is given, by role and term.

    Args:
        state, frozen, batch: the arguments of the step; arrays, or `ShapeDtypeStruct`s with a sharding. No state
            where nothing is trained.
        roles: who reads which of the trees.
    """
    named = {name: role for name in ("policy", "reference", "plus", "minus") if (role := getattr(roles, name))}

    def tree(arrays: Any, name: str, term: str, collection: str = "") -> Resident:
        used_by = tuple(reader for reader, role in named.items() if (collection, name) in role.needs())
        leaves = jax.tree.leaves(arrays)
        total = sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)
        chip = sum(math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in leaves)
        return Resident(name, term, ("policy",) if name == TRAINED else used_by, total, chip)

    trees = []
    if state is not None:
        trees.append(tree(state.trained, TRAINED, "adapters" if roles.policy.lora == TRAINED else "parameters"))
        trees.append(tree((state.step, state.opt_state, state.skipped), TRAINED, "optimizer"))
    trees += [tree(arrays, key, "parameters", "params") for key, arrays in frozen["params"].items()]
    trees += [tree(arrays, key, "adapters", "lora") for key, arrays in frozen["lora"].items()]
    trees.append(tree(batch._replace(columns={}, states=None), "batch", "tokens"))
    trees.append(tree(batch.states, "batch", "states"))
    trees.append(tree(batch.columns, "batch", "columns"))
    return tuple(item for item in trees if item.total)


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
    def memory(self) -> Memory | None:
        return None if self.program is None else self.program.memory

    @property
    def hbm(self) -> int | None:
        """Bytes on one chip: arguments + temporaries + outputs - aliased, an upper bound."""
        return self.needed if self.memory is None else self.memory.hbm

    @property
    def peak(self) -> int | None:
        """Bytes on one chip that are in use at once, by the compiler for TPUs; `hbm` where another stands in."""
        return self.memory.peak if self.memory and self.spec.chip and self.memory.peak else self.hbm

    @property
    def reserved(self) -> int | None:
        """Bytes on one chip that the compiler for TPUs lays out; `peak` where it did not say."""
        return self.memory.reserved if self.memory and self.memory.reserved else self.peak

    @property
    def capacity(self) -> int | None:
        return self.spec.chip.hbm if self.spec.chip else None

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
        chip = self.spec.chip
        if self.program is None or chip is None or not self.program.cycles:
            return None
        return self.program.cycles / chip.clock + self.program.kernel_flops / (chip.flops * KERNEL_EFFICIENCY)

    @property
    def interconnect_seconds(self) -> float | None:
        """The least that the traffic takes, if every link of a chip is busy all the time."""
        return self.program.wire_bytes / self.spec.chip.ici if self.program and self.spec.chip else None

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
        values = dataclasses.asdict(self)
        program = values.pop("program")
        if self.program is not None:
            program |= {"buffers": program["buffers"][:16], "flops": self.program.flops}
        derived = (
            *("chips", "hbm", "peak", "reserved", "capacity", "fits", "flops", "waste", "waste_beside_remat"),
            *("seconds", "interconnect_seconds", "mfu", "pairs_per_second"),
        )
        del values["spec"], values["needed"], values["recomputed"]
        return values | {
            "topology": self.spec.name,
            "rows": [{"view": view, "rows": rows, "tokens": tokens} for view, rows, tokens in self.rows],
            **{name: getattr(self, name) for name in derived},
            "useful_flops": values.pop("useful") | {"total": self.useful.total},
            "recomputed_flops": self.recomputed.total,
            "kernel_efficiency": KERNEL_EFFICIENCY,
            "program": program,
            "compile_seconds": round(self.compile_seconds, 1),
            "blind_spots": BLIND_SPOTS,
        }


def plan_text(plans: Sequence[StagePlan]) -> str:
    """The plans as text, one block each."""
    return "\n\n".join([*(_block(plan) for plan in plans), BLIND_SPOTS])


def _block(plan: StagePlan) -> str:
    mesh = " x ".join(f"{name} {size}" for name, size in plan.mesh.items() if size > 1) or "one device"
    rows = "; ".join(f"{view} {count} rows of {tokens} tokens" for view, count, tokens in plan.rows)
    lines = [
        ("step", f"{plan.pairs} pairs: {rows}; lengths: {plan.lengths}"),
        ("HBM a chip", _memory(plan)),
        ("  resident", f"{'':<26}{'a chip':>12}{'in all':>12}"),
    ]
    for item in plan.resident:
        used = f" ({', '.join(item.used_by)})" if item.used_by and item.name != TRAINED else ""
        lines.append(("", f"{f'{item.name} {item.term}{used}':<26}{_bytes(item.chip):>12}{_bytes(item.total):>12}"))
    if plan.memory is not None:
        lines.append(("", f"{'temporaries':<26}{_bytes(plan.memory.temporaries):>12}"))
        lines.append(("", f"{'program':<26}{_bytes(plan.memory.code):>12}"))
    if plan.program is not None:
        lines += _program(plan, plan.program)
    lines.append(("compiled in", f"{plan.compile_seconds:.0f} s"))
    lines += [("note", plan.note)] if plan.note else []
    lines += [("" if number else "what to change", advice) for number, advice in enumerate(plan.advice)]
    head = f"{plan.spec.name}  stage {plan.stage}  {plan.model}  {plan.chips} chips ({mesh})"
    return "\n".join([head, *(f"  {name:<16}{words}" for name, words in lines)])


def _memory(plan: StagePlan) -> str:
    if plan.hbm is None or plan.peak is None or plan.reserved is None:
        return "more than there is: the compiler refused" if plan.program is None else "the compiler does not say"
    verdict = {True: "fits", False: "DOES NOT FIT", None: "capacity not known"}[plan.fits]
    of = "" if plan.capacity is None else f" of {_bytes(plan.capacity)}"
    more = ""
    if plan.memory and plan.memory.reserved:
        more = f" ({_bytes(plan.peak)} in use at the peak; sum of the parts {_bytes(plan.hbm)})"
    elif plan.hbm != plan.peak:
        more = f" (in use at the peak; sum of the parts {_bytes(plan.hbm)})"
    return f"{_bytes(plan.reserved)}{of}: {verdict}{more}"


def _program(plan: StagePlan, program: Program) -> list[tuple[str, str]]:
    remat = f", {plan.waste_beside_remat:.2f} beside remat" if plan.recomputed.total else ""
    flops, useful = _flops(float(program.flops) * plan.chips), _flops(plan.useful.total)
    lines = [("flops", f"{flops} compiled, {useful} useful: waste {plan.waste:.2f}{remat}")]
    kinds = ", ".join(f"{item.kind} {_traffic(item.bytes)} ({item.count})" for item in program.collectives)
    lines.append(("collectives", f"{_traffic(program.collective_bytes)} a chip{': ' if kinds else ''}{kinds}"))
    if plan.seconds is not None and plan.interconnect_seconds is not None:
        words = (
            f"{plan.seconds * 1e3:.0f} ms a step (interconnect at least {plan.interconnect_seconds * 1e3:.0f} ms); "
            f"{plan.pairs_per_second:.1f} pairs/s, MFU {plan.mfu:.2f}"
        )
        lines.append(("time", words))
    doubts = []
    if program.unknown_loops:
        doubts.append(f"{len(program.unknown_loops)} loops of unknown length, counted once")
    if program.unknown_kernels:
        doubts.append(f"kernels of unknown work, counted as none: {', '.join(program.unknown_kernels)}")
    if program.kernel_flops:
        doubts.append(f"attention kernels taken to reach {KERNEL_EFFICIENCY:.0%} of the peak")
    return lines + ([("", "; ".join(doubts))] if doubts else [])


def _bytes(size: float) -> str:
    return f"{size / GIB:.2f} GiB" if size >= 0.005 * GIB else f"{size / 2**20:.2f} MiB"


def _traffic(size: float) -> str:
    return f"{size / 1e9:.2f} GB" if size >= 5e6 else f"{size / 1e6:.2f} MB"


def _flops(count: float) -> str:
    return f"{count / 1e12:.1f} TF" if count >= 1e11 else f"{count / 1e9:.2f} GF"
