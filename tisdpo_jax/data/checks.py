"""What a pair or a prompt must be, whichever layout it came in. Every complaint is an `Unusable`.

Text that holds turns of its own, a whole conversation where one turn is expected, is refused, since a template would
write all of it as one turn of the user. A text counts as such a transcript when marks of the user *and* of the
assistant stand in it, in this order and in one style, and either the first mark of the user opens the text or a mark
of the assistant closes it; marks in angle or square brackets need neither. What begins as turns of the HH transcripts
do ("\\n\\nHuman:") counts too. Text that only mentions a mark does not.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from tisdpo_jax.data.records import Message, Pair, Unusable, says_nothing, turns_of

NAMES = ("name", "tool_call_id", "id")  # keys of a message that say whose it is, not what is said
HH_TURN = re.compile(r"\n\n(Human|Assistant):")
# Words that open a line, or, in capitals, stand anywhere.
_WORDS = (
    (r"(?im)^[ \t]*(?:#+[ \t]*)?(?:human|user)[ \t]*:", r"(?im)^[ \t]*(?:#+[ \t]*)?(?:assistant|ai|bot|gpt)[ \t]*:"),
    (r"\b(?:USER|HUMAN):", r"\b(?:ASSISTANT|AI|BOT|GPT):"),
    (r"(?i)##+ *(?:human|user|instruction|input|question) *:", r"(?i)##+ *(?:assistant|response|answer|output) *:"),
)
_BRACKETS = (
    (r"<\|im_start\|>\s*user\b", r"<\|im_start\|>\s*assistant\b"),
    (r"(?i)<[|｜](?:user|human)[|｜]>", r"(?i)<[|｜](?:assistant|bot|model)[|｜]>"),
    (r"<\|start_header_id\|>\s*user\b", r"<\|start_header_id\|>\s*assistant\b"),
    (r"<start_of_turn>\s*user\b", r"<start_of_turn>\s*model\b"),
    (r"\[INST\]", r"\[/INST\]"),
)


def check_pair(pair: Pair) -> None:
    """Roles in order, text that is text, answers that say something, and not the same thing."""
    check_turns(pair.messages)
    for side, answer in zip(("chosen", "rejected"), pair.answers, strict=True):
        if not _says_something(answer):
            raise Unusable("empty response", side)
        _check_message(answer, side)
    chosen, rejected = pair.answers
    if chosen.content.strip() == rejected.content.strip() and chosen.fields == rejected.fields:
        raise Unusable("responses equal", "chosen and rejected are the same text")
    for message in pair.messages:
        _check_message(message, message.called)
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
    for number, message in enumerate(turns, 1):
        if message.role not in expected:
            raise Unusable("turn order", f"turn {number} is the {message.role}'s, not the {' or '.join(expected)}'s")
        if not _says_something(message):
            raise Unusable("empty turn", f"turn {number} of the prompt, the {message.role}'s")
        if message.role == "assistant":
            expected = ["tool"] if message.fields.get("tool_calls") else ["user"]
        else:
            expected = ["tool", "assistant"] if message.role == "tool" else ["assistant"]
    if turns[-1].role == "assistant":
        raise Unusable("turn order", "the prompt does not end with a turn of the user")


def _says_something(message: Message) -> bool:
    """Whether a turn holds text or, the assistant's, a call of a tool or reasoning; a tool may have nothing to say."""
    if message.role != "assistant":
        return message.role == "tool" or bool(message.content.strip())
    said = (value for name, value in message.fields.items() if name not in NAMES)
    return bool(message.content.strip()) or not all(map(says_nothing, said))


def _check_message(message: Message, name: str) -> None:
    for text in message.texts():
        check_text(text, name)


def check_text(text: str, name: str) -> None:
    if "\0" in text:
        raise Unusable("invalid text", f"NUL character in {name}")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise Unusable("invalid text", f"lone surrogate at character {error.start} of {name}") from None


def check_one_turn(text: str, name: str) -> None:
    """Refuse text that is a transcript."""
    if mark := transcript_mark(text):
        raise Unusable(
            "transcript in text",
            f"{name} holds turns of its own ({mark!r}); give them as messages, or as data.format hh expects them",
        )


def transcript_mark(text: str) -> str:
    """The first mark of the turns that this text holds; "" where it is one turn."""
    if opening := HH_TURN.match(text):
        return opening.group().strip()
    for user, assistant in (*_WORDS, *_BRACKETS):
        first = re.search(user, text)
        answers = list(re.compile(assistant).finditer(text, first.end())) if first else []
        if first and answers:
            opens, closes = not text[: first.start()].strip(), not text[answers[-1].end() :].strip()
            if (user, assistant) in _BRACKETS or opens or closes:
                return first.group().strip()
    return ""
