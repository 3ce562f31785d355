"""From one record of a file to a `Pair` or a `Prompt`, for each layout that preference data comes in.

    pairs     {"prompt" | "messages", "chosen", "rejected"[, "id", "margin", "strength", "chosen_weights", ...]}
    hh        whole transcripts "\\n\\nHuman: ...\\n\\nAssistant: ..." under "chosen" and "rejected"
    sharegpt  "conversations" of {"from", "value"}, one such answer under "chosen" and "rejected"
    hf        lists of {"role", "content"} under "chosen" and "rejected", with or without a "prompt"

Each may hold "tools" and "chat_template_kwargs" too, which reach the template. A prompt is always made of whole
messages: never the longest common text of two answers, which would take their shared first words away from them.

No field is passed over in silence: those of `FIELDS` and `EVERYWHERE` are read, those of `STEERING` would tell the
model something and are refused where nothing reads them, and any other (a score, a source) is counted; the layout
`pairs`, which is this package's own, refuses those as well.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from tisdpo_jax.data.checks import HH_TURN, check_one_turn, check_pair, check_turns
from tisdpo_jax.data.fields import (
    read_group,
    read_id,
    read_messages,
    read_number,
    read_numbers,
    read_settings,
    read_strength,
    text_field,
)
from tisdpo_jax.data.records import Message, Pair, Prompt, Unusable, says_nothing

EVERYWHERE = (
    *("id", "margin", "strength", "chosen_weights", "rejected_weights"),
    *("tools", "chat_template_kwargs"),
)
FIELDS = {
    "pairs": ("prompt", "messages", "chosen", "rejected"),
    "hh": ("chosen", "rejected", "prompt"),
    "sharegpt": ("conversations", "chosen", "rejected", "system"),
    "hf": ("prompt", "messages", "chosen", "rejected"),
}
STEERING = frozenset(
    (
        *("system", "system_prompt", "system_message", "instruction", "instructions", "input", "context", "history"),
        *("prompt", "messages", "conversations", "documents", "functions", "function_call", "tool_calls"),
        *("tool_choice", "reasoning", "reasoning_content", "thinking", "response_format"),
        *("weight", "weights", "loss_mask"),
        *("image", "images", "video", "videos", "audio", "audios", "file", "files"),
    )
)


class Preference(NamedTuple):
    """What a record says: the conversation, and its two answers as messages of the assistant."""

    messages: list[Message]
    chosen: Message
    rejected: Message


def detect_layout(record: Any) -> str | None:
    """The layout whose fields this record has; None where it has those of no layout."""
    if not isinstance(record, Mapping) or record.get("chosen") is None or record.get("rejected") is None:
        return None
    if record.get("conversations") is not None:
        return "sharegpt"
    chosen, rejected, prompt = record["chosen"], record["rejected"], record.get("prompt")
    if not isinstance(chosen, str) or not isinstance(rejected, str):
        return "hf"
    if record.get("messages") is None and HH_TURN.match(chosen) and HH_TURN.match(rejected):
        return "hh"
    if isinstance(prompt, str) or record.get("messages") is not None:
        return "pairs"
    return None if prompt is None else "hf"


def read_record(record: Any, layout: str, *, origin: str, default_id: str, group_field: str = "") -> Pair:
    """The pair that a record holds, checked; `Unusable` says why there is none. `group_field` names its subset."""
    record = _object(record)
    group = read_group(record, group_field) if group_field else None
    said = READERS[layout](record)
    messages = _with_settings(record, said.messages)
    for side, answer in (("chosen", said.chosen), ("rejected", said.rejected)):
        check_one_turn(answer.content, side)
    pair = Pair(
        id=read_id(record, default_id),
        messages=messages,
        chosen=said.chosen.content,
        rejected=said.rejected.content,
        origin=origin,
        margin=read_number(record, "margin"),
        strength=read_strength(record),
        chosen_weights=read_numbers(record, "chosen_weights"),
        rejected_weights=read_numbers(record, "rejected_weights"),
        group=group,
        chosen_extra=said.chosen.extra,
        rejected_extra=said.rejected.extra,
        unread=_unread(record, layout, group_field, [*messages, said.chosen, said.rejected], strict=layout == "pairs"),
    )
    check_pair(pair)
    return pair


def read_prompt(record: Any, *, origin: str, default_id: str) -> tuple[Prompt, tuple[str, ...]]:
    """The prompt of a record, and the names of its fields that nothing reads; its answers are not looked at."""
    name, unread = default_id, tuple[str, ...]()
    if isinstance(record, str):
        check_one_turn(record, "the text")
        messages: tuple[Message, ...] = (Message("user", record),)
    else:
        record = _object(record)
        name, layout = read_id(record, default_id), detect_layout(record)
        if layout is None or layout == "pairs":
            layout = "pairs" if isinstance(record.get("prompt"), str | None) else "hf"
            messages = _with_settings(record, _prompt_turns(record))
        else:
            messages = _with_settings(record, READERS[layout](record).messages)
        unread = _unread({**record, "chosen": None, "rejected": None}, layout, "", messages, strict=False)
    check_turns(messages)
    return Prompt(name, messages, origin), unread


def _object(record: Any) -> Mapping[str, Any]:
    if not isinstance(record, Mapping):
        raise Unusable("not an object", f"a {type(record).__name__} stands where fields are expected")
    return record


def _with_settings(record: Mapping[str, Any], messages: Sequence[Message]) -> tuple[Message, ...]:
    """The conversation with the record's settings before it; `Unusable` where a turn of the user is a transcript."""
    for message in messages:
        if message.role == "user":
            check_one_turn(message.content, "a turn of the user")
    return (*read_settings(record), *messages)


