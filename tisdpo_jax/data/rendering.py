"""A conversation as text, and where in that text the response stands.

The template is applied once to the whole conversation, the response included, with all that the record says: whole
messages, `tools`, `chat_template_kwargs`. What of that it does not write is refused by name.

The prompt is what the template writes when it is asked for an answer (`add_generation_prompt`): what is trained after
is what sampling begins from, in TRL and here. What a template writes between that and the response (an empty think
block) is the model's to write. Where a conversation that is answered parts from that earlier (the request opens a
think block, and the response has none), training's prompt ends there. A template that knows no such request writes its
prompt before a placeholder that stands in the response's stead.

The response ends with the end-of-turn token, which is part of it. Blanks that the template puts before the response
belong to the response (Llama 2 writes "[/INST] Sure": the model answers with the token "_Sure"); what stands after
the end-of-turn token is dropped. Where the template writes no special token after the response, the EOS of the
tokenizer is appended. A template may trim an answer and set its think blocks anew, and leave the think blocks of
earlier answers out; one that changes an answer otherwise, or shows it never or twice, is refused.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from typing import Any, NamedTuple

from tisdpo_jax.data.checks import NAMES
from tisdpo_jax.data.records import SETTINGS, Message, Unusable, says_nothing, settings_of, turns_of
from tisdpo_jax.data.template import PLACEHOLDER, Template, attempt

REASONING = ("reasoning_content", "reasoning", "thinking")  # transformers shows each under all three names


class Frame(NamedTuple):
    """What a template writes around the response to a conversation."""

    head: str  # the prompt: what sampling begins from
    before: str  # all that stands before a response of plain text, which may part from `head` towards its end
    tail: str
    unread: tuple[str, ...]  # names in the messages that the template does not write


class Rendered(NamedTuple):
    """A whole conversation as text. The response, its end-of-turn token included, is `text[start:]`."""

    text: str
    start: int
    unread: tuple[str, ...] = ()  # names in the answer that the template does not write


def frame(template: Template, messages: Sequence[Message]) -> Frame:
    """What stands before and after the response to this conversation.

    Raises: Unusable when the template cannot write the conversation, or leaves out something that the record says.
    """
    whole = [*messages, Message("assistant", PLACEHOLDER)]
    text = _write(template, whole)
    if text.count(PLACEHOLDER) != 1:
        raise _breaks("it does not write the response exactly once")
    before, _, tail = text.partition(PLACEHOLDER)
    head = _write(template, messages, generation=True) if template.asks else before
    for message in turns_of(messages):
        # Templates may trim a turn, and strip the reasoning from earlier answers; they may not lose what was said.
        if not _stands_in(template, message, head):
            raise _breaks(f"it leaves out or alters {message.called}")
    unread = [name for place in range(len(messages)) for name in _unread(template, text, whole, place)]
    return Frame(head, before, tail, tuple(dict.fromkeys(unread)))


def render(template: Template, around: Frame, messages: Sequence[Message], response: str, extra: str = "") -> Rendered:
    """The conversation with its response, cut after the end-of-turn token.

    Args:
        template: what writes.
        around: its `frame` of this conversation.
        messages: the conversation.
        response: the text of the answer.
        extra: its other keys, as in `Message.extra`.

    Raises: Unusable when the template alters the answer, or leaves out something that it says.
    """
    whole = [*messages, Message("assistant", response, extra)]
    text = _write(template, whole)
    before, tail = around.before, around.tail
    body = text[len(before) : len(text) - len(tail)]
    start = min(_common(text, around.head), len(around.head.rstrip(" ")))
    if not _stands_in(template, turns_of(messages)[-1], around.head[:start]):
        raise _breaks("it writes the turns otherwise where it asks for an answer")
    closing = _closing(template, tail)
    if text == before + body + tail and body.strip() == response.strip() and body in response and not extra:
        ending = tail[: tail.index(closing) + len(closing)] if closing else tail.rstrip() + template.eos
        return Rendered(before + body + ending, start)
    if not extra and not template.markup.search(response):
        raise _breaks("it alters the response, or what stands around it")
    # the tail may be another, so the end of turn is sought at the end of the text
    ending = tail[tail.index(closing) :] if closing else tail
    if text.endswith(ending):
        close = len(text) - len(ending)
        shown = text[:close] + (closing or ending.rstrip() + template.eos)
    else:
        shown = text.rstrip()  # Llama 3.1 ends a call of a built-in tool with another token
        last = max((token for token in template.special if shown.endswith(token)), key=len, default="")
        if not last:
            raise _breaks("it alters what ends the response")
        close = len(shown) - len(last)
    _check_rewritten(template, shown[start:close], response, bool(extra))
    return Rendered(shown, start, _unread(template, text, whole, len(messages)))


def _write(template: Template, messages: Sequence[Message], generation: bool = False) -> str:
    try:
        return template.write(messages, generation)
    except Exception as error:  # whatever jinja code of a stranger raises
        raise _breaks(str(error) or type(error).__name__) from None


def _breaks(how: str) -> Unusable:
    return Unusable("template breaks the record", how)


def _common(first: str, second: str) -> int:
    """Number of characters with which both begin."""
    if first.startswith(second):
        return len(second)
    return next((at for at, pair in enumerate(zip(first, second, strict=False)) if pair[0] != pair[1]), len(first))


def _stands_in(template: Template, message: Message, head: str) -> bool:
    content = message.content
    if message.role == "assistant":
        content = template.markup.split(content)[-1]
    if content.strip() in head:
        return True
    # Llama 3.1 writes what a tool said as JSON
    quoted = [json.dumps(content.strip(), ensure_ascii=ascii)[1:-1] for ascii in (True, False)]
    return message.role == "tool" and any(text in head for text in quoted)


def _check_rewritten(template: Template, written: str, response: str, more: bool) -> None:
    """Of a response with think blocks or other fields: all its text must be there in order, and nothing foreign."""
    rest, left = written, ""
    for piece in filter(None, (piece.strip() for piece in template.markup.split(response))):
        before, written_piece, rest = rest.partition(piece)
        if not written_piece:
            raise _breaks(f"it leaves out or alters {piece[:30]!r} of the response; choose a template that writes it")
        left += before
    if not more and template.markup.sub("", left + rest).strip():
        raise _breaks("it alters the response, or what stands around it")


def _closing(template: Template, tail: str) -> str:
    """The end-of-turn token behind a response, and those that follow it at once (Command R7B writes two)."""
    closing = template.first_special(tail)
    rest = tail[tail.index(closing) + len(closing) :]
    while closing and (following := template.first_special(rest)) and rest.startswith(following):
        closing, rest = closing + following, rest.removeprefix(following)
    return closing


def turn_end(template: Template, gap: str) -> int:
    """Length of what closes a turn, in the text between it and the content of the next."""
    token = template.first_special(gap)
    end = gap.index(token) + len(token) if token else len(gap)
    return end + len(gap[end:]) - len(gap[end:].lstrip())


# What a record says and a template does not write is seen by leaving it out: where the template then writes the same
# text, it has not read it.


def _unread(template: Template, text: str, whole: list[Message], place: int) -> tuple[str, ...]:
    """Names of keys of one message that the template does not write, as "messages.NAME".

    Args:
        template: what writes.
        text: what it writes of the whole conversation.
        whole: the conversation, its answer last.
        place: which message.

    Raises: Unusable for a setting, or for a key that says more than whose the message is.
    """
    message, answer, unread = whole[place], place == len(whole) - 1, []
    if message.role in SETTINGS:
        _check_setting(template, text, whole, message)
        return ()
    for name, value in message.fields.items():
        if says_nothing(value):
            continue
        whose = "the response" if answer else message.called
        if name in REASONING and not answer:  # templates leave it out of earlier answers, as they do think blocks
            if not template.reads.fields.intersection(REASONING):
                raise _not_written(template, f"{name!r} of {whose}")
            continue
        rest = {key: item for key, item in message.fields.items() if key != name}
        lesser = [rest, *({**rest, name: part} for part in _parts(value))]
        extras = [_dump(fields) if fields else "" for fields in lesser]
        versions = [[*whole[:place], dataclasses.replace(message, extra=one), *whole[place + 1 :]] for one in extras]
        if any(attempt(template.write, version) == text for version in versions):
            if name not in NAMES:
                raise _not_written(template, f"{name!r} of {whose}")
            unread.append(f"messages.{name}")
    return tuple(unread)


def _check_setting(template: Template, text: str, whole: list[Message], message: Message) -> None:
    value = settings_of([message])[message.role]
    if message.role == "tools":
        rest = [other for other in whole if other is not message]
        lesser = [[], *([Message("tools", _dump(part))] for part in _parts(value))]
        if any(attempt(template.write, [*less, *rest]) == text for less in lesser):
            raise _not_written(template, "'tools'")
    elif foreign := [option for option in value if option not in template.reads.variables]:
        names = ", ".join(map(repr, foreign))
        raise Unusable("unread field", f"{names} of 'chat_template_kwargs': unknown to template {template.name}")


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
