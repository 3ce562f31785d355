"""What a chat template's jinja source reads, and the one date on which it is rendered.

A template may write today's date. Training, sampling and every later run must see the same tokens, so all is
rendered on `PINNED_DATE`: as `date_string`, and from `strftime_now`, a function that transformers gives to templates
and that reads the clock. A macro of that name, put before the source, takes its place.
"""

from __future__ import annotations

import json
from typing import Any, NamedTuple

PINNED_DATE = "26 Jul 2024"
# What strftime writes on that Friday, at midnight UTC, in English.
_DIRECTIVES = {
    **{"a": "Fri", "A": "Friday", "b": "Jul", "B": "July", "h": "Jul", "C": "20", "d": "26", "e": "26", "-d": "26"},
    **{"m": "07", "-m": "7", "y": "24", "-y": "24", "Y": "2024", "G": "2024", "g": "24", "j": "208", "-j": "208"},
    **{"H": "00", "-H": "0", "k": " 0", "I": "12", "-I": "12", "l": "12", "M": "00", "-M": "0", "S": "00", "-S": "0"},
    **{"f": "000000", "p": "AM", "P": "am", "s": "1721952000", "z": "+0000", "Z": "UTC"},
    **{"u": "5", "w": "5", "U": "29", "W": "30", "V": "30", "n": "\n", "t": "\t"},
    **{"c": "Fri Jul 26 00:00:00 2024", "x": "07/26/24", "X": "00:00:00", "D": "07/26/24", "F": "2024-07-26"},
    **{"r": "12:00:00 AM", "R": "00:00", "T": "00:00:00"},
}
_PERCENT = "\ue000"  # stands for a sign that is not the beginning of a directive


class Reads(NamedTuple):
    """Names that a template's source mentions."""

    variables: frozenset[str]  # outside of strings
    fields: frozenset[str]  # and as strings, as in message['tool_calls']


def reads(source: str) -> Reads:
    """What the source mentions, comments and plain text left out. Raises what jinja raises of a bad source."""
    from jinja2 import Environment

    tokens = [(kind, value) for _, kind, value in Environment().lex(source)]
    variables = frozenset(value for kind, value in tokens if kind == "name")
    return Reads(variables, variables | {value[1:-1] for kind, value in tokens if kind == "string"})


def draws(source: str) -> str:
    """What makes this template write other text every time: the name of it, or ""."""
    from jinja2 import Environment

    tokens = [(kind, value) for _, kind, value in Environment().lex(source) if kind != "whitespace"]
    for (_, before), (kind, value) in zip([("", ""), *tokens], tokens, strict=False):
        if kind == "name" and (value == "lipsum" or (value == "random" and before == "|")):
            return value
    return ""


def pin_date(source: str) -> str:
    """The same source with `strftime_now` of `PINNED_DATE`; a directive that strftime has not is an error."""
    if "strftime_now" not in reads(source).variables:
        return source
    macro = (
        "{% macro strftime_now(format) %}{% set texts = " + json.dumps(_DIRECTIVES) + " %}"
        "{% set parts = format.replace('%%', PERCENT).split('%') %}{{ parts[0] | replace(PERCENT, '%') }}"
        "{% for part in parts[1:] %}{% set name = part[:2] if part[:1] == '-' else part[:1] %}"
        "{% if name not in texts %}{{ raise_exception('strftime_now: no such directive in ' + format) }}{% endif %}"
        "{{ texts[name] + part[name | length :] | replace(PERCENT, '%') }}{% endfor %}{% endmacro %}"
    ).replace("PERCENT", repr(_PERCENT))
    # jinja takes one line break after the tag: what follows begins a line, as it did
    return f"{macro}\n{source}"


def render_jinja(tokenizer: Any, source: str, conversation: list[dict[str, Any]], options: dict[str, Any]) -> str:
    """The conversation as `apply_chat_template` of the tokenizer writes it from a pinned source."""
    arguments = {"date_string": PINNED_DATE, **options}
    return str(tokenizer.apply_chat_template(conversation, chat_template=source, tokenize=False, **arguments))
