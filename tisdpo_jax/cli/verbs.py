"""The verbs with options of their own: `tisdpo evaluate`, `tisdpo inspect` and `tisdpo plan`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tisdpo_jax.cli import options
from tisdpo_jax.cli.missing import check_hub_names
from tisdpo_jax.config import Experiment, build, check_path, check_places
from tisdpo_jax.errors import ConfigError

SHORT = {
    "policy": "evaluation.policy",
    "reference": "evaluation.reference",
    "data": "evaluation.data",
    "subset": "evaluation.subset",
    "judge": "evaluation.judge.by",
    "models": "evaluation.judge.models",
    "prompts": "evaluation.judge.prompts",
}

USAGE = """usage: tisdpo evaluate CONFIG.yaml                 the policy of the run, on its held-out pairs
       tisdpo evaluate CONFIG.yaml --data FILE     the same policy, on other pairs
       tisdpo evaluate [CONFIG.yaml] --policy PATH --reference PATH --data FILE
                                                   any model: a directory, a .gguf file, or a PEFT adapter
       ... --judge JUDGE [--models '{NAME: PATH, ...}'] [--prompts FILE]
                                                   and compare the answers of all models, two by two

short for: """ + "\n           ".join(f"--{short:<10} --{name}" for short, name in SHORT.items())


def evaluate_verb(arguments: Sequence[str]) -> int:
    """`tisdpo evaluate [CONFIG] [--policy PATH] [--reference PATH] [--data FILE] [--dotted.field value]...`

    With --policy nothing is trained and no training pairs are needed. Prints tables and writes evaluation.json and a
    page, for a run's own pairs into its directory, else into evaluations/ there.
    """
    file, overrides, own = options.read_arguments(arguments, extra=tuple(SHORT))
    if file is None and not overrides and not own:
        raise ConfigError("name a configuration file, or a model: tisdpo evaluate --policy PATH --data FILE")
    for short, values in own.items():
        if SHORT[short] in overrides:
            raise ConfigError(f"--{short} and --{SHORT[short]} are the same; give one of them")
        overrides[SHORT[short]] = values[-1]
    config = check_places(options.load(file, overrides, "evaluate"))
    section = config.evaluation
    if section.policy and not config.model.path:
        check_hub_names(config)
        overrides["model.path"] = section.reference or _base(section.policy)
    config = options.load_valid(file, overrides, "evaluate", trains=not section.policy)
    from tisdpo_jax import distributed

    distributed.initialize()
    from tisdpo_jax.verbs import perform

    perform("evaluate", config)
    return 0


def _base(policy: str) -> str:
    """What an adapter stands on. Raises: ConfigError for a whole model, which does not say what it came from."""
    from tisdpo_jax.stages import adapter_base, is_adapter

    path = Path(policy).expanduser()
    base = adapter_base(path) if is_adapter(path) else ""
    if not base:
        raise ConfigError(f"--policy {policy}: name what it is measured against: --reference PATH")
    return base


def inspect(arguments: Sequence[str]) -> int:
    """`tisdpo inspect CONFIG [--pair ID or number] [--split train|eval] [--pictures DIR] [--dotted.field value]...`

    Prints the counts of the file and the tokens of one pair, with the weights of its run where scores are cached.
    Needs no weights of a model, and stops at nothing: every invalid record is listed. With --pictures, heat maps of
    that pair or of the first `evaluation.heat_maps`, distributions and a table of tokens are written there.
    """
    file, overrides, own = options.read_arguments(arguments, extra=("pair", "split", "pictures"))
    config = options.load_valid(file, overrides, "inspect")
    split, pair, pictures = (own.get(name, [""])[-1] for name in ("split", "pair", "pictures"))
    split = split or "train"
    if split not in ("train", "eval"):
        raise ConfigError(f"--split is {split!r}; it must be train or eval")
    encoded, tokenizer = _encode(config, split)
    from tisdpo_jax.data import file_summary, inspect_text
    from tisdpo_jax.verbs import cached_columns, write_pictures

    print(file_summary(encoded, listed=len(encoded.invalid)))
    if pictures:
        place = Path(check_path("--pictures", pictures))
        indices = [_find(encoded, pair)] if pair else list(range(min(config.evaluation.heat_maps, len(encoded))))
        print()
        for path in write_pictures(config, encoded, tokenizer, split, place, indices):
            print(f"picture  {path}")
    elif encoded.groups:
        index = _find(encoded, pair or "0")
        columns = cached_columns(config, encoded, split)  # of the run, if it has them for this data
        there = {"plus_logps", "token_weights"} <= set(columns)
        weights = columns["token_weights"][index] if there else None
        print(f"\n{inspect_text(encoded, tokenizer, index, weights=weights)}")
    return 0


def _encode(config: Experiment, split: str) -> tuple[Any, Any]:
    from tisdpo_jax.stages import Encoder, open_data, open_tokenizer

    lenient = {"data": {"on_error": "skip", "max_invalid": 1.0}}
    config = build(Experiment, lenient, where="inspect", base=config)
    tokenizer = open_tokenizer(config)
    train, held_out = open_data(config, Encoder.of(config, tokenizer))
    if split == "train":
        return train, tokenizer
    if held_out is None:
        raise ConfigError("there are no held-out pairs; set data.eval or data.eval_fraction")
    return held_out, tokenizer


def _find(encoded: Any, name: str) -> int:
    for index, pair in enumerate(encoded.groups):
        if pair.id == name:
            return index
    if name.isdigit() and int(name) < len(encoded):
        return int(name)
    raise ConfigError(f"--pair {name}: no such id, and not a number below {len(encoded)}")


def plan_verb(arguments: Sequence[str]) -> int:
    """`tisdpo plan CONFIG --topology v5e:8x8 [--topology ...] [--lengths data|hh|full] [--stage ...] [--json]`

    Needs no weights, no data and no accelerator; for TPUs it needs libtpu (extra `tpu`). Says what fits and what does
    not; a plan that was made is a success either way.
    """
    file, overrides, own = options.read_arguments(arguments, extra=("topology", "lengths", "stage"), flags=("json",))
    if file is None and not overrides:
        raise ConfigError("name a configuration file: tisdpo plan configs/llama2_7b_hh_dpo.yaml --topology v5e:8x8")
    if not any(own.get("topology", ())):
        raise ConfigError("name a topology: --topology v5e:8x8, v5p:4x4x4, v4:4x4x4, v6e:8x8, cpu:8 or gpu:8")
    lengths, stage = (own.get(name, [default])[-1] for name, default in (("lengths", ""), ("stage", "")))
    if lengths not in ("", "data", "hh", "full"):
        raise ConfigError(f"--lengths is {lengths!r}; it must be one of data, hh, full")
    from tisdpo_jax.planning import topology

    config = options.load_valid(file, overrides, "plan")
    specs = [topology.parse_topology(name) for name in own["topology"]]
    topology.prepare_topology(specs)
    from tisdpo_jax.planning import plan_text
    from tisdpo_jax.verbs import plan as recipe

    plans = recipe.plan(config, specs, lengths=lengths, stage=stage)  # type: ignore[arg-type]  # checked above
    print(json.dumps([one.as_json() for one in plans], indent=2) if "json" in own else plan_text(plans))
    return 0
