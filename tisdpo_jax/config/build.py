"""From nested mappings to the dataclasses: one way in for YAML files and `--dotted.override value` alike.

An unknown name, or a value that does not fit, is a ConfigError that says where it stands, which field it is, and the
nearest right name, or the recipe that has it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import typing
from collections.abc import Iterator, Mapping
from typing import Any, Literal, TypeVar

from tisdpo_jax.config.recipes import RECIPES, Experiment, TisDpoRecipe
from tisdpo_jax.config.values import as_type, type_name
from tisdpo_jax.errors import ConfigError

T = TypeVar("T")


def build(cls: type[T], values: Mapping[str, Any], *, where: str, base: T | None = None) -> T:
    """An instance of `cls`: `base` (default: the defaults) with `values` over it.

    `Experiment` is any recipe: that of `values["recipe"]`, else that of `base`, else tisdpo. What was chosen in a base
    of another recipe, and the new one has too, stays.

    Args:
      values: nested mapping; keys are field names.
      where: the source, for messages: a file name, or "command line".
    """
    if base is None:
        base = typing.cast(T, TisDpoRecipe()) if cls is Experiment else cls()
    if isinstance(base, Experiment) and "recipe" in values:
        base = _of_kind(RECIPES, base, values["recipe"], where, "recipe")
    return typing.cast(T, _build(base, values, where, "", base))


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


def leaves(section: Any, prefix: str = "") -> Iterator[tuple[str, dataclasses.Field[Any], Any]]:
    """(dotted name, field, value) of everything that is no section."""
    for field in dataclasses.fields(section):
        value = getattr(section, field.name)
        if dataclasses.is_dataclass(value):
            yield from leaves(value, f"{prefix}{field.name}.")
        else:
            yield f"{prefix}{field.name}", field, value


def chosen(section: Any, default: Any = None, prefix: str = "") -> dict[str, Any]:
    """The values that are not the defaults, by dotted name; the kind of a section before its values."""
    default = default or type(section)()
    values: dict[str, Any] = {}
    for field in dataclasses.fields(section):
        value, usual, name = getattr(section, field.name), getattr(default, field.name), prefix + field.name
        if not dataclasses.is_dataclass(value):
            values |= {name: value} if value != usual else {}
            continue
        if type(value) is not type(usual):
            key = discriminator(field.metadata["variants"])
            values[f"{name}.{key}"], usual = getattr(value, key), None
        values |= chosen(value, usual, f"{name}.")
    return values


def carried(before: Any, kind: type[T]) -> T:
    """A section or configuration of another kind, with what was chosen in `before` and is in both."""
    after: Any = kind()
    for name, value in chosen(before).items():
        with contextlib.suppress(ConfigError):
            after = _build(after, nest({name: value}, where=""), "", "", after)
    return typing.cast(T, after)


def let_go(before: Any, after: Any) -> list[str]:
    """Values that were chosen for another kind, and that the new kind does not have: names of fields or sections."""
    there, sections = {name for name, *_ in leaves(after)}, _fields(after)
    gone = (name for name in chosen(before) if name not in there)
    return list(dict.fromkeys(name if (top := name.partition(".")[0]) in sections else top for name in gone))


def describe(cls: type, prefix: str = "") -> Iterator[tuple[str, str, Any, str]]:
    """(dotted name, type, default, documentation) of every field: what `--help` prints."""
    yield from _describe(cls(), prefix)


def _describe(section: Any, prefix: str) -> Iterator[tuple[str, str, Any, str]]:
    hints = typing.get_type_hints(type(section))
    for field in dataclasses.fields(section):
        name, value = f"{prefix}{field.name}", getattr(section, field.name)
        if field.metadata.get("variants"):
            yield from _describe_variants(field.metadata["variants"], value, f"{name}.")
        elif dataclasses.is_dataclass(value):
            yield from _describe(value, f"{name}.")
        else:
            yield name, type_name(hints[field.name]), value, field.metadata.get("doc", "")


def _describe_variants(variants: Mapping[str, type], default: Any, prefix: str) -> Iterator[tuple[str, str, Any, str]]:
    """Every field of every kind once, with the kinds that have it where not all do."""
    key = discriminator(variants)
    docs = (f"{name}: {_fields(kind)[key].metadata['doc']}" for name, kind in variants.items())
    yield f"{prefix}{key}", "|".join(variants), getattr(default, key), "; ".join(docs)
    fields: dict[str, dict[str, tuple[str, str, Any, str]]] = {}
    for kind_name, kind in variants.items():
        for line in describe(kind, prefix):
            fields.setdefault(line[0], {})[kind_name] = line
    del fields[f"{prefix}{key}"]
    for name, lines in fields.items():
        owners = "" if len(lines) == len(variants) else f"{', '.join(lines)}: "
        _, type_name, usual, doc = next(iter(lines.values()))
        others = ", ".join(f"{owner}: {line[2]!r}" for owner, line in lines.items() if line[2] != usual)
        yield name, type_name, usual, owners + doc + (f" ({others})" if others else "")


def discriminator(variants: Mapping[str, type]) -> str:
    """The field by which the kinds of a section are told apart."""
    return "name" if all("name" in _fields(kind) for kind in variants.values()) else "method"


def _fields(kind: Any) -> dict[str, dataclasses.Field[Any]]:
    return {field.name: field for field in dataclasses.fields(kind)}


def _of_kind(variants: Mapping[str, type], current: Any, name: Any, where: str, dotted: str) -> Any:
    """The section that values go over: of the kind that they name, with what was chosen for both kinds."""
    try:
        kind = variants[as_type(Literal[tuple(variants)], name, where, dotted)]
    except ConfigError as error:
        owners = [owner for owner, line in _owners(dotted) if name in line[1].split("|")]
        if not owners:
            raise
        raise ConfigError(f"{str(error).partition('; did')[0]}; `recipe: {owners[0]}` has it") from None
    return current if kind is type(current) else carried(current, kind)


def _owners(dotted: str) -> list[tuple[str, tuple[str, str, Any, str]]]:
    """The recipes that have a field or a section, each with the first line of `describe` that is about it."""
    lines = ((name, line) for name, kind in RECIPES.items() for line in describe(kind))
    return list({name: line for name, line in lines if f"{line[0]}.".startswith(f"{dotted}.")}.items())


def _build(base: Any, values: Any, where: str, prefix: str, root: Any) -> Any:
    if not isinstance(values, Mapping):
        raise ConfigError(
            f"{where}: {prefix.rstrip('.')} is a section with fields of its own, but was given {values!r}"
        )
    fields, hints = _fields(base), typing.get_type_hints(type(base))
    changed: dict[str, Any] = {}
    for key, value in values.items():
        name = str(key)
        if name not in fields:
            raise ConfigError(f"{where}: unknown field {prefix}{name}{_suggestion(name, base, prefix, root)}")
        current, variants = getattr(base, name), fields[name].metadata.get("variants")
        if variants and isinstance(value, Mapping) and (kind := discriminator(variants)) in value:
            current = _of_kind(variants, current, value[kind], where, f"{prefix}{name}.{kind}")
        if dataclasses.is_dataclass(current):
            changed[name] = _build(current, {} if value is None else value, where, f"{prefix}{name}.", root)
        else:
            nullable = fields[name].default is None
            changed[name] = as_type(hints[name], value, where, prefix + name, nullable=nullable)
    return dataclasses.replace(base, **changed)


def _suggestion(name: str, section: Any, prefix: str, root: Any) -> str:
    here, dotted = list(_fields(section)), prefix + name
    everywhere = [line[0] for line in describe(type(root))]
    if dotted in everywhere:  # of another kind of this section
        key = "method" if "method" in here else "name"
        return f" for {prefix}{key} {getattr(section, key)}, which has: {', '.join(here)}"
    if isinstance(root, Experiment) and (owners := [owner for owner, _ in _owners(dotted)]):
        return f" for recipe {root.recipe}; `recipe: {'`, `recipe: '.join(owners)}` has it"
    near = difflib.get_close_matches(name, here, n=1, cutoff=0.6)
    if near:
        return f"; did you mean {prefix}{near[0]}?"
    elsewhere = [dotted for dotted in everywhere if dotted.rpartition(".")[2] == name]
    inside = [dotted for dotted in elsewhere if dotted.startswith(prefix)]
    close = inside or elsewhere or difflib.get_close_matches(prefix + name, everywhere, n=1, cutoff=0.6)
    return f"; did you mean {close[0]}?" if close else f"; {prefix.rstrip('.') or 'there'} has: {', '.join(here)}"
