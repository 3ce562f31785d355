"""What a pair must be, whichever layout it came in. Every complaint is an `Unusable`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from tisdpo_jax.data.records import SETTINGS, Message, Pair, Unusable, says_nothing, settings_of, strings, turns_of

NAMES = ("name", "tool_call_id", "id")  # keys of a message that say whose it is, not what is said


def check_pair(pair: Pair) -> None:
    """Roles in order, text that is text, answers that say something, and not the same thing."""
    check_turns(pair.messages)
    answers = [Message("assistant", pair.chosen, pair.chosen_extra)]
    answers += [Message("assistant", pair.rejected, pair.rejected_extra)]
    for side, answer in zip(("chosen", "rejected"), answers, strict=True):
        if not _says_something(answer):
            raise Unusable("empty response", side)
        _check_message(answer, side)
    if pair.chosen.strip() == pair.rejected.strip() and answers[0].fields == answers[1].fields:
        raise Unusable("responses equal", "chosen and rejected are the same text")
    for message in pair.messages:
        name = f"'{message.role}'" if message.role in SETTINGS else f"turn of the {message.role}"
        _check_message(message, name)
    if (pair.chosen_weights is None) != (pair.rejected_weights is None):
        raise Unusable("missing field", "'chosen_weights' and 'rejected_weights' come together")
    if pair.chosen_weights and not any((*pair.chosen_weights, *(pair.rejected_weights or ()))):
        raise Unusable("nothing to train on", "all of 'chosen_weights' and 'rejected_weights' are 0")


def check_turns(messages: Sequence[Message]) -> None:
    """A system turn or none, then user and assistant in turn, the user last, and every turn says something.

    Behind a turn of the assistant that calls tools stand turns of the tools, of which one may be the last.
    """
    turns = turns_of(messages)
    turns = turns[1:] if turns and turns[0].role == "system" else turns
    if not turns:
        raise Unusable("empty prompt", "no turn of the user")
    expected = ["user"]
    for number, message in enumerate(turns):
        if message.role not in expected:
            raise Unusable(
                "turn order", f"turn {number + 1} is the {message.role}'s, not the {' or '.join(expected)}'s"
            )
        if not _says_something(message):
            raise Unusable("empty turn", f"turn {number + 1} of the prompt, the {message.role}'s")
        if message.role == "assistant":
            expected = ["tool"] if message.fields.get("tool_calls") else ["user"]
        else:
            expected = ["tool", "assistant"] if message.role == "tool" else ["assistant"]
    if turns[-1].role not in ("user", "tool"):
        raise Unusable("turn order", "the prompt does not end with a turn of the user")


def _says_something(message: Message) -> bool:
    """Whether a turn holds text or, the assistant's, a call of a tool or reasoning; a tool may have nothing to say."""
    if message.role != "assistant":
        return message.role == "tool" or bool(message.content.strip())
    said = (value for name, value in message.fields.items() if name not in NAMES)
    return bool(message.content.strip()) or not all(map(says_nothing, said))


def _check_message(message: Message, name: str) -> None:
    for text in strings(settings_of([message]) or [message.content, message.fields]):
        _check_text(text, name)


def _check_text(text: str, name: str) -> None:
    if "\0" in text:
        raise Unusable("invalid text", f"NUL character in {name}")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise Unusable("invalid text", f"lone surrogate at character {error.start} of {name}") from None


def read_id(record: Mapping[str, Any], default: str) -> str:
    """The record's id as text; `default` where it has none."""
    value = record.get("id")
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, str | int) or value == "":
        raise Unusable("wrong type", "'id' is neither text nor a whole number")
    text = str(value)
    _check_text(text, "id")
    return text


def read_margin(record: Mapping[str, Any]) -> float | None:
    """The record's margin, a finite number, or None."""
    value = record.get("margin")
    return None if value is None else _number(value, "margin")


def read_group(record: Mapping[str, Any], name: str) -> str | None:
    """What a record says in the field that names its subset, as text; None where it says nothing."""
    value = record.get(name)
    if value is None:
        return None
    if not isinstance(value, str | int | float):
        raise Unusable("wrong type", f"'{name}' names the subset and must be text or a number")
    text = str(value)
    _check_text(text, name)
    return text


def read_weights(record: Mapping[str, Any], name: str) -> tuple[float, ...] | None:
    """One finite number for each response token, or None."""
    value = record.get(name)
    if value is None:
        return None
    if not isinstance(value, Sequence) or isinstance(value, str | bytes):
        raise Unusable("wrong type", f"'{name}' is not a list of numbers")
    return tuple(_number(item, name) for item in value)


def _number(value: Any, name: str) -> float:
    try:
        number = math.nan if isinstance(value, str | bool) else float(value)
    except (TypeError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise Unusable("wrong type", f"'{name}' holds {value!r}, not a finite number")
    return number
