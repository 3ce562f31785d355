"""What a command names and this machine does not have: one line that says what is meant, or how to get it."""

from __future__ import annotations

import difflib
import re
from pathlib import Path

import tisdpo_jax
from tisdpo_jax.config import MODELS, PATHS, TOKENIZERS, Experiment, check_path
from tisdpo_jax.errors import ConfigError

_BARE = re.compile(r"[A-Za-z0-9][\w.-]*")  # old models of the hub have no ORG
_FILES = (".gguf", ".json", ".jsonl", ".gz", ".jinja", ".jinja2", ".yaml", ".yml", ".safetensors", ".bin")


def configuration_file(name: str | Path) -> Path:
    """The configuration file, if it is there. Raises: ConfigError with those that may be meant."""
    path = Path(check_path("the configuration file", str(name)))
    try:
        if path.is_file():
            return path
        names = _near(path)
    except OSError as error:
        raise ConfigError(f"{path}: no such configuration file ({error.strerror})") from None
    if path.is_dir():
        inside = sorted(str(file) for file in path.glob("*.y*ml"))[:3]
        raise ConfigError(
            f"{path}: is a directory, not a configuration file" + (f"; there is {', '.join(inside)}" if inside else "")
        )
    if names:
        raise ConfigError(f"{path}: no such configuration file; did you mean {' or '.join(map(str, names))}?")
    shipped = [_shown(file) for file in _shipped()]
    hint = f"; shipped are {', '.join(shipped)}" if shipped else "; `tisdpo run --help` lists what one may hold"
    raise ConfigError(f"{path}: no such configuration file{hint}")


def _near(path: Path) -> list[str]:
    """Files of the same folder and shipped ones whose names are like that of `path`, the likeliest first."""
    beside = sorted(file for file in path.parent.glob("*") if file.suffix in (".yaml", ".yml")) if path.parent else []
    found: list[str] = []
    for files in (beside, _shipped()):
        by_name = {file.stem.lower(): file for file in files}
        near = difflib.get_close_matches(path.name.lower().removesuffix(path.suffix.lower()), by_name, n=1, cutoff=0.6)
        found += [shown for name in near if (shown := _shown(by_name[name])) not in found]
    return found


def _shipped() -> list[Path]:
    """The configurations that come with the package, where they are: in a clone, or here."""
    for folder in (Path("configs"), Path(tisdpo_jax.__file__).resolve().parents[1] / "configs"):
        if files := sorted(folder.glob("*.yaml")):
            return files
    return []


def _shown(file: Path) -> str:
    """A path as it can be typed here."""
    here = Path.cwd()
    return str(file.relative_to(here) if file.is_absolute() and file.is_relative_to(here) else file)


def check_hub_names(config: Experiment) -> None:
    """Raises ConfigError for a field that names something of the Hugging Face hub where something else is wanted."""
    judge = config.evaluation.judge
    named = [("evaluation.judge.models", part.partition("=")[2].strip()) for part in judge.models.split(",")]
    for field in PATHS:
        value: object = config
        for part in field.split("."):
            value = getattr(value, part)
        if field != "run_dir":
            named.append((field, str(value)))
    for field, value in named:
        check_hub_name(field, value)


def check_hub_name(field: str, value: str) -> None:
    """The same for one field."""
    model = field in (*MODELS, *TOKENIZERS, "evaluation.judge.models")
    known = value in ("", "demo", "auto", "hh") or value.partition(":")[0] in PATHS.get(field, ())
    if known or value.lower().endswith(_FILES) or _exists(Path(value).expanduser()):
        return
    from tisdpo_jax.interchange import is_hub_name  # late: it loads jax

    hub = is_hub_name(value)
    if model and _BARE.fullmatch(value):
        raise ConfigError(
            f"{field} {value}: no such file or directory; models of the Hugging Face hub are ORG/NAME[@revision]"
        )
    if model:  # fetched when it is read
        return
    if hub and field == "data.template":
        raise ConfigError(f"{field} {value}: no such file; it must be auto (the tokenizer's), hh, or a jinja file")
    if hub and "hf" in PATHS.get(field, ()):
        raise ConfigError(f"{field} {value}: no such file; a data set of the Hugging Face hub is written hf:{value}")
    if hub:
        raise ConfigError(
            f"{field} {value}: no such file; prompts are read from a .jsonl, .jsonl.gz or .json file on this machine"
        )


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # a name that no file can have
        return False
