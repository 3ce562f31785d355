"""Chat templates: opened once, checked, and bound to the special tokens of one tokenizer.

A template may write today's date. Training, sampling and every later run must see the same tokens, so all is
rendered on `PINNED_DATE`: as `date_string`, and from `strftime_now`, a function that transformers gives to templates
and that reads the clock. A macro of that name, put before the source, takes its place.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tisdpo_jax.data.records import Message, Unusable, as_record, turns_of
from tisdpo_jax.errors import ConfigError

Tokenizer = Any  # a fast tokenizer of transformers; not named, so that transformers need not be imported
Write = Callable[..., str]  # (messages, generation=False): as text; with `generation`, then what asks for an answer

PLACEHOLDER = "@response@placeholder@"
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
# "\ue000" stands for a sign that is not the beginning of a directive
_CLOCK = (
    "{% macro strftime_now(format) %}{% set texts = " + json.dumps(_DIRECTIVES) + " %}"
    "{% set parts = format.replace('%%', '\ue000').split('%') %}{{ parts[0] | replace('\ue000', '%') }}"
    "{% for part in parts[1:] %}{% set name = part[:2] if part[:1] == '-' else part[:1] %}"
    "{% if name not in texts %}{{ raise_exception('strftime_now: no such directive in ' + format) }}{% endif %}"
    "{{ texts[name] + part[name | length :] | replace('\ue000', '%') }}{% endfor %}{% endmacro %}\n"
)  # jinja takes the line break after the tag: what follows begins a line, as it did

HH_MARKS = {"\n\nHuman:", "\n\nAssistant:"}  # what `write_hh` begins a turn with
# Jinja for `write_hh`; where an answer is asked for it ends as the prompts that were trained do, without a blank
HH_SOURCE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'user' %}{{ '\\n\\nHuman: ' + message['content'] }}"
    "{% elif message['role'] == 'assistant' %}{{ '\\n\\nAssistant: ' + message['content'] }}"
    "{% elif message['role'] == 'system' %}{{ message['content'] }}"
    "{% else %}{{ raise_exception('no role ' + message['role'] + ' in this template') }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '\\n\\nAssistant:' }}{% endif %}"
)


class Reads(NamedTuple):
    """What the sources of a template mention, comments and plain text left out."""

    variables: frozenset[str]  # outside of strings
    fields: frozenset[str]  # and as strings, as in message['tool_calls']
    draws: str  # what makes it write other text every time, or ""


@dataclasses.dataclass(frozen=True)
class Template:
    """A way of writing conversations, bound to the special tokens of one tokenizer."""

    name: str
    write: Write
    special: tuple[str, ...]  # special tokens of the tokenizer, as text
    forbidden: re.Pattern[str]  # strings that steer model or template; text of records must not hold them
    forbidden_in_answers: re.Pattern[str]  # the same without the marks of think blocks and their kind
    markup: re.Pattern[str]  # those marks
    eos: str  # "" where the tokenizer has none
    reads: Reads
    asks: bool  # whether it writes something for `add_generation_prompt`
    sources: tuple[str, ...]  # jinja sources, that for tools last; ("hh",) for the built-in one
    source: str  # Jinja that writes the same in any program: what an export carries

    @property
    def identity(self) -> str:
        """Hex digest of what it writes with, wherever that comes from: equal for equal sources, on the same date."""
        return hashlib.sha256(json.dumps([self.sources, PINNED_DATE]).encode()).hexdigest()

    def first_special(self, text: str) -> str:
        """The special token that stands first in a text; "" where there is none."""
        places = [(text.index(token), -len(token), token) for token in self.special if token in text]
        return min(places)[2] if places else ""


def open_template(choice: str, tokenizer: Tokenizer) -> Template:
    """The template that `data.template` names: "auto", "hh", or the path of a jinja file.

    Raises:
        ConfigError: the tokenizer is not a fast one or has no chat template, the file does not exist or is
            not valid, the template leaves out the response, or does not write the same text every time.
    """
    called = str(getattr(tokenizer, "name_or_path", "") or type(tokenizer).__name__)
    if not getattr(tokenizer, "is_fast", False):
        raise ConfigError(f"tokenizer {called}: is not a fast tokenizer (tokenizer.json); character offsets need one")
    name, sources = _sources(choice, tokenizer, called)
    try:
        write = write_hh if choice == "hh" else _writer(tokenizer, sources)
        mentioned = [_reads(source) for source in sources]
        skeleton = write([Message("user", "a"), Message("assistant", PLACEHOLDER)])
    except Exception as error:  # whatever jinja code of a stranger raises
        raise ConfigError(f"data.template {name}: fails on a plain conversation: {error}") from None
    variables, fields, draws = zip(*mentioned, strict=True)
    if drawn := next(filter(None, draws), ""):
        raise ConfigError(f"data.template {name}: uses {drawn!r}, and so writes other text every time; take it out")
    if skeleton.count(PLACEHOLDER) != 1:
        raise ConfigError(
            f"data.template {name}: writes the assistant's last turn {skeleton.count(PLACEHOLDER)} times, not once; "
            "there would be no response to train on"
        )
    added = getattr(tokenizer, "added_tokens_decoder", {}).values()
    special = {token.content for token in added if token.special} | set(tokenizer.all_special_tokens)
    special = {token for token in special if token.strip()}
    plain = {token.content for token in added if token.content.strip()} - special
    # An added token that the template writes steers the model even if the tokenizer does not call it special.
    steering = special | {token for token in plain if token in skeleton} | (HH_MARKS if choice == "hh" else set())
    markup = ({token for token in plain if _partner(token) in plain} | {"<think>", "</think>"}) - special
    asked, left = (attempt(write, [Message("user", "a")], generation) for generation in (True, False))
    template = Template(
        name=name,
        write=write,
        special=tuple(sorted(special)),
        forbidden=_any_of(steering),
        forbidden_in_answers=_any_of(steering - markup),
        markup=_any_of(markup),
        eos=tokenizer.eos_token or "",
        reads=Reads(frozenset().union(*variables), frozenset().union(*fields), ""),
        asks=None not in (asked, left) and asked != left,
        sources=sources,
        source=("{{ bos_token }}" if adds_bos(tokenizer) else "") + HH_SOURCE if choice == "hh" else sources[0],
    )
    if not template.eos and not template.first_special(skeleton.split(PLACEHOLDER)[1]):
        raise ConfigError(
            f"tokenizer {called}: has no eos_token, and template {name} ends the response with none; set eos_token"
        )
    return template


def _sources(choice: str, tokenizer: Tokenizer, called: str) -> tuple[str, tuple[str, ...]]:
    """Name and jinja sources: that of plain conversations and, where a tokenizer has two, that for tools."""
    if choice == "hh":
        return choice, (choice,)
    if choice == "auto":
        try:
            both = [tokenizer.get_chat_template(), tokenizer.get_chat_template(tools=[{}])]
        except ValueError:
            raise ConfigError(
                f"tokenizer {called}: has no chat template; set data.template to hh or to a jinja file"
            ) from None
        return f"auto (of {called})", tuple(dict.fromkeys(both))
    if not Path(choice).is_file():
        raise ConfigError(f"data.template {choice}: no such file; it must be auto, hh or the path of a jinja file")
    try:
        return choice, (Path(choice).read_text(encoding="utf-8"),)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"data.template {choice}: cannot be read as UTF-8 text: {error}") from None


def _reads(source: str) -> Reads:
    from jinja2 import Environment

    tokens = [(kind, value) for _, kind, value in Environment().lex(source) if kind != "whitespace"]
    variables = frozenset(value for kind, value in tokens if kind == "name")
    strings = {value[1:-1] for kind, value in tokens if kind == "string"}
    draws = ("random" for one, two in itertools.pairwise(tokens) if one[1] == "|" and two[1] == "random")
    return Reads(variables, variables | strings, "lipsum" if "lipsum" in variables else next(draws, ""))


def _writer(tokenizer: Tokenizer, sources: Sequence[str]) -> Write:
    pinned = [_CLOCK + source if "strftime_now" in _reads(source).variables else source for source in sources]

    def write(messages: Sequence[Message], generation: bool = False) -> str:
        record = as_record(messages)
        options = {"date_string": PINNED_DATE, **record.pop("chat_template_kwargs", {})}
        source = pinned[-1 if "tools" in record else 0]
        options |= {"chat_template": source, "add_generation_prompt": generation, "tokenize": False}
        return str(tokenizer.apply_chat_template(record.pop("messages"), **record, **options))

    return write


def write_hh(messages: Sequence[Message], generation: bool = False) -> str:
    """Plain text of the HH transcripts: '{system}\\n\\nHuman: x\\n\\nAssistant: y'."""
    names = {"system": "", "user": "\n\nHuman: ", "assistant": "\n\nAssistant: "}
    turns = turns_of(messages)
    for message in turns:
        if message.role not in names:
            raise ValueError(f"template hh has no turn of the {message.role}")
    text = "".join(names[message.role] + message.content for message in turns)
    return text + "\n\nAssistant:" if generation else text


def attempt(write: Write, messages: Sequence[Message], generation: bool = False) -> str | None:
    """The conversation as text, or None where the template refuses it."""
    try:
        return write(messages, generation)
    except Exception:  # whatever jinja code of a stranger raises
        return None


def takes_system(template: Template) -> bool:
    """Whether the template writes a system turn: some raise, some leave it out."""
    probe = "@system@placeholder@"
    turns = [Message("system", probe), Message("user", "a"), Message("assistant", "b")]
    return probe in (attempt(template.write, turns) or "")


def _partner(token: str) -> str:
    """`</think>` for `<think>` and the other way round, square brackets too; "" for what is no such mark."""
    mark = re.fullmatch(r"([<\[])(/?)(\w[\w:.-]*)([>\]])", token)
    return f"{mark[1]}{'' if mark[2] else '/'}{mark[3]}{mark[4]}" if mark else ""


def _any_of(texts: set[str]) -> re.Pattern[str]:
    longest_first = sorted(texts, key=lambda text: (-len(text), text))
    return re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")


def check_marks(template: Template, text: str, name: str, *, answer: bool = False) -> None:
    """Refuse text that would be read as special tokens, or as turns of its own; answers may hold think blocks."""
    mark = (template.forbidden_in_answers if answer else template.forbidden).search(text)
    if mark:
        raise Unusable("special token in text", f"{mark.group()!r} at character {mark.start()} of {name}")


def check_message(template: Template, message: Message, name: str = "") -> None:
    """`check_marks` of all that a message says."""
    for text in message.texts():
        check_marks(template, text, name or message.called, answer=message.role == "assistant")


def adds_bos(tokenizer: Tokenizer) -> bool:
    """Whether plain calls of the tokenizer put its BOS token before the text."""
    bos = tokenizer.bos_token_id
    return bos is not None and tokenizer("a").input_ids[:1] == [bos]


def tokenizer_identity(tokenizer: Tokenizer) -> str:
    """Hex digest of a fast tokenizer's vocabulary, merges, added and special tokens, normaliser and chat template.

    Equal for equal content under whatever name or path. Settings of a call that tokenizers keep (padding,
    truncation) are left out.
    """
    content = json.loads(tokenizer.backend_tokenizer.to_str())
    content = {name: value for name, value in content.items() if name not in ("padding", "truncation")}
    special = {name: str(value) for name, value in tokenizer.special_tokens_map.items()}
    template = getattr(tokenizer, "chat_template", None)
    text = json.dumps([content, special, template], sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()
