"""`tisdpo inspect`: what the records of a file become before a model sees them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tisdpo_jax.cli import options
from tisdpo_jax.config import Experiment, build, check_path
from tisdpo_jax.errors import ConfigError


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
