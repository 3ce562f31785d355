"""Fields of a configuration by their dotted names."""

from __future__ import annotations

import dataclasses
from typing import Any


def get(config: Any, name: str) -> Any:
    """The value of a field, `section.field`."""
    for part in name.split("."):
        config = getattr(config, part)
    return config


def replaced(config: Any, name: str, value: Any) -> Any:
    """The configuration with another value of one field."""
    first, _, rest = name.partition(".")
    inner = replaced(getattr(config, first), rest, value) if rest else value
    return dataclasses.replace(config, **{first: inner})
