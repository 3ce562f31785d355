"""Values of fields: cast by type (PyYAML reads `5e-7` as a string), lists and mappings of a command line as YAML."""

from __future__ import annotations

import contextlib
import difflib
import types
import typing
from collections.abc import Mapping
from typing import Any, Literal

import yaml

from tisdpo_jax.errors import ConfigError

NULLS = ("null", "none", "~")


def as_type(kind: Any, value: Any, where: str, name: str, *, nullable: bool = False) -> Any:
    """The value as what a field holds; one that may be None, or whose default is, takes null too."""
    parts = typing.get_args(kind) if typing.get_origin(kind) in (types.UnionType, typing.Union) else (kind,)
    nullable = nullable or types.NoneType in parts
    if nullable and (value is None or str(value).lower() in NULLS):
        return None
    if nullable and value == "":
        raise ConfigError(f"{where}: {name} is ''; write null, or leave it out")
    parts = tuple(part for part in parts if part is not types.NoneType)
    if len(parts) > 1 and type(value) in parts:
        return value
    kind = parts[-1]
    if typing.get_origin(kind) in (tuple, dict):
        return _many(kind, value, where, name)
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
        if str(value).lower() in truths:
            return truths[str(value).lower()]
    elif kind in (int, float) and not isinstance(value, bool):
        with contextlib.suppress(TypeError, ValueError):
            number = float(value) if kind is float else int(str(value).replace("_", ""))
            if number == number and abs(number) != float("inf"):
                return number
    elif kind is str and isinstance(value, str | int | float) and value != "null":
        return str(value)
    raise ConfigError(f"{where}: {name} is {value!r}; it must be {type_name(kind)}{', or null' if nullable else ''}")


def _many(kind: Any, value: Any, where: str, name: str) -> Any:
    """A list or a mapping; text is read as YAML."""
    whole = parse_yaml(value, f"{where}: {name}") if isinstance(value, str) else value
    if typing.get_origin(kind) is tuple and isinstance(whole, list | tuple) and "" not in whole:
        return tuple(as_type(typing.get_args(kind)[0], item, where, name) for item in whole)
    if typing.get_origin(kind) is dict and isinstance(whole, Mapping) and "" not in (*whole, *whole.values()):
        return {
            str(key): as_type(typing.get_args(kind)[1], item, where, f"{name}.{key}") for key, item in whole.items()
        }
    raise ConfigError(f"{where}: {name} is {value!r}; it must be {type_name(kind)}")


def type_name(kind: Any) -> str:
    """A type in words."""
    if typing.get_origin(kind) is Literal:
        return "|".join(map(str, typing.get_args(kind)))
    if typing.get_origin(kind) is tuple:
        return "a list, as [one, two]"
    if typing.get_origin(kind) is dict:
        return "a mapping, as {name: value}"
    if typing.get_origin(kind) in (types.UnionType, typing.Union):
        return " or ".join(map(type_name, typing.get_args(kind)))
    names = {bool: "true or false", int: "a whole number", float: "a number", str: "text", types.NoneType: "null"}
    return names.get(kind, str(kind))


def parse_yaml(text: str, where: str) -> Any:
    """What a YAML text says. Raises: ConfigError with the line, also where a key stands twice."""
    try:
        return yaml.load(text, Loader=_Strict)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        place = f":{mark.line + 1}" if mark else ""
        raise ConfigError(f"{where}{place}: not valid YAML: {getattr(error, 'problem', None) or error}") from None


class _Strict(yaml.SafeLoader):
    """YAML in which a key stands once: of two, PyYAML would take the last without a word."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                if key.value in seen:
                    raise yaml.constructor.ConstructorError(
                        None, None, f"{key.value!r} stands twice; remove one of them", key.start_mark
                    )
                seen.add(key.value)
        mapping: dict[Any, Any] = super().construct_mapping(node, deep)
        return mapping
