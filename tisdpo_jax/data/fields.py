"""What stands in one field of a record: messages and settings of the template, whole; numbers and names, checked.

Besides role and content a message may hold any key (`tool_calls`, `reasoning_content`, `name`, ...): all reach the
template, as they do in TRL; `render` refuses what the template then does not write. Content that is a list of text
parts becomes their text; a part of another type is refused. A key whose value is null counts as absent, since tables
of Hugging Face hold a null wherever some other record has a value.
"""

from __future__ import annotations

import difflib
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from tisdpo_jax.data.checks import check_text
from tisdpo_jax.data.records import STRENGTHS, Message, Unusable, says_nothing

ROLES = {
    **{role: role for role in ("system", "user", "assistant", "tool")},
    **{"human": "user", "gpt": "assistant", "chatgpt": "assistant", "model": "assistant", "bot": "assistant"},
}
# Arguments of `apply_chat_template` that are not the record's to set, and what the template gets from elsewhere.
RESERVED = (
    *("conversation", "messages", "tools", "chat_template", "add_generation_prompt", "continue_final_message"),
    *("tokenize", "sanitize_control_tokens", "padding", "truncation", "max_length", "return_tensors", "return_dict"),
    *("return_assistant_tokens_mask", "tokenizer_kwargs", "strftime_now"),
)


def read_messages(value: Any, name: str) -> list[Message]:
    """A list of {"role", "content"} or {"from", "value"}; a turn without text or with another role is refused."""
    if not is_list(value):
        raise Unusable("wrong type", f"'{name}' is not a list of messages" if value is not None else f"no '{name}'")
    return [_message(turn, name) for turn in value]


def is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str | bytes)


def _message(turn: Any, name: str) -> Message:
    if not isinstance(turn, Mapping):
        raise Unusable("wrong type", f"a message of '{name}' is not an object")
    keys = ("role" if turn.get("role") is not None else "from", "content" if "content" in turn else "value")
    role, content = (turn.get(key) for key in keys)
    others = {str(key): item for key, item in turn.items() if key not in keys and item is not None}
    if not isinstance(role, str) or role not in ROLES:
        raise Unusable("unknown role", f"{role!r} in '{name}'; known are {', '.join(ROLES)}")
    if content is None and not all(map(says_nothing, others.values())):
        others |= {"content": None} if keys[1] in turn else {}
        content = ""
    return Message(ROLES[role], _content(content, name), _json(others, f"a message of '{name}'") if others else "")


def _content(value: Any, name: str) -> str:
    if isinstance(value, str):
        return value
    if not is_list(value) or not value:
        raise Unusable("wrong type", f"a message of '{name}' has no text")
    texts = []
    for part in value:
        keys = {key: item for key, item in part.items() if item is not None} if isinstance(part, Mapping) else {}
        if keys.get("type") != "text" or not isinstance(keys.get("text"), str):
            kind = keys.get("type", type(part).__name__)
            raise Unusable("content part", f"one of type {kind!r} in '{name}'; only text is read")
        if more := sorted(keys.keys() - {"type", "text"}):
            raise Unusable("content part", f"{', '.join(map(repr, more))} of a part of '{name}', which nothing reads")
        texts.append(keys["text"])
    return "".join(texts)


def read_settings(record: Mapping[str, Any]) -> list[Message]:
    """The record's `tools` and `chat_template_kwargs` as messages of these roles; none where it has none."""
    settings = []
    tools, options = record.get("tools"), record.get("chat_template_kwargs")
    if isinstance(tools, str) and tools.strip():
        try:
            tools = json.loads(tools)
        except (ValueError, RecursionError):
            raise Unusable("wrong type", "'tools' is text, but not JSON") from None
    if not says_nothing(tools):
        if not isinstance(tools, Sequence) or not all(isinstance(tool, Mapping) and tool for tool in tools):
            raise Unusable("wrong type", "'tools' is not a list of objects, each the schema of a function")
        settings.append(Message("tools", _json(tools, "'tools'")))
    if not says_nothing(options):
        if not isinstance(options, Mapping):
            raise Unusable("wrong type", "'chat_template_kwargs' is not an object")
        if reserved := [name for name in options if name in RESERVED]:
            raise Unusable("reserved name", f"{reserved[0]!r} in 'chat_template_kwargs' is not the record's to set")
        if options := {name: value for name, value in options.items() if value is not None}:
            settings.append(Message("chat_template_kwargs", _json(options, "'chat_template_kwargs'")))
    return settings


def _json(value: Any, name: str) -> str:
    try:
        return json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise Unusable("wrong type", f"{name} holds what JSON cannot: {error}") from None


def read_id(record: Mapping[str, Any], default: str) -> str:
    """The record's id as text; `default` where it has none."""
    value = record.get("id")
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, str | int) or value == "":
        raise Unusable("wrong type", "'id' is neither text nor a whole number")
    check_text(str(value), "id")
    return str(value)


def read_group(record: Mapping[str, Any], field: str) -> str | None:
    """What a record says in the field that names its subset, as text; None where it says nothing."""
    value = record.get(field)
    if value is None:
        return None
    if not isinstance(value, str | int | float):
        raise Unusable("wrong type", f"'{field}' names the subset and must be text or a number")
    check_text(str(value), field)
    return str(value)


def text_field(record: Mapping[str, Any], field: str) -> str:
    value = record.get(field)
    if value is None:
        raise Unusable("missing field", f"'{field}'")
    if not isinstance(value, str):
        raise Unusable("wrong type", f"'{field}' is not text")
    return value


def read_number(record: Mapping[str, Any], field: str) -> float | None:
    """A finite number, or None."""
    return None if record.get(field) is None else _number(record[field], field)


def read_numbers(record: Mapping[str, Any], field: str) -> tuple[float, ...] | None:
    """A list of finite numbers, or None."""
    value = record.get(field)
    if value is None:
        return None
    if not is_list(value):
        raise Unusable("wrong type", f"'{field}' is not a list of numbers")
    return tuple(_number(item, field) for item in value)


def read_strength(record: Mapping[str, Any]) -> str | float | None:
    """How sure the label is: one of `STRENGTHS`, or the probability itself; None where the record says nothing."""
    value = record.get("strength")
    if value is None or value in STRENGTHS:
        return value
    if isinstance(value, str):
        near = difflib.get_close_matches(value.lower(), STRENGTHS, n=1)
        meant = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(STRENGTHS)}, and numbers in [0.5, 1]"
        raise Unusable("unknown strength", f"{value!r}; {meant}")
    number = _number(value, "strength")
    if not 0.5 <= number <= 1:
        raise Unusable("strength out of range", f"{number:g} is not in [0.5, 1]; below, the other response is better")
    return number


def _number(value: Any, field: str) -> float:
    try:
        number = math.nan if isinstance(value, str | bool) else float(value)
    except (TypeError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise Unusable("wrong type", f"'{field}' holds {value!r}, not a finite number")
    return number
