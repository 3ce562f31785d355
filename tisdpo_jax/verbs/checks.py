"""What answers to prompts are checked for: words that a file lists for the prompts that it names.

    {"group": "everyday questions", "check": "has an expected word", "ids": "helpful-geography-*", "any": ["Spain"]}

An answer passes where one of the phrases stands in it. That is all that is checked: it may say the word and still be
wrong, or be right in other words.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.resources
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tisdpo_jax.data import Unusable, read_file
from tisdpo_jax.errors import DataError

DEMO = "demo:checks"
_FIELDS = ("group", "check", "ids", "any")


@dataclasses.dataclass(frozen=True)
class Check:
    """Phrases of which one is wanted in the answers to some prompts."""

    group: str  # of prompts, as tables call it
    name: str  # what an answer does that passes: "has an expected word"
    ids: str  # of prompts; * stands for any characters
    phrases: tuple[str, ...]  # a * at the end of one stands for any further letters

    def hit(self, answer: str) -> str | None:
        """The first of the phrases in the answer, as it is written there; None where there is none."""
        match = _pattern(self.phrases).search(answer.replace("’", "'"))
        return match[0] if match else None


def open_checks(source: str | None) -> tuple[Check, ...]:
    """The checks of a .jsonl, of the demo (`demo:checks`), or none. Raises: DataError that names file and line."""
    if not source:
        return ()
    path = Path(source).expanduser()
    if source == DEMO:
        path = Path(str(importlib.resources.files("tisdpo_jax.data") / "demo" / "checks.jsonl"))
    return tuple(_read(row.value, f"{source}:{row.place}") for row in read_file(path, source))


def check_of(checks: tuple[Check, ...], prompt: str) -> Check | None:
    """The first check that is for the prompt with this id."""
    return next((check for check in checks if _is_named(prompt, check.ids)), None)


def _is_named(prompt: str, ids: str) -> bool:
    return re.fullmatch(".*".join(map(re.escape, ids.split("*"))), prompt, re.DOTALL) is not None


def _read(record: Any, where: str) -> Check:
    if isinstance(record, Unusable):
        raise DataError(f"{where}: {record.reason}: {record.detail}; mend the record")
    if not isinstance(record, Mapping) or sorted(record) != sorted(_FIELDS):
        raise DataError(f"{where}: a check has the fields {', '.join(_FIELDS)}, and no others; mend the record")
    for name in _FIELDS[:3]:
        if not isinstance(record[name], str) or not record[name].strip():
            raise DataError(f"{where}: {name!r} must be text; mend the record")
    phrases = record["any"]
    if not isinstance(phrases, list) or not phrases:
        raise DataError(f"{where}: 'any' must be a list of phrases; mend the record")
    for phrase in phrases:
        if not isinstance(phrase, str) or not phrase.rstrip("*").strip():
            raise DataError(f"{where}: {phrase!r} in 'any' is no phrase; mend the record")
    return Check(record["group"], record["check"], record["ids"], tuple(phrases))


@functools.lru_cache
def _pattern(phrases: tuple[str, ...]) -> re.Pattern[str]:
    """Any of the phrases, between the borders of words, in upper or lower case."""
    parts = []
    for phrase in phrases:
        stem = phrase.rstrip("*")
        end = r"\w*" if stem != phrase else r"(?!\w)" if stem[-1].isalnum() else ""
        parts.append((r"(?<!\w)" if stem[0].isalnum() else "") + re.escape(stem.replace("’", "'")) + end)
    return re.compile("|".join(parts), re.IGNORECASE)
