"""Fields of configurations: a default, a line of documentation, and what values there may be, all beside the field."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

Place = Literal["", "output", "model", "tokenizer", "pairs", "prompts", "file"]


def option(
    default: Any,
    doc: str,
    *,
    above: float | None = None,
    at_least: float | None = None,
    below: float | None = None,
    at_most: float | None = None,
    variants: Mapping[str, type] | None = None,
    place: Place = "",
    needed: bool = False,
) -> Any:
    """A field: its default (None: absent, `null`), the line that `--help` prints for it, and the numbers that it takes.

    Args:
      variants: name -> dataclass, for a section that is one of several; its field `name` or `method` says which.
      place: what a path or name in it is for.
      needed: it may be absent in a file, but not when something is done.
    """
    limits = {"above": above, "at_least": at_least, "below": below, "at_most": at_most}
    metadata = {"doc": doc, "limits": limits, "variants": variants, "place": place, "needed": needed}
    return dataclasses.field(default=default, metadata=metadata)


def complaint(value: float, limits: Mapping[str, float | None]) -> str:
    """What is wrong with a number, as "it must be ..."; "" when nothing is."""
    above, at_least, below, at_most = (limits.get(name) for name in ("above", "at_least", "below", "at_most"))
    inside = (
        (above is None or value > above)
        and (at_least is None or value >= at_least)
        and (below is None or value < below)
        and (at_most is None or value <= at_most)
    )
    if inside:
        return ""
    if at_least is not None and at_most is not None:
        return f"it must be between {at_least:g} and {at_most:g}"
    phrases = {"above": above, "at least": at_least, "below": below, "at most": at_most}
    return "it must be " + " and ".join(f"{word} {limit:g}" for word, limit in phrases.items() if limit is not None)
