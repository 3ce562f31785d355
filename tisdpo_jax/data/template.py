"""How a conversation becomes text, and where in that text the response stands.

The template is applied once to the whole conversation, the response included. What it writes around
the response is found by writing a placeholder in its stead, so nothing is assumed about the template;
a template that changes the response, or shows it never or twice, is refused.

The response span runs from where the model has to begin writing to the end-of-turn token, which is
part of it. Blanks that the template puts before the response belong to the response (Llama 2 writes
"[/INST] Sure": the model answers with the token "_Sure"); what stands after the end-of-turn token
is dropped. Where the template writes no special token after the response, the EOS of the tokenizer
is appended.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tisdpo_jax.data.records import Message, Unusable
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
PINNED_DATE = "26 Jul 2024"  # templates that write today's date (Llama 3) must write the same one when a run resumes


@dataclasses.dataclass(frozen=True)
class Template:
    """A way of writing conversations, bound to the special tokens of one tokenizer."""

    name: str
    write: Callable[[Sequence[Message]], str]  # a whole conversation, without a generation prompt
    special: tuple[str, ...]  # special tokens of the tokenizer, as text
    forbidden: re.Pattern[str]  # strings that steer model or template; text of records must not hold them
    eos: str  # "" where the tokenizer has none
    source: str  # Jinja that writes the same in any program: what an export carries


class Frame(NamedTuple):
    """What a template writes around the response to a conversation."""

    head: str
    tail: str


class Rendered(NamedTuple):
    """A whole conversation as text. The response, its end-of-turn token included, is `text[start:]`."""

    text: str
    start: int


def open_template(choice: str, tokenizer: Tokenizer) -> Template:
    """The template that `data.template` names: "auto", "hh", or the path of a jinja file.

    Raises:
        ConfigError: the tokenizer is not a fast one or has no chat template, the file does not exist or is
            not valid, or the template leaves out the response.
    """
    called = tokenizer_name(tokenizer)
    if not getattr(tokenizer, "is_fast", False):
        raise ConfigError(f"tokenizer {called}: is not a fast tokenizer (tokenizer.json); character offsets need one")
    name, source, write = (
        ("hh", hh_source(tokenizer), write_hh) if choice == "hh" else _chat_template(choice, tokenizer, called)
    )
    added = getattr(tokenizer, "added_tokens_decoder", {}).values()
    special = {token.content for token in added if token.special} | set(tokenizer.all_special_tokens)
    special = {token for token in special if token.strip()}
    try:
        skeleton = write([Message("user", "a"), Message("assistant", PLACEHOLDER)])
    except Exception as error:  # whatever jinja code of a stranger raises
        raise ConfigError(f"data.template {name}: fails on a plain conversation: {error}") from None
    if skeleton.count(PLACEHOLDER) != 1:
        raise ConfigError(
            f"data.template {name}: writes the assistant's last turn {skeleton.count(PLACEHOLDER)} times, not once; "
            "there would be no response to train on"
        )
    # An added token that the template writes steers the model even if the tokenizer does not call it special.
    written = {token.content for token in added if token.content.strip() and token.content in skeleton}
    template = Template(
        name=name,
        write=write,
        special=tuple(sorted(special)),
        forbidden=_any_of(special | written | (HH_MARKS if choice == "hh" else set())),
        eos=tokenizer.eos_token or "",
        source=source,
    )
    if not template.eos and not _first_special(template, skeleton.split(PLACEHOLDER)[1]):
        raise ConfigError(
            f"tokenizer {called}: has no eos_token, and template {name} ends the response with none; set eos_token"
        )
    return template


def tokenizer_name(tokenizer: Tokenizer) -> str:
    return str(getattr(tokenizer, "name_or_path", "") or type(tokenizer).__name__)


def write_hh(messages: Sequence[Message]) -> str:
    """Plain text of the HH transcripts: '{system}\\n\\nHuman: x\\n\\nAssistant: y'."""
    names = {"system": "", "user": "\n\nHuman: ", "assistant": "\n\nAssistant: "}
    return "".join(names[message.role] + message.content for message in messages)


def hh_source(tokenizer: Tokenizer) -> str:
    """`write_hh` as a chat template, for programs that have nothing else; with BOS where the tokenizer adds one."""
    bos = tokenizer.bos_token_id
    adds_bos = bos is not None and tokenizer("a").input_ids[:1] == [bos]
    return ("{{ bos_token }}" if adds_bos else "") + HH_SOURCE


def _chat_template(
    choice: str, tokenizer: Tokenizer, called: str
) -> tuple[str, str, Callable[[Sequence[Message]], str]]:
    if choice == "auto":
        name = f"auto (of {called})"
        try:
            source = tokenizer.get_chat_template()
        except ValueError:
            raise ConfigError(
                f"tokenizer {called}: has no chat template; set data.template to hh or to a jinja file"
            ) from None
    else:
        name, path = choice, Path(choice)
        if not path.is_file():
            raise ConfigError(f"data.template {choice}: no such file; it must be auto, hh or the path of a jinja file")
        source = path.read_text(encoding="utf-8")

    def write(messages: Sequence[Message]) -> str:
        conversation = [{"role": message.role, "content": message.content} for message in messages]
        text = tokenizer.apply_chat_template(
            conversation, chat_template=source, tokenize=False, date_string=PINNED_DATE
        )
        return str(text)

    return name, source, write


def check_marks(template: Template, text: str, name: str) -> None:
    """Refuse text that would be read as special tokens, or as turns of its own."""
    found = template.forbidden.search(text)
    if found:
        raise Unusable("special token in text", f"{found.group()!r} at character {found.start()} of {name}")


def _any_of(strings: set[str]) -> re.Pattern[str]:
    longest_first = sorted(strings, key=lambda text: (-len(text), text))
    return re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")


def takes_system(template: Template) -> bool:
    """Whether the template writes a system turn: some raise, some leave it out."""
    probe = "@system@placeholder@"
    try:
        return probe in template.write([Message("system", probe), Message("user", "a"), Message("assistant", "b")])
    except Exception:  # whatever jinja code of a stranger raises
        return False


def frame(template: Template, messages: Sequence[Message]) -> Frame:
    """What stands before and after the response to this conversation."""
    text = _write(template, [*messages, Message("assistant", PLACEHOLDER)])
    if text.count(PLACEHOLDER) != 1:
        raise Unusable("template breaks the record", "it does not write the response exactly once")
    head, _, tail = text.partition(PLACEHOLDER)
    for message in messages:
        # Templates may trim a turn, and strip the reasoning from earlier answers; they may not lose what was said.
        if message.role != "assistant" and message.content.strip() not in head:
            raise Unusable("template breaks the record", f"it leaves out or alters a turn of the {message.role}")
    return Frame(head, tail)


def render(template: Template, around: Frame, messages: Sequence[Message], response: str) -> Rendered:
    """The conversation with its response, cut after the end-of-turn token."""
    text = _write(template, [*messages, Message("assistant", response)])
    body = text[len(around.head) : len(text) - len(around.tail)]
    if text != around.head + body + around.tail or body.strip() != response.strip() or body not in response:
        raise Unusable("template breaks the record", "it alters the response, or what stands around it")
    end_token = _first_special(template, around.tail)
    if end_token:
        ending = around.tail[: around.tail.index(end_token) + len(end_token)]
    else:
        ending = around.tail.rstrip() + template.eos
    return Rendered(around.head + body + ending, len(around.head.rstrip(" ")))


def turn_end(template: Template, gap: str) -> int:
    """Length of what closes a turn, in the text between it and the content of the next."""
    end_token = _first_special(template, gap)
    if not end_token:
        return len(gap)
    end = gap.index(end_token) + len(end_token)
    return end + len(gap[end:]) - len(gap[end:].lstrip())


def _write(template: Template, messages: Sequence[Message]) -> str:
    try:
        return template.write(messages)
    except Exception as error:  # whatever jinja code of a stranger raises
        raise Unusable("template breaks the record", str(error) or type(error).__name__) from None


def _first_special(template: Template, tail: str) -> str:
    found = [(tail.index(token), -len(token), token) for token in template.special if token in tail]
    return min(found)[2] if found else ""
