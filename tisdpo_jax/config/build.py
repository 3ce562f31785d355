"""From nested mappings to the dataclasses: one way in for YAML files and `--dotted.override value` alike.

Values are cast by field type (PyYAML reads `5e-7` as a string). An unknown name, or a value that does not fit, is a
ConfigError that says where it stands, which field it is, and the nearest right name.
"""

from __future__ import annotations

import dataclasses
import difflib
import typing
from collections.abc import Iterator, Mapping
from typing import Any, Literal, TypeVar

from tisdpo_jax.errors import ConfigError

T = TypeVar("T")


def build(cls: type[T], values: Mapping[str, Any], *, where: str, base: T | None = None) -> T:
    """An instance of `cls`: `base` (default: the defaults) with `values` over it.

    Args:
      values: nested mapping; keys are field names.
      where: the source, for messages: a file name, or "command line".
    """
    return typing.cast(T, _build(cls, values, base if base is not None else cls(), where, "", cls))


def nest(dotted: Mapping[str, Any], *, where: str) -> dict[str, Any]:
    """`{"a.b": 1}` -> `{"a": {"b": 1}}`."""
    tree: dict[str, Any] = {}
    for name, value in dotted.items():
        *parents, last = name.split(".")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
            if not isinstance(node, dict):
                raise ConfigError(f"{where}: --{name}: {parent} was given a value of its own before")
        node[last] = value
    return tree


def resolved(config: Any) -> dict[str, Any]:
    """The whole configuration as nested plain values, defaults included: what a run writes to config.yaml."""
    return dataclasses.asdict(config)


def describe(cls: type, prefix: str = "") -> Iterator[tuple[str, str, Any, str]]:
    """(dotted name, type, default, documentation) of every field: what `--help` prints."""
    yield from _describe(cls(), prefix)


def _describe(instance: Any, prefix: str) -> Iterator[tuple[str, str, Any, str]]:
    hints = typing.get_type_hints(type(instance))
    for field in dataclasses.fields(instance):
        value = getattr(instance, field.name)
        if dataclasses.is_dataclass(value):
            yield from _describe(value, f"{prefix}{field.name}.")
        else:
            yield f"{prefix}{field.name}", _type_name(hints[field.name]), value, field.metadata.get("doc", "")


def _build(cls: type, values: Any, base: Any, where: str, prefix: str, root: type) -> Any:
    if not isinstance(values, Mapping):
        raise ConfigError(
            f"{where}: {prefix.rstrip('.')} is a section with fields of its own, but was given {values!r}"
        )
    fields = {field.name: field for field in dataclasses.fields(cls)}
    hints = typing.get_type_hints(cls)
    changed: dict[str, Any] = {}
    for key, value in values.items():
        name = str(key)
        if name not in fields:
            raise ConfigError(f"{where}: unknown field {prefix}{name}{_suggestion(name, cls, prefix, root)}")
        current = getattr(base, name)
        if dataclasses.is_dataclass(current):
            changed[name] = _build(
                type(current), {} if value is None else value, current, where, f"{prefix}{name}.", root
            )
        else:
            changed[name] = _cast(hints[name], value, where, prefix + name)
    return dataclasses.replace(base, **changed)


def _suggestion(name: str, cls: type, prefix: str, root: type) -> str:
    here = [field.name for field in dataclasses.fields(cls)]
    near = difflib.get_close_matches(name, here, n=1, cutoff=0.6)
    if near:
        return f"; did you mean {prefix}{near[0]}?"
    everywhere = [dotted for dotted, *_ in describe(root)]
    elsewhere = [dotted for dotted in everywhere if dotted.rpartition(".")[2] == name]
    inside = [dotted for dotted in elsewhere if dotted.startswith(prefix)]
    close = inside or elsewhere or difflib.get_close_matches(prefix + name, everywhere, n=1, cutoff=0.6)
    return f"; did you mean {close[0]}?" if close else f"; {prefix.rstrip('.') or 'there'} has: {', '.join(here)}"


def _cast(kind: Any, value: Any, where: str, name: str) -> Any:
    if typing.get_origin(kind) is Literal:
        choices = typing.get_args(kind)
        for choice in choices:
            if value == choice or str(value) == str(choice):
                return choice
        near = difflib.get_close_matches(str(value), [str(choice) for choice in choices], n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise ConfigError(f"{where}: {name} is {value!r}; it must be one of {', '.join(map(str, choices))}{hint}")
    if kind is bool:
        truths = {"true": True, "false": False, "yes": True, "no": False, "1": True, "0": False}
        if isinstance(value, bool):
            return value
        if str(value).lower() in truths:
            return truths[str(value).lower()]
    elif kind in (int, float) and not isinstance(value, bool):
        try:
            number = float(value) if kind is float else int(str(value).replace("_", ""))
        except (TypeError, ValueError):
            pass
        else:
            if number == number and abs(number) != float("inf"):
                return number
    elif kind is str and isinstance(value, str | int | float):
        return str(value)
    raise ConfigError(f"{where}: {name} is {value!r}; it must be {_type_name(kind)}")


def _type_name(kind: Any) -> str:
    if typing.get_origin(kind) is Literal:
        return "|".join(map(str, typing.get_args(kind)))
    return {bool: "true or false", int: "a whole number", float: "a number", str: "text"}.get(kind, str(kind))
