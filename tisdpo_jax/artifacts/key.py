"""The identity of a result: plain values that it depends on, never names or paths; and how two of them differ.

An identity is a dict of plain values, nested where that reads better. It is kept beside the result as it is, not
as a digest, so that a refusal can say which field is another one, and both values.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

SHOWN = 60  # characters of a value that a message shows


def digest(value: Any) -> str:
    """A short name for plain values, the same in every process and session: 16 hexadecimal digits."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def plain(value: Any) -> Any:
    """The value as JSON gives it back: tuples are lists, keys are strings."""
    return json.loads(json.dumps(value))


def differences(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """What differs between a stored identity and the one that is asked for, a phrase a field, both values in it."""
    there, here = _flat("", plain(dict(found))), _flat("", plain(dict(wanted)))
    return [
        f"{name} (was {_shown(there, name)}, now {_shown(here, name)})"
        for name in sorted(there.keys() | here.keys())
        # as text, since 1 == True
        if name not in there or name not in here or json.dumps(there[name]) != json.dumps(here[name])
    ]


def _flat(prefix: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict) or (prefix and not value):
        return {prefix: value}
    found: dict[str, Any] = {}
    for name, inner in value.items():
        found |= _flat(f"{prefix}.{name}" if prefix else name, inner)
    return found


def _shown(values: Mapping[str, Any], name: str) -> str:
    if name not in values:
        return "absent"
    text = json.dumps(values[name], ensure_ascii=False)
    return text if len(text) <= SHOWN else f"{text[: SHOWN - 3]}..."
