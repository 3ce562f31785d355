"""What a record says and a template does not write: refused by name, or counted where it says nothing to the model.

Seen by leaving it out: where the template then writes the same text, it has not read it.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from tisdpo_jax.data.records import Message, Unusable, says_nothing, settings_of
from tisdpo_jax.data.validation import NAMES

if TYPE_CHECKING:
    from tisdpo_jax.data.template import Template

REASONING = ("reasoning_content", "reasoning", "thinking")  # transformers shows each under all three names


def unread_names(template: Template, messages: Sequence[Message], ending: Message) -> tuple[str, ...]:
    """Names in the messages before `ending` that the template does not write, as "messages.NAME".

    Raises: Unusable for a setting, or for a key that says more than whose the message is.
    """
    text = template.write([*messages, ending])
    for name, value in settings_of(messages).items():
        if name == "tools":
            rest = [message for message in messages if message.role != name]
            lesser: list[list[Message]] = [[], *([Message(name, _dump(part))] for part in _parts(value))]
            if any(_writes(template, [*less, *rest, ending]) == text for less in lesser):
                raise _not_written(template, "'tools'")
        elif foreign := [option for option in value if option not in template.reads.variables]:
            names = ", ".join(map(repr, foreign))
            raise Unusable("unread field", f"{names} of 'chat_template_kwargs': unknown to template {template.name}")
    unread = []
    for place, message in enumerate(messages):
        for name, value in _said(message):
            if name in REASONING:  # which templates leave out of earlier answers, as they do with think blocks
                if not template.reads.fields.intersection(REASONING):
                    raise _not_written(template, f"{name!r} of a turn of the {message.role}")
                continue
            before, after = messages[:place], [*messages[place + 1 :], ending]
            lesser = [[*before, less, *after] for less in _lesser(message, name, value)]
            unread += _names(template, lesser, text, name, f"a turn of the {message.role}")
    return tuple(dict.fromkeys(unread))


def unread_in_answer(template: Template, messages: Sequence[Message], answer: Message) -> tuple[str, ...]:
    """The same for the keys of an answer to `messages`."""
    text, unread = template.write([*messages, answer]), []
    for name, value in _said(answer):
        lesser = [[*messages, less] for less in _lesser(answer, name, value)]
        unread += _names(template, lesser, text, name, "the response")
    return tuple(unread)


def _names(template: Template, lesser: list[list[Message]], text: str, name: str, whose: str) -> list[str]:
    if all(_writes(template, less) != text for less in lesser):
        return []
    if name not in NAMES:
        raise _not_written(template, f"{name!r} of {whose}")
    return [f"messages.{name}"]


def _said(message: Message) -> Iterator[tuple[str, Any]]:
    """The other keys of a message that say something."""
    for name, value in message.fields.items():
        if not says_nothing(value):
            yield name, value


def _lesser(message: Message, name: str, value: Any) -> list[Message]:
    """The message without one of its keys, and without each element of that."""
    rest = {key: item for key, item in message.fields.items() if key != name}
    lesser = [rest, *({**rest, name: part} for part in _parts(value))]
    return [dataclasses.replace(message, extra=_dump(fields) if fields else "") for fields in lesser]


def _parts(value: Any) -> list[Any]:
    """A list of several elements without each of them."""
    if not isinstance(value, list) or len(value) < 2:
        return []
    return [[*value[:number], *value[number + 1 :]] for number in range(len(value))]


def _dump(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _not_written(template: Template, name: str) -> Unusable:
    return Unusable(
        "unread field",
        f"{name}: template {template.name} writes the same without it, or without a part of it; "
        "take it out, or choose a template that reads it",
    )


def _writes(template: Template, messages: Sequence[Message]) -> str | None:
    try:
        return template.write(messages)
    except Exception:  # whatever jinja code of a stranger raises
        return None
