"""Pairs a second, MFU, peak memory and the largest batch on one GPU, for DPO and TIS-DPO steps, and TRL's DPO.

    python benchmarks/gpu.py [--models smollm2_135m,llama32_1b,llama31_8b] [--cases NAME,...] [--pairs 16] [--steps 5]
                             [--largest 512] [--attention xla] [--json FILE]

Weights are random, tokens are blank: speed does not depend on the values. Lengths are those of HH. Each case runs in a
process of its own, so that one that runs out of memory takes no other with it. MFU counts the flops that the loss
needs on real tokens, each prompt once, and nothing for recomputation, over the peak of dense bfloat16. The largest
batch is found by doubling until memory runs out, then by bisection; `--largest 0` leaves that out. TRL (extra
`parity`, a PyTorch for the GPU) takes the same mix of lengths, padded as it pads; `--no-trl` leaves it out.

Without a GPU it runs on what there is, for trying it out: `--models tiny --pairs 2 --largest 4`.
"""

from __future__ import annotations

import argparse
import functools
import json
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from cases import CASES, COMMON, chosen
from reporting import GIB, in_own_process, machine, table, write_json
from stepping import Steps

from tisdpo_jax.cli.options import load
from tisdpo_jax.config import validate
from tisdpo_jax.interchange.huggingface import huggingface_config
from tisdpo_jax.models import SIZES, Model, TransformerConfig, abstract_params, init_params
from tisdpo_jax.partitioning import param_shardings
from tisdpo_jax.planning import useful
from tisdpo_jax.planning.topology import Spec, Topology
from tisdpo_jax.stages import Splits, compute_config
from tisdpo_jax.verbs.abstract import abstract_session

MODELS = SIZES | {"tiny": TransformerConfig(512, 64, 128, 2, 4, 2, 16, 1024)}
# Masters and moments of the 8B model in float32 beside gradients and a reference would need more than one GPU has.
PARAM_DTYPE = {"llama31_8b": "bfloat16"}
PEAK_TFLOPS = {"H200": 989.5, "H100": 989.5, "A100": 312.0}  # dense bfloat16, SXM; NVIDIA's data sheets
OUT_OF_MEMORY = ("RESOURCE_EXHAUSTED", "out of memory", "OUT_OF_MEMORY")
PACKAGES = ("tisdpo_jax", "jax", "jaxlib", "flax", "optax", "jax-cuda12-plugin", "jax-cuda13-plugin", "trl", "torch")
TRL = "TRL dpo live"
SIZE = {"max_length": 512, "max_response": 256}  # tokens


def read_arguments(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="gpu.py", description="DPO and TIS-DPO steps on one GPU.")
    models = "smollm2_135m,llama32_1b,llama31_8b"
    parser.add_argument("--models", default=models, help=f"shapes of models.SIZES, or tiny ({models})")
    parser.add_argument("--cases", default="", help="only cases that begin like this, comma-separated")
    parser.add_argument("--pairs", type=int, default=16, help="pairs of the step that is timed (16)")
    parser.add_argument("--steps", type=int, default=5, help="steps that are timed (5)")
    parser.add_argument("--largest", type=int, default=512, help="where the search for the largest batch ends; 0: none")
    parser.add_argument("--no-trl", action="store_true", help="our cases alone")
    parser.add_argument("--attention", choices=["xla", "cudnn"], default="xla")
    parser.add_argument("--remat", choices=["none", "full", "dots"], default="full")
    parser.add_argument("--timeout", type=int, default=300, help="seconds that a process may take (300)")
    parser.add_argument("--peak-tflops", type=float, help="of the device, dense bfloat16; known for H100, H200, A100")
    parser.add_argument("--json", type=Path, help="write the numbers to this file")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if min(options.pairs, options.steps) < 1:
        parser.error("--pairs and --steps must be at least 1")
    unknown = sorted(set(options.models.split(",")) - MODELS.keys())
    if unknown:
        parser.error(f"--models {', '.join(unknown)}: not known; one of {', '.join(MODELS)}")
    return options


def main() -> None:
    options = read_arguments(sys.argv[1:])
    if options.worker:
        work = json.loads(options.worker)
        print(json.dumps((measure_trl if work["case"] == TRL else measure)(**work)), flush=True)
        return
    names = chosen([*CASES, *([] if options.no_trl else [TRL])], options.cases)
    results = []
    for model in options.models.split(","):
        for name in names:
            found = run(options, model, name, options.pairs, options.steps)
            if options.largest:

                def fits(pairs: int, model: str = model, name: str = name) -> bool:
                    return "error" not in run(options, model, name, pairs, 1)

                found["largest_pairs"] = largest(fits, 1 if "error" in found else options.pairs, options.largest)
            results.append(found)
            said = found.get("error") or f"{found['pairs_per_second']:.2f} pairs/s"
            print(f"{model}, {name}: {said}", file=sys.stderr, flush=True)
    header = ["model", "step", "pairs", "rows", "pairs/s", "tokens/s", "ms", "MFU", "peak GiB", "most pairs", "note"]
    print(table(header, [row(found) for found in results]))
    command = ["python", "benchmarks/gpu.py", *sys.argv[1:]]
    write_json(options.json, {"benchmark": "gpu", "command": command, "machine": machine(PACKAGES), "results": results})


def row(found: dict[str, Any]) -> list[Any]:
    rows, seconds, peak = found.get("rows"), found.get("median_seconds"), found.get("peak_bytes")
    return [
        *(found["model"], found["case"], found["pairs"]),
        f"{rows['rows']} x {rows['tokens']}" if rows else None,
        *(found.get("pairs_per_second"), found.get("tokens_per_second")),
        seconds * 1e3 if seconds else None,
        found.get("mfu"),
        peak / GIB if peak else None,
        found.get("largest_pairs"),
        found.get("error"),
    ]


