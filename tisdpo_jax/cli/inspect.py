"""`tisdpo inspect`: what the records of a file become before a model sees them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tisdpo_jax.cli import options
from tisdpo_jax.cli.missing import check_hub_names
from tisdpo_jax.config import Experiment, check_path
from tisdpo_jax.errors import ConfigError


def inspect(arguments: Sequence[str]) -> int:
    """`tisdpo inspect CONFIG [--pair ID or number] [--split train|eval] [--pictures DIR] [--dotted.field value]...`

    Prints the counts of the file and the tokens of one pair, with the weights of its run where scores are cached.
    Needs no weights of a model, and stops at nothing: every invalid record is listed. With --pictures, heat maps of
    that pair or of the first `evaluation.heat_maps`, distributions and a table of tokens are written there.
    """
    file, overrides, own = options.read_arguments(arguments, extra=("pair", "split", "pictures"))
    config = options.load_valid(file, overrides, "inspect")
    check_hub_names(config)
    split = own.get("split", "train")
    if split not in ("train", "eval"):
        raise ConfigError(f"--split is {split!r}; it must be train or eval")
    encoded, tokenizer = _encode(config, split)
    from tisdpo_jax.data import file_summary, inspect_text

    print(file_summary(encoded, listed=len(encoded.invalid)))
    if "pictures" in own:
        own["pictures"] = check_path("--pictures", own["pictures"])
        _draw(config, encoded, tokenizer, split, own)
    elif encoded.groups:
        index = _find(encoded, own.get("pair", "0"))
        print()
        print(inspect_text(encoded, tokenizer, index, weights=_weights(config, split, encoded, index)))
    return 0


def _encode(config: Experiment, split: str) -> tuple[Any, Any]:
    import dataclasses

    from tisdpo_jax.stages import Text, open_data, open_tokenizer

    lenient = dataclasses.replace(config.data, on_error="skip", max_invalid=1.0)
    config = dataclasses.replace(config, data=lenient)
    tokenizer = open_tokenizer(config)
    train, held_out = open_data(config, Text.of(config, tokenizer))
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


def _draw(config: Experiment, encoded: Any, tokenizer: Any, split: str, own: dict[str, str]) -> None:
    from tisdpo_jax.recipes import write_pictures

    count = min(config.evaluation.heat_maps, len(encoded))
    indices = [_find(encoded, own["pair"])] if "pair" in own else list(range(count))
    print()
    for path in write_pictures(config, encoded, tokenizer, split, Path(own["pictures"]), indices):
        print(f"picture  {path}")


def _weights(config: Experiment, split: str, encoded: Any, index: int) -> np.ndarray | None:
    """Weights from the score cache of the run, if it has one for this data."""
    from tisdpo_jax.recipes import cached_columns

    columns = cached_columns(config, encoded, split)
    return columns["token_weights"][index] if {"plus_logps", "token_weights"} <= set(columns) else None
