"""Steps of 7B and 8B models compiled ahead of time for TPU slices: what they need, without the hardware.

    python benchmarks/aot.py [--models llama2_7b,llama31_8b] [--topologies v5e:8x8,v5p:4x4x4,v6e:8x8] [--cases WORD,...]
                             [--pairs-per-chip 8] [--memory] [--frontier] [--tunix DIR] [--json FILE]
                             [--section.field value]...

Each row is the training step of `tisdpo run`, compiled by the TPU's own compiler (extra `tpu`): the policy in bfloat16
with float32 masters and AdamW moments, whole layers recomputed, pure FSDP, real lengths of HH. "reserved" is what the
compiler lays out in a chip's memory, "peak" what is in use at once, "sum" that of arguments, temporaries and outputs,
which counts some buffers twice. "est" is the sum of the compiler's estimates and sees no interconnect, whose lower
bound stands beside it: a lead below 10 % is none. "waste" is compiled over useful flops; "beside remat" counts the
layers that `model.remat` recomputes as useful. Every compilation runs in a process of its own; "CPU s" is all that the
process took, which a busy machine does not stretch as it does the clock.

`--memory` compiles long rows and many models beside each other, every pair as long as may be.
`--frontier` looks for the longest rows at one pair a chip, and for the most pairs a chip at rows of 1024 tokens.
`--tunix DIR` adds plain DPO at equal padded work beside what `tunix_step.py` wrote to DIR.
"""

from __future__ import annotations

import argparse
import gzip
import json
import math
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cases import CASES, COMMON, chosen
from reporting import GIB, in_own_process, machine, table, write_json

from tisdpo_jax.cli.options import load
from tisdpo_jax.config import validate
from tisdpo_jax.planning.program import Program, read_text
from tisdpo_jax.planning.topology import CHIPS, parse_topology, prepare_topology

PACKAGES = ("tisdpo_jax", "jax", "jaxlib", "libtpu", "flax", "optax")
BASE = COMMON | {
    "model.dtype": "bfloat16",
    "model.param_dtype": "float32",
    "model.frozen_dtype": "bfloat16",
    "model.remat": "full",
    "model.attention": "splash",
    "data.train": "demo:train",  # not read: lengths are those of HH
    "data.max_length": "512",
    "data.max_response": "256",
    "train.optimizer.name": "adamw",
}
# What Tunix computes: bfloat16 throughout, rows padded to one length, no clipping, attention by the compiler.
EQUAL_WORK = CASES["dpo live"] | {
    "model.param_dtype": "bfloat16",
    "model.attention": "xla",
    "data.packing": "none",
    "train.optimizer.clip_norm": "none",
}


