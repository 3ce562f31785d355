"""Prompts without answers: read from a file, and written the way training writes what stands before a response."""

from __future__ import annotations

import dataclasses
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tisdpo_jax.data.files import read_file
from tisdpo_jax.data.layouts import checked_turns, detect_layout, prompt_turns, read_conversation, unread_fields
from tisdpo_jax.data.records import InvalidRecord, Message, Unusable
from tisdpo_jax.data.template import Template, Tokenizer, check_message, frame
from tisdpo_jax.data.transcripts import check_one_turn
from tisdpo_jax.data.validation import check_turns, read_id
from tisdpo_jax.data.views import make_views, show_as

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Prompt:
    """A conversation that waits for an answer."""

    id: str
    messages: tuple[Message, ...]  # settings, a system turn or none, then the turns; the last is the user's or a tool's
    origin: str  # "file:line"

    @property
    def text(self) -> str:
        return conversation_text(self.messages)


def conversation_text(messages: Sequence[Message]) -> str:
    """For people and judges: the text of a single turn as it is, several turns with the name of who speaks."""
    shown = [message for message in messages if message.role != "chat_template_kwargs"]
    if len(shown) == 1 and not shown[0].extra:
        return shown[0].content
    return "\n\n".join(f"{message.role}: {message.content}{message.extra and ' ' + message.extra}" for message in shown)


def read_prompts(path: str, *, limit: int = 0) -> tuple[tuple[Prompt, ...], tuple[InvalidRecord, ...]]:
    """Prompts of a .jsonl, .jsonl.gz or .json file, and every record that holds none.

    A record is text, `{"prompt": text or messages}` or `{"messages": [{"role", "content"}, ...]}`, each with an
    optional "id", "tools" and "chat_template_kwargs", or a pair in any layout; its answers are not looked at.
    Columns that say nothing to a model are counted in the log; one that would, and that nothing reads, is refused.

    Raises: DataError for a file that is missing, empty or damaged as a whole.
    """
    prompts: list[Prompt] = []
    invalid: list[InvalidRecord] = []
    known: dict[str, str] = {}
    unread: Counter[str] = Counter()
    for row in read_file(Path(path).expanduser(), path, limit):
        origin = f"{path}:{row.place}"
        try:
            if isinstance(row.value, Unusable):
                raise row.value
            default = row.place.replace(" ", "-") if " " in row.place else f"line-{row.place}"
            name = read_id(row.value, default) if isinstance(row.value, Mapping) else default
            if name in known:
                raise Unusable("duplicate id", f"{name!r}, as at {known[name]}")
            messages, unknown = _messages(row.value)
            check_turns(messages)
        except Unusable as problem:
            invalid.append(InvalidRecord(origin, problem.reason, problem.detail))
            continue
        known[name] = origin
        prompts.append(Prompt(name, tuple(messages), origin))
        unread.update(unknown)
    for field, count in sorted(unread.items()):
        log.info("%s: %d records with %r, which nothing reads", path, count, field)
    return tuple(prompts), tuple(invalid)


def prompt_ids(
    messages: Sequence[Message], tokenizer: Tokenizer, template: Template, *, system: str = "", max_length: int
) -> npt.NDArray[np.int32]:
    """What a model reads before it answers; a prompt that is too long loses its beginning, but not its BOS token.

    Raises: Unusable when the template cannot write the conversation, or its text holds special tokens.
    """
    for message in messages:
        check_message(template, message)
    (view,) = make_views(system, None)
    # blanks before the response belong to it, as in `template.render`
    head = frame(template, show_as(view, messages)).head.rstrip(" ")
    ids = list(tokenizer(head, add_special_tokens=False).input_ids)
    bos = tokenizer.bos_token_id
    first = [bos] if bos is not None and (ids[:1] == [bos] or tokenizer("a").input_ids[:1] == [bos]) else []
    rest = ids[1:] if first and ids[:1] == first else ids
    return np.asarray([*first, *rest[-max(1, max_length - len(first)) :]], np.int32)


def _messages(record: Any) -> tuple[Sequence[Message], tuple[str, ...]]:
    """The conversation that a record holds, and the names of its fields that nothing reads."""
    if isinstance(record, str):
        check_one_turn(record, "the text")
        return [Message("user", record)], ()
    if not isinstance(record, Mapping):
        raise Unusable("not an object", f"a {type(record).__name__} stands where fields are expected")
    layout = detect_layout(record)
    if layout is None or layout == "pairs":  # answers, if there are any, are not looked at
        layout = "pairs" if isinstance(record.get("prompt"), str | None) else "hf"
        messages = checked_turns(record, prompt_turns(record))
    else:
        messages = read_conversation(record, layout).messages
    return messages, unread_fields({**record, "chosen": None, "rejected": None}, layout, "", messages, strict=False)
