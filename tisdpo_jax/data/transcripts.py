"""Text that holds turns of its own: a whole conversation where one turn is expected.

Such text is refused, since a template would write all of it as one turn of the user. A text counts as a transcript
when marks of the user *and* of the assistant stand in it, in this order and in one style, and either the first mark of
the user opens the text or a mark of the assistant closes it; marks in angle or square brackets need neither. What
begins as turns of the HH transcripts do ("\\n\\nHuman:") counts too. Text that only mentions a mark does not.
"""

from __future__ import annotations

import re

from tisdpo_jax.data.records import Unusable

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
_STYLES = tuple(
    (re.compile(user), re.compile(assistant), bracketed)
    for styles, bracketed in ((_WORDS, False), (_BRACKETS, True))
    for user, assistant in styles
)


def transcript_mark(text: str) -> str:
    """The first mark of the turns that this text holds; "" where it is one turn."""
    if opening := HH_TURN.match(text):
        return opening.group().strip()
    for user, assistant, bracketed in _STYLES:
        first = user.search(text)
        answers = list(assistant.finditer(text, first.end())) if first else []
        if first and answers:
            opens, closes = not text[: first.start()].strip(), not text[answers[-1].end() :].strip()
            if bracketed or opens or closes:
                return first.group().strip()
    return ""


def check_one_turn(text: str, name: str) -> None:
    """Refuse text that is a transcript."""
    if mark := transcript_mark(text):
        raise Unusable(
            "transcript in text",
            f"{name} holds turns of its own ({mark!r}); give them as messages, or as data.format hh expects them",
        )
