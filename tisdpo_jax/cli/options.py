"""The command line: `tisdpo VERB [CONFIG] [--dotted.override value]...` -> an Experiment."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml

from tisdpo_jax.cli.missing import configuration_file
from tisdpo_jax.config import (
    Experiment,
    build,
    check_path,
    check_places,
    describe,
    idle,
    let_go,
    nest,
    validate,
    without,
)
from tisdpo_jax.errors import ConfigError

log = logging.getLogger(__name__)

COMMAND_LINE = "command line"
C = TypeVar("C")


def read_arguments(
    arguments: Sequence[str], extra: Sequence[str] = ()
) -> tuple[Path | None, dict[str, str], dict[str, str]]:
    """Splits arguments into the configuration file, overrides by dotted name, and the verb's own `extra` options."""
    file: str | None = None
    overrides: dict[str, str] = {}
    own: dict[str, str] = {}
    rest = list(arguments)
    while rest:
        argument = rest.pop(0)
        if not argument.startswith("--"):
            if file is not None:
                raise ConfigError(
                    f"{argument!r}: a configuration file was named already ({file}); options begin with --"
                )
            file = argument
            continue
        name, equals, value = argument[2:].partition("=")
        if not equals:
            if not rest or rest[0].startswith("--"):
                raise ConfigError(f"--{name} needs a value: --{name} VALUE")
            value = rest.pop(0)
        if name == "config":
            file = value
        elif name in extra:
            own[name] = value
        else:
            overrides[name] = value
    return (Path(check_path("the configuration file", file)) if file else None), overrides, own


def load(file: Path | None, overrides: dict[str, str]) -> Experiment:
    """The configuration file with overrides over it. `run_dir` defaults to runs/NAME of the file."""
    return check_places(load_as(Experiment, file, overrides))


def load_valid(file: Path | None, overrides: dict[str, str], verb: str, *, trains: bool = True) -> Experiment:
    """The same, validated for a verb."""
    return checked(load(file, overrides), file, overrides, verb, trains=trains)


def checked(
    config: Experiment, file: Path | None, overrides: dict[str, str], verb: str, *, trains: bool = True
) -> Experiment:
    """The configuration that came of a file and overrides, validated for a verb.

    Values of the file that do nothing any more because of an override are said and go back to their defaults: a file
    is one experiment, the command line tries another.

    Raises: ConfigError, for values that do nothing by themselves too.
    """
    if file is not None:
        by_itself = idle(load_as(Experiment, file, {}))
        overruled = {
            name: why for name, why in idle(config, verb).items() if name not in overrides and name not in by_itself
        }
        for name, why in overruled.items():
            log.info("%s: %s does nothing here: %s", file, name, why)
        config = without(config, overruled)
    return validate(config, trains=trains, verb=verb)


def load_as(kind: type[C], file: Path | None, overrides: dict[str, str]) -> C:
    """The same for another dataclass with a field `run_dir`."""
    config = kind()
    if file is not None:
        config = build(kind, read_yaml(file), where=str(file))
    if overrides:
        before, config = config, build(kind, nest(overrides, where=COMMAND_LINE), where=COMMAND_LINE, base=config)
        for name in let_go(before, config):
            log.info("%s: %s does nothing here: the command line chooses a kind without it", file, name)
    if not config.run_dir:  # type: ignore[attr-defined]
        name = file.stem if file is not None else "default"
        config = build(kind, {"run_dir": f"runs/{name}"}, where=COMMAND_LINE, base=config)
    return config


def read_yaml(file: Path) -> dict[str, Any]:
    """The mapping in a YAML file. Raises: ConfigError that names the file, and the line where there is one."""
    file = configuration_file(file)
    try:
        values = yaml.load(file.read_text(encoding="utf-8"), Loader=_Strict)
    except OSError as error:
        raise ConfigError(f"{file}: cannot be read: {error.strerror}") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        place = f":{mark.line + 1}" if mark else ""
        raise ConfigError(f"{file}{place}: not valid YAML: {getattr(error, 'problem', None) or error}") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(f"{file}: holds a {type(values).__name__}, not sections and fields")
    return values


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
        found: dict[Any, Any] = super().construct_mapping(node, deep)
        return found


def help_text() -> str:
    """Every field, with type, default and meaning."""
    lines = []
    for name, kind, default, doc in describe(Experiment):
        lines.append(f"  --{name} <{kind}>")
        lines.append(f"        {doc} (default: {default!r})")
    return "\n".join(lines)
