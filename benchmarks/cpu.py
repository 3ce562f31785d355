"""Pairs a second on the CPU, ours and TRL's: the same model, pairs and batches, in turn in one run.

    python benchmarks/cpu.py [--data FILE --template hh] [--pairs 8] [--rounds 5] [--json FILE]
                             [--section.field value]...

Full fine-tuning of SmolLM2-135M in float32 with AdamW, rows of at most 512 tokens. In each round every case takes one
optimizer step on the same pairs, in an order that turns from round to round; the first round, in which steps are
compiled, does not count. A step is timed from tokens on the host to the updated parameters: collation, forward
passes, backward pass, update, metrics. TRL needs PyTorch (extra `parity`); with --no-trl our cases run alone. The
pairs of the demo are taken where no file is named.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from cases import CASES, COMMON, chosen
from reporting import GIB, give_back_memory, machine, peak_memory, processor, table, write_json
from stepping import Steps

from tisdpo_jax import interchange
from tisdpo_jax.artifacts import Run
from tisdpo_jax.cli.options import load
from tisdpo_jax.config import Experiment, validate
from tisdpo_jax.stages import Records, Session, models, open_session
from tisdpo_jax.training.interrupt import Interrupt

TRL, TRL_CACHED, LIVE = "TRL dpo live", "TRL dpo cached", "dpo live"
PACKAGES = ("tisdpo_jax", "jax", "jaxlib", "flax", "optax", "trl", "torch", "transformers", "accelerate")


def read_arguments(arguments: list[str]) -> tuple[argparse.Namespace, Experiment]:
    parser = argparse.ArgumentParser(prog="cpu.py", description="Pairs a second on the CPU, ours and TRL's.")
    parser.add_argument("--data", default="demo:train", help="preference pairs (demo:train)")
    parser.add_argument("--template", default="auto", help="as data.template; hh for Anthropic's HH")
    parser.add_argument("--pairs", type=int, default=8, help="pairs an optimizer step (8)")
    parser.add_argument("--rounds", type=int, default=5, help="rounds that count (5)")
    parser.add_argument("--cases", default="", help="only cases that begin like this, comma-separated")
    parser.add_argument("--threads", type=int, default=0, help="threads of PyTorch (all cores)")
    parser.add_argument("--no-trl", action="store_true", help="our cases alone")
    parser.add_argument(
        "--checkpointing", action="store_true", help="TRL's gradient checkpointing, off here: it is slower"
    )
    parser.add_argument("--json", type=Path, help="write the numbers to this file")
    options, rest = parser.parse_known_args(arguments)
    if min(options.pairs, options.rounds) < 1:
        parser.error("--pairs and --rounds must be at least 1")
    overrides = COMMON | {
        "model.path": "demo",
        "model.dtype": "float32",
        "model.frozen_dtype": "float32",
        "data.train": options.data,
        "data.template": options.template,
        "data.on_error": "skip",
        "train.batch_size": str(options.pairs),
        "train.optimizer.name": "adamw",
        "train.optimizer.learning_rate": "1e-9",  # all cases stay where they begin, and find the same values
        "train.optimizer.warmup_steps": "0",
        "train.optimizer.clip_norm": "1.0",
    }
    return options, validate(load(None, overrides | dotted(rest, parser)))


def dotted(rest: list[str], parser: argparse.ArgumentParser) -> dict[str, str]:
    """`--section.field value` pairs, for the configuration."""
    if len(rest) % 2 or any(not name.startswith("--") or "." not in name for name in rest[::2]):
        parser.error(f"cannot read {' '.join(rest)!r}; fields of the configuration are --section.field value")
    return {name[2:]: value for name, value in zip(rest[::2], rest[1::2], strict=True)}


def open_trl(session: Session, options: argparse.Namespace) -> Any:
    """TRL's trainer on the same weights."""
    import torch
    from trl_side import TrlSide, pretrained

    torch.set_num_threads(options.threads or machine(())["cores"])
    directory = Path(tempfile.mkdtemp()) / "model"
    params = models.load_pretrained(session)
    interchange.save_huggingface(directory, params, session.model.config, tokenizer=session.tokenizer)
    return TrlSide(
        *pretrained(directory),
        max_length=session.config.data.max_length,
        learning_rate=session.config.train.optimizer.learning_rate,
        checkpointing=options.checkpointing,
    )


