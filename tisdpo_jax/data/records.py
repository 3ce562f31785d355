"""Prompts and preference pairs as text, and what is said about the records that did not become one."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

# What a record tells the template besides its turns. Each stands before the turns as a message of that role, its
# content JSON, so that it goes wherever the conversation goes: into prompts, views, answers and what identifies them.
SETTINGS = ("tools", "chat_template_kwargs")


STRENGTHS = ("significantly", "better", "slightly", "negligibly")
"""How much better the chosen response is, in the words that a record may use; what they mean is configured."""


class Unusable(Exception):
    """Raised while one record is being read; becomes an `InvalidRecord`, never reaches the user.

    `reason` is one of a few fixed phrases, so that they can be counted; `detail` says what it was in this record.
    """

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(reason, detail)
        self.reason, self.detail = reason, detail

    def at(self, origin: str) -> InvalidRecord:
        """What is kept of the record that stands there."""
        return InvalidRecord(origin, self.reason, self.detail)


@dataclasses.dataclass(frozen=True)
class InvalidRecord:
    """A record that is left out: where it stands, and why."""

    origin: str
    reason: str
    detail: str = ""

    def __str__(self) -> str:
        return f"{self.origin}: {self.reason}" + (f" ({self.detail})" if self.detail else "")


@dataclasses.dataclass(frozen=True)
class Message:
    role: str  # "system", "user", "assistant" or "tool"; or one of SETTINGS
    content: str
    extra: str = ""  # JSON of the other keys that the record gave it (tool_calls, reasoning_content, ...); "" for none

    @property
    def fields(self) -> dict[str, Any]:
        """The other keys of the message."""
        return json.loads(self.extra) if self.extra else {}

    @property
    def called(self) -> str:
        """How errors name it."""
        return f"'{self.role}'" if self.role in SETTINGS else f"a turn of the {self.role}"

    def texts(self) -> Iterator[str]:
        """Every text in it, names of fields included."""
        return _texts(json.loads(self.content) if self.role in SETTINGS else [self.content, self.fields])


@dataclasses.dataclass(frozen=True)
class Prompt:
    """A conversation that waits for an answer."""

    id: str
    messages: tuple[Message, ...]  # settings, a system turn or none, then the turns; the last is the user's or a tool's
    origin: str  # "file:line"

    @property
    def text(self) -> str:
        return conversation_text(self.messages)


@dataclasses.dataclass(frozen=True)
class Pair:
    """A conversation that waits for an answer, and two answers of which one is preferred."""

    id: str
    messages: tuple[Message, ...]  # as of a prompt
    chosen: str
    rejected: str
    origin: str  # "file:line"
    margin: float | None = None
    strength: str | float | None = None  # of the preference: one of STRENGTHS, or a probability
    chosen_weights: tuple[float, ...] | None = None  # one per response token, the end-of-turn token too
    rejected_weights: tuple[float, ...] | None = None
    group: str | None = None  # what the record says in the field that names its subset
    chosen_extra: str = ""  # `Message.extra` of the answers
    rejected_extra: str = ""
    unread: tuple[str, ...] = ()  # columns of the record that say nothing to the model, and that nothing reads

    @property
    def answers(self) -> tuple[Message, Message]:
        """The chosen and the rejected response as messages."""
        return (
            Message("assistant", self.chosen, self.chosen_extra),
            Message("assistant", self.rejected, self.rejected_extra),
        )


@dataclasses.dataclass(frozen=True)
class PairSet:
    """Everything that a source held: `len(pairs) + len(invalid)` is the number of its records."""

    pairs: tuple[Pair, ...]
    invalid: tuple[InvalidRecord, ...]
    source: str

    def __len__(self) -> int:
        return len(self.pairs)

    def summary(self) -> str:
        """Counts of records, of pairs, of invalid records by reason, and of columns that nothing reads, a line each."""
        unread = Counter(name for pair in self.pairs for name in pair.unread)
        return summarise(self.source, len(self.pairs), self.invalid, unread)


def turns_of(messages: Sequence[Message]) -> list[Message]:
    """The messages without those of `SETTINGS`."""
    return [message for message in messages if message.role not in SETTINGS]


def settings_of(messages: Sequence[Message]) -> dict[str, Any]:
    """What the record told the template besides its turns: "tools", "chat_template_kwargs", where there are any."""
    return {message.role: json.loads(message.content) for message in messages if message.role in SETTINGS}


def as_record(messages: Sequence[Message]) -> dict[str, Any]:
    """The fields from which a conversation is read again: "messages", and its settings."""
    turns = [{"role": turn.role, "content": turn.content, **turn.fields} for turn in turns_of(messages)]
    return {"messages": turns, **settings_of(messages)}


def conversation_text(messages: Sequence[Message]) -> str:
    """For people and judges: the text of a single turn as it is, several turns with the name of who speaks."""
    shown = [message for message in messages if message.role != "chat_template_kwargs"]
    if len(shown) == 1 and not shown[0].extra:
        return shown[0].content
    return "\n\n".join(f"{message.role}: {message.content}{message.extra and ' ' + message.extra}" for message in shown)


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for name, item in value.items():
            yield str(name)
            yield from _texts(item)
    elif isinstance(value, Sequence):
        for item in value:
            yield from _texts(item)


def says_nothing(value: Any) -> bool:
    """None, blank text, or an empty list or object."""
    if isinstance(value, str):
        return not value.strip()
    return value is None or (isinstance(value, Sequence | Mapping) and not value)


def count_reasons(invalid: Sequence[InvalidRecord]) -> str:
    """'5 prompts differ, 2 empty response': the reasons with their counts, most frequent first."""
    return ", ".join(f"{count} {reason}" for reason, count in Counter(one.reason for one in invalid).most_common())


def summarise(source: str, usable: int, invalid: Sequence[InvalidRecord], unread: Mapping[str, int]) -> str:
    """The lines of `PairSet.summary`, shared with the encoded set."""
    lines = [f"{source}: {usable + len(invalid)} records, {usable} usable, {len(invalid)} invalid"]
    lines += [f"  {count:6d}  {reason}" for reason, count in Counter(one.reason for one in invalid).most_common()]
    lines += [f"  {count:6d}  records with {name!r}, which nothing reads" for name, count in sorted(unread.items())]
    return "\n".join(lines)


def list_invalid(invalid: Sequence[InvalidRecord], most: int) -> list[str]:
    """The first `most` of them, a line each, and how many more there are."""
    lines = [f"  {one}" for one in invalid[:most]]
    return lines + [f"  ... and {len(invalid) - most} more"] * (len(invalid) > most)
