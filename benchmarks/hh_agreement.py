"""How often DLMA's label of a pair is the human's: the sign of R against HH's choice, for each shipped prompt pair.

    python benchmarks/hh_agreement.py pairs.jsonl.gz [--pairs 256] [--out hh_agreement.json]

No answer is sampled: R is the model's contrast of HH's own two answers. SmolLM2-135M-Instruct, float32, on the CPU;
pairs drawn with a seed. Intervals are Wilson's, 95 %. What the length of an answer alone would say is in the table too.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import logging
import os
import random
import tempfile
from pathlib import Path
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path)
    parser.add_argument("--pairs", type=int, default=256)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("hh_agreement.json"))
    asked = parser.parse_args()

    logging.basicConfig(level=logging.INFO, format="%(message)s")
    import jax
    import numpy as np

    from tisdpo_jax.artifacts import Given
    from tisdpo_jax.config import PROMPT_PAIRS, Experiment, build, with_prompts
    from tisdpo_jax.data import apply_policy, read_pairs
    from tisdpo_jax.estimators import CONTRAST
    from tisdpo_jax.roles import contrast_roles
    from tisdpo_jax.scoring import contrast_scores
    from tisdpo_jax.stages import CachedScores, Splits, models, open_session
    from tisdpo_jax.training.interrupt import Interrupt

    values = {
        "model": {"path": "demo", "dtype": "float32", "frozen_dtype": "float32"},
        "data": {"max_length": 256, "max_response": 128, "format": "hh"},
        "contrast": {"construction": "prompts"},
        "evaluation": {"batch_size": 8},
    }
    config = build(Experiment, values, where="hh_agreement")
    found = read_pairs(asked.source, format="hh")
    order = random.Random(asked.seed).sample(range(len(found.pairs)), min(asked.pairs, len(found.pairs)))
    chosen = dataclasses.replace(found, pairs=tuple(found.pairs[index] for index in order), invalid=())
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        session = open_session(config, Path(folder), Interrupt())
        with jax.set_mesh(session.mesh):
            frozen: Any = {"params": {"base": models.load_pretrained(session)}, "lora": {}}
            for name in PROMPT_PAIRS:
                named = build(Experiment, {"contrast": {"pair": name}}, where="hh_agreement", base=config)
                here = dataclasses.replace(session, config=with_prompts(named))
                pairs = Splits(apply_policy(here.encoder.pairs(chosen), "skip", 1.0))
                roles = contrast_roles("prompts", lora=False)
                assert roles is not None
                stages = (
                    CachedScores(read, role, "train", (), Given("pairs", pairs))
                    for read, role in zip(CONTRAST, roles, strict=True)
                )
                plus, minus = (stage.compute(here, pairs, frozen) for stage in stages)
                mask = pairs.train.mask(pairs.elements)
                for how in ("sum", "mean"):
                    scores = contrast_scores(plus, minus, mask, average=how == "mean")
                    rows.append(row(f"{name}, {how}", np.sign(scores[:, 0] - scores[:, 1])))
                    print(rows[-1], flush=True)
                tokens = mask.sum(-1)
    rows.append(row("the longer answer", np.sign(tokens[:, 0] - tokens[:, 1])))
    print(f"\n{'label by':<24}{'pairs':>7}{'agreement':>12}{'95 % interval':>18}")
    for line in rows:
        low, high = line["interval"]
        print(f"{line['label']:<24}{line['pairs']:>7}{line['agreement']:>12.3f}{low:>11.3f} -{high:>6.3f}")
    settings = {"source": asked.source.name, "pairs": asked.pairs, "seed": asked.seed}
    asked.out.write_text(json.dumps({"settings": settings, "rows": rows}, indent=2) + "\n")


def row(name: str, signs: Any) -> dict[str, Any]:
    """Share of pairs in which the chosen answer scores higher; a tie is half."""
    from tisdpo_jax.metrics import wilson

    count = len(signs)
    share = float(((signs > 0) + 0.5 * (signs == 0)).mean())
    return {"label": name, "pairs": count, "agreement": share, "interval": wilson(share, count)}


if __name__ == "__main__":
    main()