def _unread(
    record: Mapping[str, Any], layout: str, group_field: str, messages: Sequence[Message], *, strict: bool
) -> tuple[str, ...]:
    """Fields that nothing reads and that say nothing to the model; `Unusable` for one that would.

    A text that stands in the conversation word for word is a copy, and may have any name; `strict` refuses all.
    """
    known = {*EVERYWHERE, *FIELDS[layout], group_field}
    unread = {str(name): value for name, value in record.items() if name not in known and not says_nothing(value)}
    texts = {message.content.strip() for message in messages}
    for name, value in unread.items():
        if strict:
            near = difflib.get_close_matches(name, (*EVERYWHERE, *FIELDS[layout]), n=1)
            raise Unusable("unknown field", f"{name!r}" + (f", did you mean {near[0]!r}?" if near else ""))
        if name in STEERING and not (isinstance(value, str) and value.strip() in texts):
            raise Unusable("unread field", f"{name!r}, which layout {layout} does not read; put it into the messages")
    return tuple(unread)


def _prompt_turns(record: Mapping[str, Any]) -> list[Message]:
    """What "prompt" (text or messages) or "messages" says, of which a record has one."""
    prompt, messages = record.get("prompt"), record.get("messages")
    if (prompt is None) == (messages is None):
        raise Unusable("missing field", "one of 'prompt' and 'messages' is needed, and only one")
    return _turns(prompt, "prompt", "user") if messages is None else read_messages(messages, "messages")


def _turns(value: Any, field: str, role: str) -> list[Message]:
    """A text as a turn of this role, a message, or a list of messages."""
    if isinstance(value, str):
        return [Message(role, value)]
    return read_messages([value] if isinstance(value, Mapping) and role == "assistant" else value, field)


def _answers(record: Mapping[str, Any]) -> tuple[list[Message], list[Message]]:
    return _turns(record.get("chosen"), "chosen", "assistant"), _turns(record.get("rejected"), "rejected", "assistant")


def _read_pairs(record: Mapping[str, Any]) -> Preference:
    if record.get("prompt") is not None:
        text_field(record, "prompt")
    turns = _prompt_turns(record)
    return Preference(turns, *(Message("assistant", text_field(record, side)) for side in ("chosen", "rejected")))


def _read_hh(record: Mapping[str, Any]) -> Preference:
    preference = _join([], *(_transcript(text_field(record, side), side) for side in ("chosen", "rejected")))
    if record.get("prompt") is not None:
        prompt = text_field(record, "prompt").strip()
        begins = all(record[side].strip().startswith(prompt) for side in ("chosen", "rejected"))
        if not begins and prompt not in [message.content for message in preference.messages[-1:]]:
            raise Unusable("prompts differ", "the field 'prompt' is not how 'chosen' and 'rejected' begin")
    return preference


def _transcript(text: str, side: str) -> list[Message]:
    before, *parts = HH_TURN.split(text)
    if before.strip() or not parts:
        raise Unusable("not a transcript", f"{side} does not begin with '\\n\\nHuman:'")
    roles = {"Human": "user", "Assistant": "assistant"}
    return [Message(roles[who], said.strip()) for who, said in zip(parts[::2], parts[1::2], strict=True)]


def _read_sharegpt(record: Mapping[str, Any]) -> Preference:
    turns = read_messages(record.get("conversations"), "conversations")
    if not says_nothing(record.get("system")):
        turns = [Message("system", text_field(record, "system")), *turns]
    return _join(turns, *_answers(record))


def _read_hf(record: Mapping[str, Any]) -> Preference:
    chosen, rejected = _answers(record)
    whole = any(message.role == "user" for message in chosen + rejected)
    messages = [] if record.get("messages") is None else read_messages(record["messages"], "messages")
    if record.get("prompt") is None and messages and not whole:
        return _join(messages, chosen, rejected)
    turns = [] if record.get("prompt") is None else _turns(record["prompt"], "prompt", "user")
    preference = _join([] if whole else turns, chosen, rejected)
    both = preference.messages
    # The lists hold the whole conversation (UltraFeedback); the prompt field must then be part of it.
    if whole and turns and both[-len(turns) :] != turns and both[: len(turns)] != turns:
        raise Unusable("prompts differ", "the field 'prompt' is not the prompt that 'chosen' and 'rejected' hold")
    if messages and messages not in (both, [*both, preference.chosen], [*both, preference.rejected]):
        raise Unusable("prompts differ", "the field 'messages' is another conversation than that of 'chosen'")
    return preference


def _join(turns: list[Message], chosen: list[Message], rejected: list[Message]) -> Preference:
    """Prompt and answers from two lists that agree in all messages but the last."""
    for side, messages in (("chosen", chosen), ("rejected", rejected)):
        if not messages or messages[-1].role != "assistant":
            raise Unusable("turn order", f"{side} does not end with a turn of the assistant")
    if chosen[:-1] != rejected[:-1]:
        raise Unusable("prompts differ", "chosen and rejected part before their last turn")
    return Preference(turns + chosen[:-1], chosen[-1], rejected[-1])


Reader = Callable[[Mapping[str, Any]], Preference]
READERS: dict[str, Reader] = {"pairs": _read_pairs, "hh": _read_hh, "sharegpt": _read_sharegpt, "hf": _read_hf}