def main() -> None:
    options, config = read_arguments(sys.argv[1:])
    names = chosen([*([] if options.no_trl else [TRL, TRL_CACHED]), *CASES], options.cases)
    session = open_session(config, Path(tempfile.mkdtemp()), Interrupt())
    pairs = Run(session)(Records())
    ours = Steps(
        session, pairs, [name for name in CASES if name in names] or [LIVE], lambda: models.load_pretrained(session)
    )
    trl = open_trl(session, options) if {TRL, TRL_CACHED} & set(names) else None
    taken: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    for number in range(options.rounds + 1):
        turn = number % len(names)
        for name in names[turn:] + names[:turn]:
            found = one_step(name, number, ours, trl)
            give_back_memory()
            taken[name].append(found)
            line = f"round {number}  {name:<18} {found['seconds']:8.2f} s  logps {found['chosen_logps']:.3f}"
            print(f"{line}  peak {(peak_memory() or 0) / GIB:.1f} GiB", flush=True)
    report(options, ours, names, {name: found[1:] for name, found in taken.items()})


def one_step(name: str, number: int, ours: Steps, trl: Any) -> dict[str, float]:
    """Seconds, and the log-likelihood of the chosen responses, which both sides must find the same."""
    if name in CASES:
        seconds = ours.take(name, number)
        return {"seconds": seconds, "chosen_logps": ours.metrics["logps/chosen"]}
    indices = [i for i in ours.batch(number) if i >= 0]
    found = [ours.encoded.groups[i] for i in indices]
    pairs = [(pair.prompt.tolist(), pair.chosen.tolist(), pair.rejected.tolist()) for pair in found]
    examples = trl.examples(pairs) if name == TRL else trl.score(pairs)
    return {"seconds": trl.step(examples), "chosen_logps": trl.metric("logps/chosen")}


def report(
    options: argparse.Namespace, ours: Steps, names: list[str], taken: dict[str, list[dict[str, float]]]
) -> None:
    rows, cases = [], {}
    lengths = [ours.lengths(number) for number in range(1, options.rounds + 1)]
    total = sum(map(len, lengths))
    unique = int(sum(batch.sum() for batch in lengths))
    tokens = {"rows": unique + int(sum(batch[:, 0].sum() for batch in lengths)), "unique": unique}
    for name in names:
        seconds = [found["seconds"] for found in taken[name]]
        against = {}
        for base in (TRL, LIVE):
            if base in names and base != name:
                ratios = [b["seconds"] / s for b, s in zip(taken[base], seconds, strict=True)]
                against[base] = statistics.median(ratios)
        cases[name] = {
            "pairs_per_second": total / sum(seconds),
            "tokens_per_second": tokens["rows"] / sum(seconds),
            "median_seconds": statistics.median(seconds),
            "min_seconds": min(seconds),
            "seconds": seconds,
            "chosen_logps": [found["chosen_logps"] for found in taken[name]],
            "times_as_fast_as": against,
            "compiled_shapes": ours.compiled(name) if name in CASES else None,
        }
        found = cases[name]
        times = [against.get(base) for base in (TRL, LIVE)]
        rows.append([name, *(found[key] for key in list(found)[:4]), *times])
    shape, twice, once = ours.shape(), tokens["rows"] / total, tokens["unique"] / total
    print(f"\n{processor()}, {machine(())['cores']} cores; {options.data}")
    print(f"{options.rounds} rounds of {options.pairs} pairs, ours in {shape['rows']} rows of {shape['tokens']} tokens")
    print(f"tokens a pair: {twice:.0f}, with the prompt once {once:.0f}")
    print(table(["step", "pairs/s", "tokens/s", "median s", "min s", "x TRL", "x our live dpo"], rows))
    write_json(
        options.json,
        {
            "benchmark": "cpu",
            "command": ["python", "benchmarks/cpu.py", *sys.argv[1:]],
            "machine": machine(PACKAGES),
            "data": options.data,
            "pairs": options.pairs,
            "rounds": options.rounds,
            "tokens": tokens,
            "rows": ours.shape(),
            "peak_resident_bytes": peak_memory(),
            "cases": cases,
        },
    )


if __name__ == "__main__":
    try:
        main()
    except ValueError as error:
        sys.exit(f"error: {error}")
