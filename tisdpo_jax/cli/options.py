"""The command line: `tisdpo VERB [CONFIG] [--dotted.override value]...` -> a configuration."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tisdpo_jax.cli.missing import check_hub_names, configuration_file
from tisdpo_jax.config import (
    RECIPES,
    Experiment,
    build,
    check_path,
    describe,
    idle,
    let_go,
    nest,
    parse_yaml,
    validate,
    without,
)
from tisdpo_jax.errors import ConfigError

log = logging.getLogger(__name__)

COMMAND_LINE = "command line"


def read_arguments(
    arguments: Sequence[str], extra: Sequence[str] = (), flags: Sequence[str] = ()
) -> tuple[Path | None, dict[str, str], dict[str, list[str]]]:
    """Splits arguments into the configuration file, overrides by dotted name, and the verb's own options.

    Args:
      extra: options of the verb with a value; they may be given more than once.
      flags: those without one.
    """
    file: str | None = None
    overrides: dict[str, str] = {}
    own: dict[str, list[str]] = {}
    rest = list(arguments)
    while rest:
        argument = rest.pop(0)
        name, equals, value = argument.removeprefix("--").partition("=")
        if argument == name + equals + value:  # no option
            name, value = "config", argument
            if file is not None:
                raise ConfigError(
                    f"{argument!r}: a configuration file was named already ({file}); options begin with --"
                )
        elif name in flags:
            value = ""
        elif not equals:
            if not rest or rest[0].startswith("--"):
                raise ConfigError(f"--{name} needs a value: --{name} VALUE")
            value = rest.pop(0)
        if name == "config":
            file = value
        elif name in (*extra, *flags):
            own.setdefault(name, []).append(value)
        else:
            overrides[name] = value
    return (Path(check_path("the configuration file", file)) if file else None), overrides, own


def load(file: Path | None, overrides: dict[str, str], verb: str = "run") -> Experiment:
    """The configuration of a file with overrides over it, as it is written.

    Without `recipe` it is tisdpo; where there is no file, evaluate and generate for the verbs of these names. What a
    recipe or kind of the command line has no field for is said and left out. `run_dir` is runs/NAME of the file.
    """
    if file is None:
        config: Experiment = build(Experiment, {"recipe": verb if verb in RECIPES else "tisdpo"}, where=COMMAND_LINE)
    else:
        config = build(Experiment, {"run_dir": f"runs/{file.stem}"} | read_yaml(file), where=str(file))
    before, config = config, build(Experiment, nest(overrides, where=COMMAND_LINE), where=COMMAND_LINE, base=config)
    if names := let_go(before, config):
        log.info("%s: the recipe or kind that the command line chooses does not have %s", file, ", ".join(names))
    return config


def load_valid(file: Path | None, overrides: dict[str, str], verb: str = "run", *, trains: bool = True) -> Experiment:
    """The same, validated for a verb.

    Values of the file that do nothing any more because of an override are said and go back to their defaults: a file
    is one experiment, the command line tries another.

    Raises: ConfigError, for values that do nothing by themselves too, and for a recipe that the verb is not for.
    """
    config = load(file, overrides, verb)
    if verb not in config.verbs:
        fit = ", ".join(name for name, kind in RECIPES.items() if verb in kind.verbs)
        raise ConfigError(
            f"tisdpo {verb}: not for recipe {config.recipe}, which is for {', '.join(config.verbs)}; `--recipe NAME` "
            f"takes what it can use of a file: {fit}"
        )
    if file is not None and overrides:
        by_itself = idle(load(file, {}, verb))
        overruled = {name: why for name, why in idle(config).items() if name not in {*overrides, *by_itself}}
        for name, why in overruled.items():
            log.info("%s: %s does nothing here: %s", file, name, why)
        config = without(config, overruled)
    config = validate(config, trains=trains)
    if verb != "plan":  # which needs no model, only its name
        check_hub_names(config)
    return config


def read_yaml(file: Path) -> dict[str, Any]:
    """The mapping in a YAML file. Raises: ConfigError that names the file, and the line where there is one."""
    file = configuration_file(file)
    try:
        values = parse_yaml(file.read_text(encoding="utf-8"), str(file))
    except OSError as error:
        raise ConfigError(f"{file}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{file}: not valid YAML: {error}") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(f"{file}: holds a {type(values).__name__}, not sections and fields")
    return values


def help_text(arguments: Sequence[str], verb: str) -> str:
    """The recipes, and every field of one: of `--recipe`, of the file, or the one that the verb is for."""
    names = [value for option, value in itertools.pairwise(arguments) if option == "--recipe"]
    names += [argument.partition("=")[2] for argument in arguments if argument.startswith("--recipe=")]
    files = [Path(argument) for argument in arguments if argument.endswith((".yaml", ".yml"))]
    kind = load(files[0] if files else None, {"recipe": names[0]} if names else {}, verb)
    lines = ["recipes, the first line of a configuration file; `--recipe NAME --help` lists the fields of one:"]
    for name, recipe in RECIPES.items():
        lines.append(f"  {name:<9} {recipe.__dataclass_fields__['recipe'].metadata['doc']}")
    lines.append(f"\nfields of recipe {kind.recipe}, as `--name value` or in the configuration file:")
    for name, type_name, default, doc in describe(type(kind)):
        shown = "null" if default is None else repr(default)
        lines += [f"  --{name} <{type_name}>", f"        {doc} (default: {shown})"]
    return "\n".join(lines)
