"""Sampling on the CPU beside `transformers.generate`: same model, prompts and number of tokens, float32, in turn.

    python benchmarks/sampling.py [--batch 8] [--new 128] [--repeats 3] [--out sampling.json]

Needs PyTorch (extra `parity`). Both draw at temperature 1 from the whole vocabulary, with a key-value cache, and
neither may end early. Runs alternate, so that what else the machine does falls on both.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("HF_HUB_OFFLINE", "1")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--prompt", type=int, default=48, help="tokens of each prompt")
    parser.add_argument("--new", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--out", type=Path, default=Path("sampling.json"))
    asked = parser.parse_args()

    import numpy as np

    from tisdpo_jax import interchange

    path = interchange.demo_model_path(Path("~/.cache/tisdpo_jax").expanduser())
    config = interchange.read_config(path)
    params = interchange.load_params(path, config, dtype="float32")
    prompts = np.random.default_rng(0).integers(100, config.vocab_size, (asked.batch, asked.prompt))
    with tempfile.TemporaryDirectory() as folder:
        interchange.save_huggingface(Path(folder), params, config, tokenizer=interchange.load_tokenizer(path))
        sides = {"tisdpo_jax": ours(config, params, prompts, asked.new), "transformers": theirs(folder, prompts, asked)}
    times: dict[str, list[float]] = {name: [] for name in sides}
    for repeat in range(asked.repeats + 1):
        for name, run in sides.items():
            began = time.perf_counter()
            run(repeat)
            if repeat:  # the first compiles, and warms caches up
                times[name].append(time.perf_counter() - began)
            else:
                print(f"{name}: first run {time.perf_counter() - began:.1f} s", flush=True)
    tokens = asked.batch * asked.new
    rows = {
        name: {"median_s": statistics.median(found), "range_s": [min(found), max(found)], "runs_s": found}
        | {"tokens_per_s": tokens / statistics.median(found)}
        for name, found in times.items()
    }
    ratio = rows["transformers"]["median_s"] / rows["tisdpo_jax"]["median_s"]
    print(f"\n{'':<14}{'median s':>10}{'range s':>18}{'tokens/s':>10}")
    for name, row in rows.items():
        print(f"{name:<14}{row['median_s']:>10.2f}{row['range_s'][0]:>10.2f} -{row['range_s'][1]:>6.2f}"
              f"{row['tokens_per_s']:>10.1f}")  # fmt: skip
    print(f"transformers takes {ratio:.2f} times as long; programs compiled: {compiled()}")
    settings = {name: value for name, value in vars(asked).items() if name != "out"}
    asked.out.write_text(json.dumps({"settings": settings, "rows": rows, "ratio": ratio}, indent=2) + "\n")


def ours(config: Any, params: Any, prompts: Any, new: int) -> Callable[[int], None]:
    from tisdpo_jax.generation import Options, Request, SamplingParams, sample
    from tisdpo_jax.models import Model

    requests = [Request(f"p{row}", ids.tolist()) for row, ids in enumerate(prompts)]

    def run(seed: int) -> None:
        options = Options(SamplingParams(1.0), max_new_tokens=new, max_prompt=2**20, batch_size=len(prompts), seed=seed)
        found = list(sample(Model(config), {"params": params}, requests, options, decode=lambda ids: ""))
        assert all(len(answer.ids) == new for batch in found for answer in batch)

    return run


def theirs(folder: str, prompts: Any, asked: Any) -> Callable[[int], None]:
    import torch
    import transformers

    torch.set_num_threads(asked.threads)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    ids = torch.tensor(prompts)
    options = {"do_sample": True, "temperature": 1.0, "top_k": 0, "use_cache": True, "pad_token_id": 0}

    def run(seed: int) -> None:
        torch.manual_seed(seed)
        with torch.inference_mode():
            found = model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=asked.new,
                min_new_tokens=asked.new,
                **options,
            )
        assert found.shape[1] == prompts.shape[1] + asked.new

    return run


def compiled() -> int:
    """Programs of prefill and decoding in this process: two, for the one shape."""
    from tisdpo_jax.generation.decoding import advance, begin

    return begin._cache_size() + advance._cache_size()


if __name__ == "__main__":
    main()
