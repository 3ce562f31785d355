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
        if field.metadata.get("variants"):
            yield from _describe_variants(field.metadata["variants"], value, f"{prefix}{field.name}.")
        elif dataclasses.is_dataclass(value):
            yield from _describe(value, f"{prefix}{field.name}.")
        else:
            yield f"{prefix}{field.name}", _type_name(hints[field.name]), value, field.metadata.get("doc", "")


def _describe_variants(variants: Mapping[str, type], default: Any, prefix: str) -> Iterator[tuple[str, str, Any, str]]:
    """Every field of every kind once, with the kinds that have it where not all do."""
    key = discriminator(variants)
    docs = {name: _fields(kind)[key].metadata["doc"] for name, kind in variants.items()}
    kinds = "; ".join(f"{name}: {doc}" for name, doc in docs.items())
    yield f"{prefix}{key}", "|".join(variants), getattr(default, key), kinds
    fields: dict[str, list[tuple[str, tuple[str, str, Any, str]]]] = {}
    for kind_name, kind in variants.items():
        for line in _describe(kind(), prefix):
            fields.setdefault(line[0], []).append((kind_name, line))
    for name, lines in fields.items():
        if name == f"{prefix}{key}":
            continue
        owners = "" if len(lines) == len(variants) else f"{', '.join(owner for owner, _ in lines)}: "
        _, kind_name, usual, doc = lines[0][1]
        others = ", ".join(f"{owner}: {line[2]!r}" for owner, line in lines if line[2] != usual)
        yield name, kind_name, usual, owners + doc + (f" ({others})" if others else "")


def discriminator(variants: Mapping[str, type]) -> str:
    """The field by which the kinds of a section are told apart."""
    return "name" if all("name" in _fields(kind) for kind in variants.values()) else "method"


def _fields(kind: Any) -> dict[str, dataclasses.Field[Any]]:
    return {field.name: field for field in dataclasses.fields(kind)}


def let_go(before: Any, after: Any, prefix: str = "") -> Iterator[str]:
    """Dotted names of values that were chosen for another kind of a section, and that the new kind does not have."""
    for field in dataclasses.fields(before):
        old, new = getattr(before, field.name), getattr(after, field.name)
        if field.metadata.get("variants") and type(old) is not type(new):
            chosen = _chosen(old)
            yield from (f"{prefix}{field.name}.{name}" for name in chosen if name not in new.__dataclass_fields__)
        elif dataclasses.is_dataclass(old):
            yield from let_go(old, new, f"{prefix}{field.name}.")


def _chosen(section: Any) -> dict[str, Any]:
    """The fields of a section that are not its defaults."""
    default = type(section)()
    values = {field.name: getattr(section, field.name) for field in dataclasses.fields(section)}
    return {name: value for name, value in values.items() if value != getattr(default, name)}


def _variant(field: Any, current: Any, values: Any, where: str, prefix: str) -> Any:
    """The section that `values` go over: of the kind that they name, with what was chosen for both kinds."""
    variants = field.metadata["variants"]
    key = discriminator(variants)
    if not isinstance(values, Mapping) or key not in values:
        return current
    kind = variants[_cast(Literal[tuple(variants)], values[key], where, f"{prefix}{field.name}.{key}")]
    if kind is type(current):
        return current
    return kind(**{name: value for name, value in _chosen(current).items() if name in kind.__dataclass_fields__})


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
            raise ConfigError(f"{where}: unknown field {prefix}{name}{_suggestion(name, base, prefix, root)}")
        current = getattr(base, name)
        if fields[name].metadata.get("variants"):
            current = _variant(fields[name], current, value, where, prefix)
        if dataclasses.is_dataclass(current):
            changed[name] = _build(
                type(current), {} if value is None else value, current, where, f"{prefix}{name}.", root
            )
        else:
            changed[name] = _cast(hints[name], value, where, prefix + name)
    return dataclasses.replace(base, **changed)


def _suggestion(name: str, section: Any, prefix: str, root: type) -> str:
    here = [field.name for field in dataclasses.fields(section)]
    if any(prefix + name == dotted for dotted, *_ in describe(root)):  # of another kind of this section
        key = "method" if "method" in here else "name"
        return f" for {prefix}{key} {getattr(section, key)}, which has: {', '.join(here)}"
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
