"""How a conversation becomes text, and where in that text the response stands.

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
import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from tisdpo_jax.data import jinja
from tisdpo_jax.data.records import Message, Unusable, as_fields, settings_of, strings, turns_of
from tisdpo_jax.data.unread import unread_in_answer, unread_names
from tisdpo_jax.errors import ConfigError

Tokenizer = Any  # a fast tokenizer of transformers; not named, so that transformers need not be imported

PLACEHOLDER = "@response@placeholder@"
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
THINK = ("<think>", "</think>")


class Write(Protocol):
    """A conversation as text; with `generation`, followed by what asks for an answer."""

    def __call__(self, messages: Sequence[Message], generation: bool = False) -> str: ...


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
    reads: jinja.Reads
    asks: bool  # whether it writes something for `add_generation_prompt`
    sources: tuple[str, ...]  # jinja sources, that for tools last; ("hh",) for the built-in one
    source: str  # Jinja that writes the same in any program: what an export carries

    @property
    def identity(self) -> str:
        """Hex digest of what it writes with, wherever that comes from: equal for equal sources, on the same date."""
        return hashlib.sha256(json.dumps([self.sources, jinja.PINNED_DATE]).encode()).hexdigest()


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


def open_template(choice: str, tokenizer: Tokenizer) -> Template:
    """The template that `data.template` names: "auto", "hh", or the path of a jinja file.

    Raises:
        ConfigError: the tokenizer is not a fast one or has no chat template, the file does not exist or is
            not valid, the template leaves out the response, or does not write the same text every time.
    """
    called = tokenizer_name(tokenizer)
    if not getattr(tokenizer, "is_fast", False):
        raise ConfigError(f"tokenizer {called}: is not a fast tokenizer (tokenizer.json); character offsets need one")
    name, sources = ("hh", ("hh",)) if choice == "hh" else _sources(choice, tokenizer, called)
    try:
        write = write_hh if choice == "hh" else _writer(tokenizer, sources)
        named = [jinja.Reads(frozenset(), frozenset())] if choice == "hh" else [*map(jinja.reads, sources)]
        skeleton = write([Message("user", "a"), Message("assistant", PLACEHOLDER)])
        drawn = "" if choice == "hh" else next(filter(None, map(jinja.draws, sources)), "")
    except Exception as error:  # whatever jinja code of a stranger raises
        raise ConfigError(f"data.template {name}: fails on a plain conversation: {error}") from None
    if drawn:
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
    written = {token for token in plain if token in skeleton}
    markup = {token for token in plain if _partner(token) in plain} | set(THINK)
    steering = special | written | (HH_MARKS if choice == "hh" else set())
    template = Template(
        name=name,
        write=write,
        special=tuple(sorted(special)),
        forbidden=_any_of(steering),
        forbidden_in_answers=_any_of(steering - (markup - special)),
        markup=_any_of(markup - special),
        eos=tokenizer.eos_token or "",
        reads=jinja.Reads(*(frozenset().union(*parts) for parts in zip(*named, strict=True))),
        asks=_asks(write),
        sources=sources,
        source=hh_source(tokenizer) if choice == "hh" else sources[0],
    )
    if not template.eos and not _first_special(template, skeleton.split(PLACEHOLDER)[1]):
        raise ConfigError(
            f"tokenizer {called}: has no eos_token, and template {name} ends the response with none; set eos_token"
        )
    return template


def tokenizer_name(tokenizer: Tokenizer) -> str:
    return str(getattr(tokenizer, "name_or_path", "") or type(tokenizer).__name__)


def write_hh(messages: Sequence[Message], generation: bool = False) -> str:
    """Plain text of the HH transcripts: '{system}\\n\\nHuman: x\\n\\nAssistant: y'."""
    names = {"system": "", "user": "\n\nHuman: ", "assistant": "\n\nAssistant: "}
    turns = turns_of(messages)
    for message in turns:
        if message.role not in names:
            raise ValueError(f"template hh has no turn of the {message.role}")
    text = "".join(names[message.role] + message.content for message in turns)
    return text + "\n\nAssistant:" if generation else text


def hh_source(tokenizer: Tokenizer) -> str:
    """`write_hh` as a chat template, for programs that have nothing else; with BOS where the tokenizer adds one."""
    bos = tokenizer.bos_token_id
    adds_bos = bos is not None and tokenizer("a").input_ids[:1] == [bos]
    return ("{{ bos_token }}" if adds_bos else "") + HH_SOURCE


def _sources(choice: str, tokenizer: Tokenizer, called: str) -> tuple[str, tuple[str, ...]]:
    """Name and jinja sources: that of plain conversations and, where a tokenizer has two, that for tools."""
    if choice == "auto":
        try:
            found = [tokenizer.get_chat_template(), tokenizer.get_chat_template(tools=[{}])]
        except ValueError:
            raise ConfigError(
                f"tokenizer {called}: has no chat template; set data.template to hh or to a jinja file"
            ) from None
        return f"auto (of {called})", tuple(dict.fromkeys(found))
    path = Path(choice)
    if not path.is_file():
        raise ConfigError(f"data.template {choice}: no such file; it must be auto, hh or the path of a jinja file")
    try:
        return choice, (path.read_text(encoding="utf-8"),)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"data.template {choice}: cannot be read as UTF-8 text: {error}") from None


def _writer(tokenizer: Tokenizer, sources: Sequence[str]) -> Write:
    pinned = [jinja.pin_date(source) for source in sources]

    def write(messages: Sequence[Message], generation: bool = False) -> str:
        settings = settings_of(messages)
        options = {**settings.get("chat_template_kwargs", {}), "add_generation_prompt": generation}
        if "tools" in settings:
            options["tools"] = settings["tools"]
        turns = [as_fields(message) for message in turns_of(messages)]
        return jinja.render_jinja(tokenizer, pinned[-1 if "tools" in settings else 0], turns, options)

    return write


def _asks(write: Write) -> bool:
    turn = [Message("user", "a")]
    try:
        return write(turn, generation=True) != write(turn)
    except Exception:  # whatever jinja code of a stranger raises
        return False


def _partner(token: str) -> str:
    """`</think>` for `<think>` and the other way round, square brackets too; "" for what is no such mark."""
    found = re.fullmatch(r"([<\[])(/?)(\w[\w:.-]*)([>\]])", token)
    return f"{found[1]}{'' if found[2] else '/'}{found[3]}{found[4]}" if found else ""


def check_marks(template: Template, text: str, name: str, *, answer: bool = False) -> None:
    """Refuse text that would be read as special tokens, or as turns of its own; answers may hold think blocks."""
    found = (template.forbidden_in_answers if answer else template.forbidden).search(text)
    if found:
        raise Unusable("special token in text", f"{found.group()!r} at character {found.start()} of {name}")


def check_message(template: Template, message: Message, name: str = "") -> None:
    """`check_marks` of all that a message says."""
    answer, settings = message.role == "assistant", settings_of([message])
    name = name or (f"'{message.role}'" if settings else f"a turn of the {message.role}")
    for text in strings(settings or [message.content, message.fields]):
        check_marks(template, text, name, answer=answer)


def _any_of(texts: set[str]) -> re.Pattern[str]:
    longest_first = sorted(texts, key=lambda text: (-len(text), text))
    return re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")


def takes_system(template: Template) -> bool:
    """Whether the template writes a system turn: some raise, some leave it out."""
    probe = "@system@placeholder@"
    try:
        return probe in template.write([Message("system", probe), Message("user", "a"), Message("assistant", "b")])
    except Exception:  # whatever jinja code of a stranger raises
        return False


def frame(template: Template, messages: Sequence[Message]) -> Frame:
    """What stands before and after the response to this conversation.

    Raises: Unusable when the template cannot write the conversation, or leaves out something that the record says.
    """
    ending = Message("assistant", PLACEHOLDER)
    text = _write(template, [*messages, ending])
    if text.count(PLACEHOLDER) != 1:
        raise Unusable("template breaks the record", "it does not write the response exactly once")
    before, _, tail = text.partition(PLACEHOLDER)
    head = _write(template, messages, generation=True) if template.asks else before
    for message in turns_of(messages):
        # Templates may trim a turn, and strip the reasoning from earlier answers; they may not lose what was said.
        if not _stands_in(template, message, head):
            raise Unusable("template breaks the record", f"it leaves out or alters a turn of the {message.role}")
    return Frame(head, before, tail, unread_names(template, messages, ending))


def _stands_in(template: Template, message: Message, head: str) -> bool:
    content = message.content
    if message.role == "assistant":
        content = template.markup.split(content)[-1]
    if content.strip() in head:
        return True
    # Llama 3.1 writes what a tool said as JSON
    quoted = [json.dumps(content.strip(), ensure_ascii=ascii)[1:-1] for ascii in (True, False)]
    return message.role == "tool" and any(text in head for text in quoted)


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
    answer = Message("assistant", response, extra)
    text = _write(template, [*messages, answer])
    before, tail = around.before, around.tail
    body = text[len(before) : len(text) - len(tail)]
    start = min(_common(text, around.head), len(around.head.rstrip(" ")))
    if not _stands_in(template, turns_of(messages)[-1], around.head[:start]):
        raise Unusable("template breaks the record", "it writes the turns otherwise where it asks for an answer")
    if text == before + body + tail and body.strip() == response.strip() and body in response and not extra:
        closing = _closing(template, tail)
        ending = tail[: tail.index(closing) + len(closing)] if closing else tail.rstrip() + template.eos
        return Rendered(before + body + ending, start)
    if not extra and not template.markup.search(response):
        raise Unusable("template breaks the record", "it alters the response, or what stands around it")
    text, close = _cut(template, text, tail)
    _check_rewritten(template, text[start:close], response, bool(extra))
    return Rendered(text, start, unread_in_answer(template, messages, answer))


def _cut(template: Template, text: str, tail: str) -> tuple[str, int]:
    """A conversation up to its end of turn, where the tail may be another, and where the last answer ends in it."""
    closing = _closing(template, tail)
    ending = tail[tail.index(closing) :] if closing else tail
    if text.endswith(ending):
        close = len(text) - len(ending)
        return text[:close] + (closing or ending.rstrip() + template.eos), close
    text = text.rstrip()  # Llama 3.1 ends a call of a built-in tool with another token
    last = max((token for token in template.special if text.endswith(token)), key=len, default="")
    if not last:
        raise Unusable("template breaks the record", "it alters what ends the response")
    return text, len(text) - len(last)


def _check_rewritten(template: Template, written: str, response: str, more: bool) -> None:
    """Of a response with think blocks or other fields: all its text must be there in order, and nothing foreign."""
    place, left = 0, []
    for piece in filter(None, (piece.strip() for piece in template.markup.split(response))):
        at = written.find(piece, place)
        if at < 0:
            raise Unusable(
                "template breaks the record",
                f"it leaves out or alters {piece[:30]!r} of the response; choose a template that writes it",
            )
        left.append(written[place:at])
        place = at + len(piece)
    left.append(written[place:])
    if not more and template.markup.sub("", "".join(left)).strip():
        raise Unusable("template breaks the record", "it alters the response, or what stands around it")


def _common(first: str, second: str) -> int:
    """Number of characters with which both begin."""
    if first.startswith(second):
        return len(second)
    return next((at for at, pair in enumerate(zip(first, second, strict=False)) if pair[0] != pair[1]), len(first))


def turn_end(template: Template, gap: str) -> int:
    """Length of what closes a turn, in the text between it and the content of the next."""
    end_token = _first_special(template, gap)
    if not end_token:
        return len(gap)
    end = gap.index(end_token) + len(end_token)
    return end + len(gap[end:]) - len(gap[end:].lstrip())


def _write(template: Template, messages: Sequence[Message], generation: bool = False) -> str:
    try:
        return template.write(messages, generation)
    except Exception as error:  # whatever jinja code of a stranger raises
        raise Unusable("template breaks the record", str(error) or type(error).__name__) from None


def _closing(template: Template, tail: str) -> str:
    """The end-of-turn token behind a response, and those that follow it at once (Command R7B writes two)."""
    closing = _first_special(template, tail)
    while closing:
        rest = tail[tail.index(closing) + len(closing) :]
        following = _first_special(template, rest)
        if not following or not rest.startswith(following):
            break
        closing += following
    return closing


def _first_special(template: Template, tail: str) -> str:
    found = [(tail.index(token), -len(token), token) for token in template.special if token in tail]
    return min(found)[2] if found else ""