def run(options: argparse.Namespace, model: str, name: str, pairs: int, steps: int) -> dict[str, Any]:
    """One case in a process of its own; `error` instead of numbers where it failed."""
    about = {"model": model, "case": name, "pairs": pairs}
    how = {"steps": steps, "attention": options.attention, "remat": options.remat, "peak_tflops": options.peak_tflops}
    return about | in_own_process(__file__, about | how, options.timeout, OUT_OF_MEMORY)


def largest(fits: Callable[[int], bool], start: int, limit: int) -> int:
    """The largest number of pairs up to `limit` that fits, to within a sixteenth; 0 when not even `start` does."""
    low, high = 0, min(start, limit)
    while fits(high):
        low = high
        if low == limit:
            return low
        high = min(2 * high, limit)
    while low and high - low > max(low // 16, 1):
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def measure(
    *, model: str, case: str, pairs: int, steps: int, attention: str, remat: str, peak_tflops: float | None
) -> dict[str, Any]:
    """Times steps of one case in this process."""
    device = jax.local_devices()[0]
    dtype = "bfloat16" if device.platform != "cpu" else "float32"
    fields = COMMON | {
        "model.path": model,
        "model.dtype": dtype,
        "model.param_dtype": PARAM_DTYPE.get(model, "float32"),
        "model.frozen_dtype": dtype,
        "model.attention": attention,
        "model.remat": remat,
        "data.train": "demo:train",  # not read
        "train.batch_size": str(pairs),
        "evaluation.batch_size": "1",
    }
    work = open_steps(fields, MODELS[model], case, device, pairs * (steps + 1))
    first = work.take(case, 0)
    seconds = [work.take(case, number) for number in range(1, steps + 1)]
    numbers = range(1, steps + 1)
    counted = np.concatenate([work.lengths(number) for number in numbers])
    found = speed(device.device_kind, seconds, counted, work.useful_flops(case, numbers), peak_tflops)
    memory = (device.memory_stats() or {}).get("peak_bytes_in_use")
    return found | {"rows": work.shape(), "first_step_seconds": first, "peak_bytes": memory}  # the first step compiles


def measure_trl(
    *, model: str, pairs: int, steps: int, remat: str, peak_tflops: float | None, **_: Any
) -> dict[str, Any]:
    """The same of TRL's trainer, random weights of the same shape."""
    jax.config.update("jax_platforms", "cpu")  # what JAX would take of the GPU, PyTorch would not have
    import torch
    from trl_side import TrlSide, random_weights

    gpu = torch.cuda.is_available()
    config, dtype = MODELS[model], PARAM_DTYPE.get(model, "float32")
    side = TrlSide(
        *random_weights(huggingface_config(config, dtype=dtype), getattr(torch, dtype)),
        max_length=SIZE["max_length"],
        learning_rate=1e-9,
        checkpointing=remat != "none",
        gpu=gpu,
    )
    triples = hh_triples(pairs * (steps + 1)).reshape(steps + 1, pairs, 3)
    taken = [side.step(side.examples([tuple([1] * int(n) for n in pair) for pair in batch])) for batch in triples]
    counted = np.concatenate(triples[1:])
    flops = useful.training(config, counted, [useful.forward(config, counted)], adapters=0).total
    kind = torch.cuda.get_device_name() if gpu else "cpu"
    found = speed(kind, taken[1:], counted, flops, peak_tflops)
    memory = torch.cuda.max_memory_allocated() if gpu else None
    return found | {"first_step_seconds": taken[0], "peak_bytes": memory}


def speed(
    kind: str, seconds: list[float], counted: np.ndarray, flops: float, peak_tflops: float | None
) -> dict[str, Any]:
    """What steps of `seconds` over pairs of the lengths `counted` come to."""
    total = sum(seconds)
    peak = peak_tflops or next((value for name, value in PEAK_TFLOPS.items() if name in kind), None)
    return {
        "device": kind,
        "seconds": seconds,
        "median_seconds": statistics.median(seconds),
        "pairs_per_second": len(counted) / total,
        "tokens_per_second": int(counted.sum()) / total,
        "useful_tflops_per_second": flops / total / 1e12,
        "mfu": flops / total / (peak * 1e12) if peak else None,
        "peak_tflops": peak,
    }


def open_steps(fields: dict[str, str], model: TransformerConfig, case: str, device: Any, count: int) -> Steps:
    """The step of a case with random weights, on pairs as long as those of HH."""
    config = validate(load(None, fields | CASES[case]))
    encoded = useful.blank_pairs(hh_triples(count), "HH")
    here = Topology(Spec("here", "gpu", (1,)), (device,))
    session = abstract_session(config, model, here)
    session.model = Model(model, compute_config(config))  # for this device, where a plan would take a stand-in
    make = functools.partial(init_params, config=model, dtype=config.model.frozen_dtype)
    places = param_shardings(abstract_params(model), session.mesh)
    return Steps(session, Splits(encoded), [case], lambda: jax.jit(make, out_shardings=places)(jax.random.key(0)))


def hh_triples(count: int) -> np.ndarray:
    """Tokens of prompt, chosen and rejected response of `count` pairs, `[count, 3]`."""
    triples = useful.cut(useful.hh_lengths(), **SIZE)
    triples = np.random.Generator(np.random.Philox(0)).permutation(triples)  # they are sorted
    return useful.repeat(triples, count)[:count]


if __name__ == "__main__":
    try:
        main()
    except ValueError as error:
        sys.exit(f"error: {error}")
