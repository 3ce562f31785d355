"""What the host does for each step, and whether the devices wait for it.

    python benchmarks/host.py [--pairs 512] [--repeats 20] [--step-ms 200]

First the time to lay out a batch of pairs of the lengths of Anthropic HH, a view at a time: the whole batch, as one
process does, and an eighth of it, as each of eight does. Then the time from step to step with batches made in line, and
made ahead as the training loop makes them, beside a device that computes for `--step-ms` and leaves the host alone.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import statistics
import time
from collections.abc import Callable, Iterable
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import numpy as np
from reporting import table

from tisdpo_jax.data import Batches, Order, Share, fit
from tisdpo_jax.data.rows import lay_out
from tisdpo_jax.planning import useful
from tisdpo_jax.training.passes import AHEAD, ahead


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--step-ms", type=float, default=200.0)
    asked = parser.parse_args()
    triples = useful.cut(useful.hh_lengths(), max_length=512, max_response=256)
    encoded = useful.blank_pairs(useful.repeat(triples, 4 * asked.pairs), "hh", contrast=("be kind " * 10,) * 2)
    order = Order(encoded.lengths(), asked.pairs, 0, 1.0)
    rows = []
    for name, options in (("packed", {}), ("packed, copies", {"copies": True}), ("padded", {"packed": False})):
        layout = fit(encoded, order.batches(), elements=encoded.elements(), shards=8, **options)
        for share in (Share(), Share((3,), 8)):
            call = lambda step, layout=layout, share=share: lay_out(encoded, order.batch(step), "main", layout, share)  # noqa: E731
            rows.append([name, f"{len(share.held)}/{share.pieces}", *timed(call, order.steps, asked.repeats)])
    print(f"one view of {asked.pairs} pairs, ms\n")
    print(table(["rows", "share", "median", "least", "most"], rows))

    batches = Batches(
        encoded, fit(encoded, order.batches(), elements=encoded.elements(), views=("main", "plus", "minus"))
    )
    make = lambda step: batches.batch(order.batch(step % order.steps))  # noqa: E731
    steps = range(asked.repeats)
    alone = timed(make, order.steps, asked.repeats)[0]
    in_line = between(map(make, steps), asked.step_ms)
    with contextlib.closing(ahead(make, steps)) as ready:
        hidden = between(ready, asked.step_ms)
    print(f"\nfrom step to step, three views, a device that takes {asked.step_ms:g} ms; {AHEAD} batches ahead; ms\n")
    print(table(["host alone", "in line", "ahead"], [[alone, in_line, hidden]]))


def timed(call: Callable[[int], Any], steps: int, repeats: int) -> tuple[float, float, float]:
    call(0)
    times = []
    for repeat in range(repeats):
        began = time.perf_counter()
        call(repeat % steps)
        times.append(1e3 * (time.perf_counter() - began))
    return statistics.median(times), min(times), max(times)


def between(batches: Iterable[Any], step_ms: float) -> float:
    """Median time from step to step, where a step leaves the processor alone."""
    ends = []
    for _ in batches:
        time.sleep(step_ms / 1e3)
        ends.append(time.perf_counter())
    return 1e3 * float(np.median(np.diff(ends)))


if __name__ == "__main__":
    main()
