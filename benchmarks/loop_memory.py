"""What `memory_analysis()` says of loops that fill stacks, beside what the compiler for TPUs really lays out.

    python benchmarks/loop_memory.py [--topology v5e:2x2] [--stacks 512,512+512,...] [--json FILE]

Each row is a program of one chip: a `lax.scan` for every stack, one after the other, and all stacks read at the end.
"reserved" is the total of the compiler's own report, "temporaries" and "peak" are from `memory_analysis()` (the peak
without arguments). Needs the extra `tpu`, and no TPU.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

from reporting import machine, table, write_json

from tisdpo_jax.planning.program import dump_options, reserved
from tisdpo_jax.planning.topology import open_topology, parse_topology, prepare_topology

MIB = 2**20
LAYERS, WIDTH = 16, 2048
STACKS = "512,512+256,256+512,512+512,512+256+256,512+512+512,512+256+512+256"
HEADER = ("stacks MiB", "reserved MiB", "peak MiB", "temporaries MiB", "excess MiB", "all but the largest MiB")


def main() -> None:
    parser = argparse.ArgumentParser(prog="loop_memory.py", description="What memory_analysis() says of loops.")
    parser.add_argument("--topology", default="v5e:2x2", help="of which one chip is compiled for")
    parser.add_argument("--stacks", default=STACKS, help="MiB of the stacks of each program: 512,512+256,...")
    parser.add_argument("--json", type=Path, help="write the numbers to this file")
    options = parser.parse_args()
    try:
        programs = [[int(size) for size in text.split("+")] for text in options.stacks.split(",")]
    except ValueError:
        parser.error(f"--stacks {options.stacks!r}: sizes in MiB, as in 512,512+256")
    spec = parse_topology(options.topology)
    if spec.chip is None:
        parser.error(f"--topology {options.topology}: this is about the compiler for TPUs, as in v5e:2x2")
    prepare_topology([spec])
    device = open_topology(spec).devices[0]
    try:
        found = [measure(sizes, device) for sizes in programs]
    except RuntimeError as error:
        parser.error(f"--stacks: {str(error).splitlines()[0]}")
    print(table(HEADER, [list(row.values()) for row in found]))
    report = {"benchmark": "loop_memory", "command": ["python", "benchmarks/loop_memory.py", *sys.argv[1:]]}
    write_json(options.json, report | {"machine": machine(("jax", "jaxlib", "libtpu")), "programs": found})


def measure(sizes: list[int], device: Any) -> dict[str, Any]:
    """One program, compiled."""
    import jax
    import jax.numpy as jnp

    def fill(x: jax.Array, weights: jax.Array) -> tuple[jax.Array, jax.Array]:
        return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), x), x, weights)

    def program(weights: jax.Array, x: jax.Array) -> jax.Array:
        stacks = []
        for size in sizes:
            rows = size * MIB // (LAYERS * WIDTH * 2)
            y, stack = fill(x[:rows], weights)
            x = jnp.concatenate([y, x[rows:]])
            stacks.append(stack)
        stacks = jax.lax.optimization_barrier(stacks)  # so that all are there at once
        return sum((jnp.sum(stack.astype(jnp.float32)) for stack in stacks), jnp.zeros(()))

    here = jax.sharding.SingleDeviceSharding(device)
    rows = max(sizes) * MIB // (LAYERS * WIDTH * 2)
    weights, x = (
        jax.ShapeDtypeStruct(shape, jnp.bfloat16, sharding=here) for shape in ((LAYERS, WIDTH, WIDTH), (rows, WIDTH))
    )
    with tempfile.TemporaryDirectory() as dump:
        compiled = jax.jit(program).lower(weights, x).compile(dump_options(Path(dump)))
        laid_out = reserved(Path(dump))
    if not laid_out:
        raise ValueError("the compiler wrote no report of memory; this libtpu may name it otherwise")
    stats = compiled.memory_analysis()
    own = laid_out - stats.argument_size_in_bytes
    return {
        "stacks": "+".join(map(str, sizes)),
        "reserved": round(own / MIB),
        "peak": round((stats.peak_memory_in_bytes - stats.argument_size_in_bytes) / MIB),
        "temporaries": round(stats.temp_size_in_bytes / MIB),
        "excess": round((stats.temp_size_in_bytes - own) / MIB),
        "all but the largest": sum(sizes) - max(sizes),
    }


if __name__ == "__main__":
    try:
        main()
    except ValueError as error:
        sys.exit(f"error: {error}")
