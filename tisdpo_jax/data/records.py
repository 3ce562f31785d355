"""Preference pairs as text, and what is said about the records that did not become one."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence


class Unusable(Exception):
    """Raised while one record is being read; becomes a `Rejection`, never reaches the user.

    `reason` is one of a few fixed phrases, so that rejections can be counted; `detail` says
    what it was in this record.
    """

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(reason, detail)
        self.reason = reason
        self.detail = detail


@dataclasses.dataclass(frozen=True)
class Message:
    role: str  # "system", "user" or "assistant"
    content: str


@dataclasses.dataclass(frozen=True)
class Pair:
    """A conversation that waits for an answer, and two answers of which one is preferred."""

    id: str
    messages: tuple[Message, ...]  # an optional system turn, then user and assistant in turn; the last is the user's
    chosen: str
    rejected: str
    origin: str  # "file:line"
    margin: float | None = None
    chosen_weights: tuple[float, ...] | None = None  # one per response token, the end-of-turn token too
    rejected_weights: tuple[float, ...] | None = None
    group: str | None = None  # what the record says in the field that names its subset


@dataclasses.dataclass(frozen=True)
class Rejection:
    """A record that is left out: where it stands, and why."""

    origin: str
    reason: str
    detail: str = ""

    def __str__(self) -> str:
        return f"{self.origin}: {self.reason}" + (f" ({self.detail})" if self.detail else "")


@dataclasses.dataclass(frozen=True)
class PairSet:
    """Everything that a source held: `len(pairs) + len(rejections)` is the number of its records."""

    pairs: tuple[Pair, ...]
    rejections: tuple[Rejection, ...]
    source: str

    def summary(self) -> str:
        """Counts of records, of pairs and of each reason of rejection, a line each."""
        return summarise(self.source, len(self.pairs), self.rejections)


def count_reasons(rejections: Sequence[Rejection]) -> str:
    """'5 prompts differ, 2 empty response': the reasons with their counts, most frequent first."""
    counts = Counter(rejection.reason for rejection in rejections)
    return ", ".join(f"{count} {reason}" for reason, count in counts.most_common())


def summarise(source: str, usable: int, rejections: Sequence[Rejection]) -> str:
    """The lines of `PairSet.summary`, shared with the encoded set."""
    lines = [f"{source}: {usable + len(rejections)} records, {usable} usable, {len(rejections)} rejected"]
    counts = Counter(rejection.reason for rejection in rejections)
    lines += [f"  {count:6d}  {reason}" for reason, count in counts.most_common()]
    return "\n".join(lines)
