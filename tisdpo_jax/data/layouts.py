"""From one record of a file to a `Pair`, for each layout that preference data comes in.

    pairs     {"prompt" | "messages", "chosen", "rejected"[, "id", "margin", "chosen_weights", "rejected_weights"]}
    hh        whole transcripts "\\n\\nHuman: ...\\n\\nAssistant: ..." under "chosen" and "rejected"
    sharegpt  "conversations" of {"from", "value"}, one such answer under "chosen" and "rejected"
    hf        lists of {"role", "content"} under "chosen" and "rejected", with or without a "prompt"

A prompt is always made of whole messages: never the longest common text of two answers, which
would take their shared first words away from them.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tisdpo_jax.data.records import Message, Pair, Unusable
from tisdpo_jax.data.validation import check_pair, read_group, read_id, read_margin, read_weights

PAIRS_FIELDS = ("id", "prompt", "messages", "chosen", "rejected", "chosen_weights", "rejected_weights", "margin")
ROLES = {
    "system": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "model": "assistant",
    "bot": "assistant",
}
HH_TURN = re.compile(r"\n\n(Human|Assistant):")


def detect_layout(record: Any) -> str | None:
    """The layout whose fields this record has; None where it has those of no layout."""
    if not isinstance(record, Mapping) or record.get("chosen") is None or record.get("rejected") is None:
        return None
    if record.get("conversations") is not None:
        return "sharegpt"
    chosen, prompt = record["chosen"], record.get("prompt")
    if not isinstance(chosen, str) or not isinstance(record["rejected"], str):
        return "hf"
    if isinstance(prompt, str) or record.get("messages") is not None:
        return "pairs"
    if prompt is not None:
        return "hf"
    return "hh" if chosen.startswith("\n\nHuman:") else None


def read_record(record: Any, layout: str, *, origin: str, default_id: str, group_field: str = "") -> Pair:
    """The pair that a record holds, checked; `Unusable` says why there is none. `group_field` names its subset."""
    if not isinstance(record, Mapping):
        raise Unusable("not an object", f"a {type(record).__name__} stands where fields are expected")
    group = read_group(record, group_field) if group_field else None
    if layout == "pairs" and group_field:  # which else knows no such field
        record = {name: value for name, value in record.items() if name != group_field or name in PAIRS_FIELDS}
    messages, chosen, rejected = READERS[layout](record)
    pair = Pair(
        id=read_id(record, default_id),
        messages=tuple(messages),
        chosen=chosen,
        rejected=rejected,
        origin=origin,
        margin=read_margin(record),
        chosen_weights=read_weights(record, "chosen_weights"),
        rejected_weights=read_weights(record, "rejected_weights"),
        group=group,
    )
    check_pair(pair)
    return pair


def _read_pairs(record: Mapping[str, Any]) -> tuple[list[Message], str, str]:
    for name in record:
        if name not in PAIRS_FIELDS:
            near = difflib.get_close_matches(str(name), PAIRS_FIELDS, n=1)
            raise Unusable("unknown field", f"{name!r}" + (f", did you mean {near[0]!r}?" if near else ""))
    prompt, messages = record.get("prompt"), record.get("messages")
    if (prompt is None) == (messages is None):
        raise Unusable("missing field", "one of 'prompt' and 'messages' is needed, and only one")
    turns = [Message("user", _text(record, "prompt"))] if messages is None else _messages(messages, "messages")
    return turns, _text(record, "chosen"), _text(record, "rejected")


def _read_hh(record: Mapping[str, Any]) -> tuple[list[Message], str, str]:
    chosen, rejected = (_transcript(_text(record, side), side) for side in ("chosen", "rejected"))
    return _join([], chosen, rejected)


def _transcript(text: str, side: str) -> list[Message]:
    before, *parts = HH_TURN.split(text)
    if before.strip() or not parts:
        raise Unusable("not a transcript", f"{side} does not begin with '\\n\\nHuman:'")
    roles = {"Human": "user", "Assistant": "assistant"}
    return [Message(roles[parts[i]], parts[i + 1].strip()) for i in range(0, len(parts), 2)]


def _read_sharegpt(record: Mapping[str, Any]) -> tuple[list[Message], str, str]:
    if record.get("tools"):
        raise Unusable("tools", "conversations with tools are not supported")
    turns = _messages(record.get("conversations"), "conversations")
    system = record.get("system")
    if system:
        turns = [Message("system", _text(record, "system")), *turns]
    return _join(turns, _answer(record, "chosen"), _answer(record, "rejected"))


def _read_hf(record: Mapping[str, Any]) -> tuple[list[Message], str, str]:
    chosen, rejected = _answer(record, "chosen"), _answer(record, "rejected")
    prompt = record.get("prompt")
    if prompt is None:
        return _join([], chosen, rejected)
    turns = [Message("user", prompt)] if isinstance(prompt, str) else _messages(prompt, "prompt")
    if not any(message.role == "user" for message in chosen + rejected):
        return _join(turns, chosen, rejected)
    # The lists hold the whole conversation (UltraFeedback); the prompt field must then be part of it.
    messages, chosen_text, rejected_text = _join([], chosen, rejected)
    if messages[-len(turns) :] != turns and messages[: len(turns)] != turns:
        raise Unusable("prompts differ", "the field 'prompt' is not the prompt that 'chosen' and 'rejected' hold")
    return messages, chosen_text, rejected_text


def _join(turns: list[Message], chosen: list[Message], rejected: list[Message]) -> tuple[list[Message], str, str]:
    """Prompt and answers from two lists that agree in all messages but the last."""
    for side, messages in (("chosen", chosen), ("rejected", rejected)):
        if not messages or messages[-1].role != "assistant":
            raise Unusable("turn order", f"{side} does not end with a turn of the assistant")
    if chosen[:-1] != rejected[:-1]:
        raise Unusable("prompts differ", "chosen and rejected part before their last turn")
    return turns + chosen[:-1], chosen[-1].content, rejected[-1].content


def _answer(record: Mapping[str, Any], side: str) -> list[Message]:
    value = record.get(side)
    if isinstance(value, str):
        return [Message("assistant", value)]
    return _messages([value] if isinstance(value, Mapping) else value, side)


def _messages(value: Any, name: str) -> list[Message]:
    """A list of {"role", "content"} or {"from", "value"}; a turn without text or with another role is refused."""
    if not isinstance(value, Sequence) or isinstance(value, str | bytes):
        raise Unusable("wrong type", f"'{name}' is not a list of messages" if value is not None else f"no '{name}'")
    messages = []
    for turn in value:
        if not isinstance(turn, Mapping):
            raise Unusable("wrong type", f"a message of '{name}' is not an object")
        role, content = turn.get("role", turn.get("from")), turn.get("content", turn.get("value"))
        if not isinstance(content, str):
            raise Unusable("wrong type", f"a message of '{name}' has no text")
        if not isinstance(role, str) or role not in ROLES:
            raise Unusable("unknown role", f"{role!r} in '{name}'")
        messages.append(Message(ROLES[role], content))
    return messages


def _text(record: Mapping[str, Any], name: str) -> str:
    value = record.get(name)
    if value is None:
        raise Unusable("missing field", f"'{name}'")
    if not isinstance(value, str):
        raise Unusable("wrong type", f"'{name}' is not text")
    return value


Reader = Callable[[Mapping[str, Any]], tuple[list[Message], str, str]]
READERS: dict[str, Reader] = {"pairs": _read_pairs, "hh": _read_hh, "sharegpt": _read_sharegpt, "hf": _read_hf}