def four(length: int) -> dict[str, str]:
    """Four models in a step, padded rows of this length."""
    fields = {"recipe": "tisdpo", "contrast.construction": "dpo", "scores": "online", "data.packing": "none"}
    return fields | {"data.max_length": str(length), "data.max_response": str(length // 2)}


# label -> model, topology, pairs, fields
MEMORY = {
    "four models, S 1024": ("llama31_8b", "v5e:8x8", 64, four(1024)),
    "the same, packed": ("llama31_8b", "v5e:8x8", 64, four(1024) | {"data.packing": "shared"}),
    "four models, S 2048": ("llama31_8b", "v5e:8x8", 256, four(2048)),
    "the same, 6 pairs a chip": ("llama31_8b", "v5e:8x8", 384, four(2048)),
    "four models, S 4096": ("llama31_8b", "v5e:8x8", 64, four(4096)),
    "one base, three adapters, S 512": ("llama2_7b", "v5e:4x4", 16, four(512) | {"lora.rank": "16"}),
}
HEADER = [
    *("model", "topology", "step", "pairs", "rows", "reserved GiB", "peak GiB", "sum GiB", "waste", "beside remat"),
    *("est ms", "est ms a pair", "ICI ms", "MFU", "compile s", "CPU s", "note"),
]


def read_arguments(arguments: list[str]) -> tuple[argparse.Namespace, dict[str, str]]:
    parser = argparse.ArgumentParser(prog="aot.py", description="Steps compiled ahead of time for TPU slices.")
    parser.add_argument("--models", default="llama2_7b,llama31_8b", help="shapes of models.SIZES, comma-separated")
    parser.add_argument("--topologies", default="v5e:8x8,v5p:4x4x4,v6e:8x8", help="comma-separated")
    parser.add_argument("--cases", default="dpo live,tisdpo states", help="only cases that begin like this")
    parser.add_argument("--pairs-per-chip", type=int, default=8, help="pairs of a step, for each chip (8)")
    parser.add_argument("--memory", action="store_true", help="steps with long rows and four models")
    parser.add_argument("--frontier", action="store_true", help="longest rows and most pairs too; many compilations")
    parser.add_argument("--no-table", action="store_true", help="without the first table")
    parser.add_argument("--tunix", type=Path, help="directory that tunix_step.py wrote to")
    parser.add_argument("--timeout", type=int, default=1800, help="seconds that a compilation may take (1800)")
    parser.add_argument("--json", type=Path, help="write the numbers to this file")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    options, rest = parser.parse_known_args(arguments)
    if len(rest) % 2 or any(not name.startswith("--") or "." not in name for name in rest[::2]):
        parser.error(f"cannot read {' '.join(rest)!r}; fields of the configuration are --section.field value")
    return options, {name[2:]: value for name, value in zip(rest[::2], rest[1::2], strict=True)}


def main() -> None:
    options, overrides = read_arguments(sys.argv[1:])
    if options.worker:
        print(json.dumps(compile_here(**json.loads(options.worker))), flush=True)
        return
    models, topologies = options.models.split(","), options.topologies.split(",")
    names = chosen(list(CASES), options.cases)
    found: list[dict[str, Any]] = []
    equal, frontier = [], []

    def run(model: str, topology: str, name: str, pairs: int, lengths: str, more: dict[str, str]) -> dict[str, Any]:
        size = {"model.path": model, "train.batch_size": str(pairs), "evaluation.batch_size": str(pairs)}
        fields = BASE | CASES.get(name, {}) | more | size | overrides
        return compile_apart(options, {"topology": topology, "lengths": lengths, "fields": fields}) | {"step": name}

    if not options.no_table:
        for model in models:
            for topology in topologies:
                for name in names:
                    pairs = options.pairs_per_chip * parse_topology(topology).count
                    found.append(run(model, topology, name, pairs, "hh", {}))
                    show(found[-1])
        print(table(HEADER, [row(item) for item in found]) + "\n")
        print(table(["model", "topology", "step", *TRAFFIC], [traffic_row(item) for item in found]) + "\n")
    if options.memory:
        memory = []
        for name, (model, at, pairs, more) in MEMORY.items():
            memory.append(run(model, at, name, pairs, "full", more))
            show(memory[-1])
        print(table(HEADER, [row(item) for item in memory]) + "\n")
        found += memory
    if options.frontier:
        for model in models:
            for topology in topologies:
                frontier += [edge(run, model, topology, name) for name in names]
        print(table(list(frontier[0]), [list(item.values()) for item in frontier]) + "\n")
    if options.tunix:
        equal = equal_work(options.tunix, run)
        print(table(list(equal[0]), [list(item.values()) for item in equal]) + "\n")
    report = {
        "benchmark": "aot",
        "command": ["python", "benchmarks/aot.py", *sys.argv[1:]],
        "machine": machine(PACKAGES),
        "steps": found,
        "frontier": frontier,
        "equal_work": equal,
    }
    write_json(options.json, report)


def compile_here(*, topology: str, lengths: str, fields: dict[str, str]) -> dict[str, Any]:
    """The plan of one step, in this process."""
    spec = parse_topology(topology)
    prepare_topology([spec])
    from tisdpo_jax.verbs.plan import plan

    found = plan(validate(load(None, fields)), [spec], lengths=lengths)[0].as_json()  # type: ignore[arg-type]  # a word of the command line
    return found | {"cpu_seconds": time.process_time()}  # of the whole process: the clock lies on a busy machine


def compile_apart(options: argparse.Namespace, work: dict[str, Any]) -> dict[str, Any]:
    """The same in a process of its own; `error` where it failed."""
    about = {"topology": work["topology"], "model": work["fields"]["model.path"]}
    about |= {"pairs": int(work["fields"]["train.batch_size"]), "fields": work["fields"]}
    return about | in_own_process(__file__, work, options.timeout)


def row(found: dict[str, Any]) -> list[Any]:
    start = [found["model"], found["topology"], found["step"], found["pairs"]]
    if "error" in found:
        return [*start, *[None] * (len(HEADER) - 5), found["error"]]
    seconds = found["seconds"]
    return [
        *start,
        "; ".join(f"{rows['rows']} x {rows['tokens']}" for rows in found["rows"]),
        found["reserved"] / GIB if found["reserved"] else None,
        found["peak"] / GIB if found["peak"] else None,
        found["hbm"] / GIB if found["hbm"] else None,
        found["waste"],
        found["waste_beside_remat"],
        milliseconds(seconds),
        milliseconds(seconds / found["pairs"]) if seconds else None,
        milliseconds(found["interconnect_seconds"]),
        found["mfu"],
        found["compile_seconds"],
        found["cpu_seconds"],
        "" if found["fits"] is not False else "does not fit",
    ]


TRAFFIC = ("all-gather", "reduce-scatter", "all-reduce", "all-to-all", "collective-permute")


def traffic_row(found: dict[str, Any]) -> list[Any]:
    """GB a step and chip, by kind of collective."""
    return [found["model"], found["topology"], found["step"], *traffic((found.get("program") or {}).get("collectives"))]


def traffic(collectives: Any) -> list[float]:
    return [sum(item["bytes"] / 1e9 for item in collectives or () if item["kind"] == kind) for kind in TRAFFIC]


def show(found: dict[str, Any]) -> None:
    print(f"{found['model']} {found['topology']} {found['step']}: {row(found)[4:]}", file=sys.stderr, flush=True)


def milliseconds(seconds: float | None) -> float | None:
    return None if seconds is None else seconds * 1e3


def edge(run: Callable[..., dict[str, Any]], model: str, topology: str, name: str) -> dict[str, Any]:
    """The longest rows at one pair a chip, and the most pairs a chip at rows of 1024; every pair as long as may be.

    What could not be found out, because a size was not compiled, is empty, and the note says why.
    """
    spec = parse_topology(topology)
    if spec.chip is None:
        raise ValueError(f"--frontier: the memory of {topology} is not known; it wants TPUs, as in v5e:8x8")
    chips, capacity = spec.count, spec.chip.hbm / GIB

    def long(thousands: int) -> dict[str, Any]:
        size = {"data.max_length": str(1024 * thousands), "data.max_response": str(512 * thousands)}
        return run(model, topology, name, chips, "full", size)

    def many(pairs: int) -> dict[str, Any]:
        size = {"data.max_length": "1024", "data.max_response": "512"}
        return run(model, topology, name, chips * pairs, "full", size)

    notes: list[str] = []
    longest, at_longest, too_long = search(long, 64, capacity, notes)
    most, at_most, too_many = search(many, 128, capacity, notes)
    return {
        "model": model,
        "topology": topology,
        "step": name,
        "longest rows": longest and 1024 * longest,
        "GiB of those": at_longest,
        "next does not fit": too_long and 1024 * too_long,
        "most pairs a chip": most,
        "GiB of them": at_most,
        "next do not fit": too_many,
        "note": "; ".join(notes),
    }


def search(
    compiled: Callable[[int], dict[str, Any]], limit: int, capacity: float, notes: list[str]
) -> tuple[int | None, float | None, int | None]:
    """`furthest` over what is compiled, said as it is found, for each takes a minute; Nones and a note if it fails."""

    def reserved(size: int) -> float | None:
        found = compiled(size)
        show(found)
        if "error" in found:  # says nothing of memory
            raise NotCompiledError(f"size {size}: {found['error']}")
        return found["reserved"] / GIB if found["fits"] and found["reserved"] else None

    try:
        return furthest(reserved, limit, capacity)
    except NotCompiledError as error:
        notes.append(str(error))
        return None, None, None


class NotCompiledError(Exception):
    """A compilation failed or took too long."""


SIZES = sorted({2**n for n in range(12)} | {3 * 2**n for n in range(11)})


def furthest(
    needed: Callable[[int], float | None], limit: int, capacity: float
) -> tuple[int, float | None, int | None]:
    """The largest of 1, 2, 3, 4, 6, 8, ... up to `limit` that fits, what it needs, and the next, which does not fit.

    Memory grows about as the size does, so a line through two sizes says where to look; what is returned was compiled.
    (0, None, 1) where 1 does not fit, (`limit`, what it needs, None) where all fit.
    """
    sizes = [size for size in SIZES if size <= limit]
    low, high = -1, len(sizes)  # the last that fits, the first that does not
    known: dict[int, float] = {}
    while high - low > 1:
        expected = sum(size <= reach(known, capacity) for size in sizes) - 1
        guess = min(max(expected, low + 1), high - 1)
        found = needed(sizes[guess])
        if found is None:
            high = guess
        else:
            low, known[sizes[guess]] = guess, found
    best = sizes[low] if low >= 0 else 0
    return best, known.get(best), sizes[high] if high < len(sizes) else None


def reach(known: dict[int, float], capacity: float) -> float:
    """The size at which the line through the two largest known ones meets the capacity; 0 where there are not two."""
    if len(known) < 2:
        return 0.0
    (small, at_small), (large, at_large) = sorted(known.items())[-2:]
    slope = (at_large - at_small) / (large - small)
    return large + (capacity - at_large) / slope if slope > 0 else math.inf


def equal_work(directory: Path, run: Callable[..., dict[str, Any]]) -> list[dict[str, Any]]:
    """Plain DPO on the same padded rows: Tunix's two programs together, for each JSON file in `directory`, and ours."""
    found: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for file in sorted(directory.glob("tunix-*.json")):
        theirs = json.loads(file.read_text())
        work = tuple(theirs[key] for key in ("model", "topology", "pairs", "length", "response"))
        found.setdefault(work, []).append(equal_row(work, tunix_side(directory, theirs)))
    if not found:
        raise SystemExit(f"error: {directory}: no tunix-*.json; run benchmarks/tunix_step.py --out {directory}")
    for work, rows in found.items():
        model, topology, pairs, length, response = work
        size = {"data.max_length": str(length), "data.max_response": str(response)}
        ours = run(model, topology, "dpo live, padded", pairs, "full", EQUAL_WORK | size)
        if "error" in ours:
            raise SystemExit(f"error: our step did not compile: {ours['error']}")
        rows.append(equal_row(work, ours | ours["program"] | {"whose": "ours"}))
    return [row for rows in found.values() for row in rows]


def tunix_side(directory: Path, theirs: dict[str, Any]) -> dict[str, Any]:
    """Tunix's two programs as the one step that they make."""
    programs: list[Program] = []
    for about in theirs["programs"].values():
        with gzip.open(directory / about["hlo"], "rt") as text:
            programs.append(read_text(text.read()))
    reference, train = (theirs["programs"][part] for part in ("reference", "train"))
    clock = CHIPS[theirs["topology"].partition(":")[0]].clock
    return {
        "whose": "Tunix, parameters donated too" if "model" in theirs["donated"] else "Tunix",
        "seconds": sum(program.cycles for program in programs) / clock,
        # The training program is not given the reference's weights, which lie beside it all the same.
        **{
            name: max(reference["memory"][name], train["memory"][name] + reference["memory"]["argument"])
            for name in ("hbm", "peak")
        },
        "flops": sum(program.flops for program in programs),
        "compile_seconds": reference["compile_seconds"] + train["compile_seconds"],
        "cpu_seconds": theirs["cpu_seconds"],
        "collectives": [vars(item) for program in programs for item in program.collectives],
    }


def equal_row(work: tuple[Any, ...], side: dict[str, Any]) -> dict[str, Any]:
    model, topology, pairs, length, _ = work
    return {
        "model": model,
        "topology": topology,
        "rows": f"{2 * pairs} x {length}",
        "whose": side["whose"],
        "est ms": milliseconds(side["seconds"]),
        "peak GiB": side["peak"] / GIB,
        "sum GiB": side["hbm"] / GIB,
        "TFLOP a chip": side["flops"] / 1e12,
        "compile s": side["compile_seconds"],
        "CPU s": side["cpu_seconds"],
        **{f"{kind} GB": size for kind, size in zip(TRAFFIC, traffic(side["collectives"]), strict=True)},
    }


if __name__ == "__main__":
    try:
        main()
    except ValueError as error:
        sys.exit(f"error: {error}")
