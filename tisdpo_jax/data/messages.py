"""Messages, and what else a record tells the template, read as they stand in a record: whole, or refused by name.

Besides role and content a message may hold any key (`tool_calls`, `reasoning_content`, `name`, ...): all reach the
template, as they do in TRL; `template` refuses what the template then does not write. Content that is a list of text
parts becomes their text; a part of another type is refused. A key whose value is null counts as absent, since tables
of Hugging Face hold a null wherever some other record has a value.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from tisdpo_jax.data.records import Message, Unusable, says_nothing

ROLES = {
    "system": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "model": "assistant",
    "bot": "assistant",
    "tool": "tool",
}
# Arguments of `apply_chat_template` that are not the record's to set, and what the template gets from elsewhere.
RESERVED = (
    *("conversation", "messages", "tools", "chat_template", "add_generation_prompt", "continue_final_message"),
    *("tokenize", "sanitize_control_tokens", "padding", "truncation", "max_length", "return_tensors", "return_dict"),
    *("return_assistant_tokens_mask", "tokenizer_kwargs", "strftime_now"),
)


def read_messages(value: Any, name: str) -> list[Message]:
    """A list of {"role", "content"} or {"from", "value"}; a turn without text or with another role is refused."""
    if not isinstance(value, Sequence) or isinstance(value, str | bytes):
        raise Unusable("wrong type", f"'{name}' is not a list of messages" if value is not None else f"no '{name}'")
    return [_message(turn, name) for turn in value]


def _message(turn: Any, name: str) -> Message:
    if not isinstance(turn, Mapping):
        raise Unusable("wrong type", f"a message of '{name}' is not an object")
    keys = ("role" if turn.get("role") is not None else "from", "content" if "content" in turn else "value")
    role, content = (turn.get(key) for key in keys)
    fields = {str(key): item for key, item in turn.items() if key not in keys and item is not None}
    if not isinstance(role, str) or role not in ROLES:
        raise Unusable("unknown role", f"{role!r} in '{name}'; known are {', '.join(ROLES)}")
    if content is None and any(not says_nothing(item) for item in fields.values()):
        fields |= {"content": None} if keys[1] in turn else {}
        content = ""
    return Message(ROLES[role], _content(content, name), _json(fields, f"a message of '{name}'") if fields else "")


def _content(value: Any, name: str) -> str:
    if isinstance(value, str):
        return value
    if not isinstance(value, Sequence) or isinstance(value, bytes) or not value:
        raise Unusable("wrong type", f"a message of '{name}' has no text")
    texts = []
    for part in value:
        given = {key: item for key, item in part.items() if item is not None} if isinstance(part, Mapping) else {}
        if given.get("type") != "text" or not isinstance(given.get("text"), str):
            kind = given.get("type", type(part).__name__)
            raise Unusable("content part", f"one of type {kind!r} in '{name}'; only text is read")
        if more := sorted(given.keys() - {"type", "text"}):
            raise Unusable("content part", f"{', '.join(map(repr, more))} of a part of '{name}', which nothing reads")
        texts.append(given["text"])
    return "".join(texts)


def read_settings(record: Mapping[str, Any]) -> list[Message]:
    """The record's `tools` and `chat_template_kwargs` as messages of these roles; none where it has none."""
    found = []
    tools = record.get("tools")
    if isinstance(tools, str) and tools.strip():
        try:
            tools = json.loads(tools)
        except (ValueError, RecursionError):
            raise Unusable("wrong type", "'tools' is text, but not JSON") from None
    if not says_nothing(tools):
        if not isinstance(tools, Sequence) or not all(isinstance(tool, Mapping) and tool for tool in tools):
            raise Unusable("wrong type", "'tools' is not a list of objects, each the schema of a function")
        found.append(Message("tools", _json(tools, "'tools'")))
    options = record.get("chat_template_kwargs")
    if not says_nothing(options):
        if not isinstance(options, Mapping):
            raise Unusable("wrong type", "'chat_template_kwargs' is not an object")
        for name in options:
            if name in RESERVED:
                raise Unusable("reserved name", f"{name!r} in 'chat_template_kwargs' is not the record's to set")
        options = {name: value for name, value in options.items() if value is not None}
        found += [Message("chat_template_kwargs", _json(options, "'chat_template_kwargs'"))] if options else []
    return found


def _json(value: Any, name: str) -> str:
    try:
        return json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise Unusable("wrong type", f"{name} holds what JSON cannot: {error}") from None
