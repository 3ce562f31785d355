"""Token weights on real preference pairs: DPO beside TIS-DPO (P), (S), (D) and controls, seeds, paired tests.

    python benchmarks/real_text.py configs/hh_stories260k.yaml --model.path stories260k --data.train pairs.jsonl.gz

Every seed has a split of its own, by prompt, and an order of its own. Learning rates are chosen on the first seed, by
the held-out accuracy of the implicit reward, and reported on the others. Each training is a run of `tisdpo`, kept
below `--out` and not done again; contrastive models are shared by the methods of a seed.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np

from experiments.testbed.statistics import paired
from experiments.testbed.tables import Table, markdown, text
from tisdpo_jax.cli import options
from tisdpo_jax.config import Experiment
from tisdpo_jax.metrics import mean_and_error
from tisdpo_jax.verbs import perform

TISDPO = {"recipe": "tisdpo"}
METHODS: dict[str, dict[str, str]] = {
    "DPO": {"recipe": "dpo"},
    "TIS-DPO (P)": TISDPO | {"contrast.construction": "prompts"},
    "TIS-DPO (S)": TISDPO | {"contrast.construction": "sft"},
    "TIS-DPO (D)": TISDPO | {"contrast.construction": "dpo"},
    "uniform weights": TISDPO | {"contrast.construction": "dpo", "weights.method": "uniform"},
    "(D) shuffled": TISDPO | {"contrast.construction": "dpo", "weights.method": "shuffled"},
}
MEASURES = {
    "accuracy": lambda row: (row["margin"] > 0) + 0.5 * (row["margin"] == 0),
    "margin": lambda row: row["margin"],
    "KL a token": lambda row: (row["chosen_kl"] + row["rejected_kl"]) / (row["chosen_tokens"] + row["rejected_tokens"]),
    "log-prob of chosen": lambda row: row["chosen_policy"] - row["chosen_reference"],
    "log-prob of rejected": lambda row: row["rejected_policy"] - row["rejected_reference"],
}


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path)
    parser.add_argument("--out", type=Path, default=Path("runs/real_text"))
    parser.add_argument("--seeds", type=int, default=5, help="reported, beside the one for learning rates")
    parser.add_argument("--rates", default="3e-5,1e-4,3e-4,1e-3")
    parser.add_argument("--methods", default=",".join(METHODS))
    asked, rest = parser.parse_known_args(arguments)
    _, overrides, _ = options.read_arguments(rest)
    rates, names = asked.rates.split(","), asked.methods.split(",")
    found: dict[str, dict[str, np.ndarray]] = {}
    chosen: dict[str, str] = {}
    for name in names:
        tried = {rate: measured(asked, overrides, name, rate, 0) for rate in rates}
        chosen[name] = max(rates, key=lambda rate: tried[rate]["accuracy"])
        rows = [measured(asked, overrides, name, chosen[name], seed) for seed in range(1, 1 + asked.seeds)]
        found[name] = {measure: np.asarray([row[measure] for row in rows]) for measure in rows[0]}
        table = tabulate(found, chosen)
        print(text(table), flush=True)
    (asked.out / "real_text.md").write_text(markdown(table) + "\n", encoding="utf-8")
    numbers = {name: {measure: values.tolist() for measure, values in rows.items()} for name, rows in found.items()}
    (asked.out / "real_text.json").write_text(json.dumps({"rates": chosen, "seeds": numbers}, indent=1) + "\n")


def measured(asked: argparse.Namespace, overrides: dict[str, str], name: str, rate: str, seed: int) -> dict[str, float]:
    """Means over the held-out pairs of one training."""
    directory = asked.out / f"{name.replace(' ', '_')}-{rate}-{seed}"
    result = directory / "evaluation_pairs.jsonl"
    if not result.is_file():
        fields = overrides | METHODS[name] | {"data.seed": str(seed), "seed": str(seed), "run_dir": str(directory)}
        fields |= {"train.optimizer.learning_rate": rate, "logging.progress": "false"}
        config = options.load_valid(asked.config, fields)  # a method leaves alone what is for the others
        bring_contrast(asked.out, config, directory)
        print(f"{name}, rate {rate}, seed {seed}", file=sys.stderr, flush=True)
        perform("run", config)
    rows = [json.loads(line) for line in result.read_text(encoding="utf-8").splitlines()]
    return {measure: float(np.mean([of(row) for row in rows])) for measure, of in MEASURES.items()} | {
        "pairs": float(len(rows))
    }


def bring_contrast(out: Path, config: Experiment, directory: Path) -> None:
    """pi+, pi- and their scores of the same construction and seed, from a run that has them."""
    kind = config.contrast.construction
    for other in sorted(out.glob("*/config.yaml")):
        given = options.load(other, {})
        alike = given.contrast == config.contrast and given.data.seed == config.data.seed
        if kind != "none" and alike and other.parent != directory and (other.parent / "evaluation.json").is_file():
            for part in ("models/plus", "models/minus", "scores"):
                if (other.parent / part).exists():
                    shutil.copytree(other.parent / part, directory / part, dirs_exist_ok=True)
            return


def tabulate(found: dict[str, dict[str, np.ndarray]], chosen: dict[str, str]) -> Table:
    first = next(iter(found))
    rows: list[tuple[str, ...]] = []
    for name, measures in found.items():
        cells: list[Any] = [name, chosen[name]]
        for measure in MEASURES:
            mean, error = mean_and_error(measures[measure])
            cells.append(f"{mean:.4f} ± {error:.4f}")
        against = paired(measures["accuracy"], found[first]["accuracy"])
        cells.append("" if name == first else f"{against.mean:+.4f} ± {against.error:.4f} ({against.p:.1g})")
        rows.append(tuple(cells))
    seeds = len(found[first]["accuracy"])
    note = (
        f"{seeds} seeds, {found[first]['pairs'].mean():.0f} held-out pairs each; mean ± standard error over seeds. "
        "Log-probs are of whole responses, less those before training. The last column is paired by seed, with p of a "
        "two-sided t-test."
    )
    return Table("Real text", note, ("method", "rate", *MEASURES, f"accuracy less {first} (p)"), tuple(rows))


if __name__ == "__main__":
    main(sys.argv[1:])
