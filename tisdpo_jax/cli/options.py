"""The command line: `tisdpo VERB [CONFIG] [--dotted.override value]...` -> an Experiment."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml

from tisdpo_jax.config import Experiment, build, describe, nest, with_prompts
from tisdpo_jax.errors import ConfigError

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
    return (Path(file) if file else None), overrides, own


def load(file: Path | None, overrides: dict[str, str]) -> Experiment:
    """The configuration file with overrides over it. `run_dir` defaults to runs/NAME of the file."""
    return with_prompts(load_as(Experiment, file, overrides))


def load_as(kind: type[C], file: Path | None, overrides: dict[str, str]) -> C:
    """The same for another dataclass with a field `run_dir`."""
    config = kind()
    if file is not None:
        config = build(kind, read_yaml(file), where=str(file))
    if overrides:
        config = build(kind, nest(overrides, where=COMMAND_LINE), where=COMMAND_LINE, base=config)
    if not config.run_dir:  # type: ignore[attr-defined]
        name = file.stem if file is not None else "default"
        config = build(kind, {"run_dir": f"runs/{name}"}, where=COMMAND_LINE, base=config)
    return config


def is_testbed(file: Path | None) -> bool:
    """Whether a configuration file is one of the testbed."""
    return file is not None and read_yaml(file).get("recipe") == "testbed"


def read_yaml(file: Path) -> dict[str, Any]:
    """The mapping in a YAML file. Raises: ConfigError that names the file, and the line where there is one."""
    if not file.is_file():
        folder = file.parent if file.parent.is_dir() else Path()
        near = difflib.get_close_matches(file.name, [path.name for path in folder.glob("*.yaml")], n=1)
        hint = f"; did you mean {folder / near[0]}?" if near else ""
        raise ConfigError(f"{file}: no such configuration file{hint}")
    try:
        values = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        place = f":{mark.line + 1}" if mark else ""
        raise ConfigError(f"{file}{place}: not valid YAML: {getattr(error, 'problem', None) or error}") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(f"{file}: holds a {type(values).__name__}, not sections and fields")
    return values


def help_text() -> str:
    """Every field, with type, default and meaning."""
    lines = []
    for name, kind, default, doc in describe(Experiment):
        lines.append(f"  --{name} <{kind}>")
        lines.append(f"        {doc} (default: {default!r})")
    return "\n".join(lines)
