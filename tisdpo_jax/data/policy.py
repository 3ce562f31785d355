"""What happens to a source with bad records in it, and which of its prompts are held out."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import TypeVar

from tisdpo_jax.data.encoded import EncodedSet
from tisdpo_jax.data.records import Message, Pair, PairSet, Prompt, count_reasons, list_invalid
from tisdpo_jax.errors import ConfigError, DataError

LISTED = 10  # invalid records that an error names
Checked = TypeVar("Checked", PairSet, EncodedSet)
Asking = TypeVar("Asking", Prompt, Pair)


def apply_policy(data: Checked, on_error: str, max_invalid: float) -> Checked:
    """`data` itself, unless it holds more bad records than the configuration allows.

    Args:
        data: a `PairSet`, or an `EncodedSet` (whose invalid include those of its `PairSet`).
        on_error: "fail" raises if there is an invalid record; "skip" lets them be.
        max_invalid: with "skip", the share of invalid records above which it still raises.
    """
    bad, total = len(data.invalid), len(data) + len(data.invalid)
    counts = f"{data.source}: {bad} of {total} records invalid ({count_reasons(data.invalid)})"
    if on_error not in ("fail", "skip"):
        raise ConfigError(f"data.on_error is {on_error!r}; it must be fail or skip")
    why = ""
    if bad and on_error == "fail":
        why = "; mend them, or leave them out with data.on_error skip"
    elif bad > max_invalid * total:
        why = f": more than data.max_invalid {max_invalid:g} allows"
    if why:
        raise DataError("\n".join([counts + why, *list_invalid(data.invalid, LISTED)]))
    if not len(data):
        raise DataError(f"{data.source}: holds no usable records")
    return data


def split_by_prompt(pair_set: PairSet, fraction: float, seed: int) -> tuple[PairSet, PairSet]:
    """(training pairs, held-out pairs): `fraction` of the distinct prompts, with all their pairs, is held out.

    Invalid records stay with the training part; else as `split_prompts`.
    """
    train, held_out = split_prompts(pair_set.pairs, fraction, seed, pair_set.source)
    return (
        PairSet(train, pair_set.invalid, pair_set.source),
        PairSet(held_out, (), f"{pair_set.source} (held out)"),
    )


def split_prompts(
    items: Sequence[Asking], fraction: float, seed: int, source: str
) -> tuple[tuple[Asking, ...], tuple[Asking, ...]]:
    """(training part, held-out part) of prompts or pairs; those of equal messages stay together.

    Prompts are ranked by a hash of seed and text, so the choice does not depend on the order of the
    records. At least one prompt is held out if `fraction` is above 0.
    """
    if not 0.0 <= fraction < 1.0:
        raise ConfigError(f"data.eval_fraction is {fraction}; it must be at least 0 and below 1")
    keys = [_prompt_key(item.messages, seed) for item in items]
    ranked = sorted(set(keys))
    count = max(1, round(fraction * len(ranked))) if fraction else 0
    if count and count >= len(ranked):
        raise DataError(
            f"{source}: {len(ranked)} distinct prompts are too few to hold out data.eval_fraction {fraction:g}"
        )
    held_out = set(ranked[:count])
    both = list(zip(items, keys, strict=True))
    train = tuple(item for item, key in both if key not in held_out)
    return train, tuple(item for item, key in both if key in held_out)


def _prompt_key(messages: Sequence[Message], seed: int) -> bytes:
    content = json.dumps([seed, [(message.role, message.content) for message in messages]])
    return hashlib.sha256(content.encode()).digest()
