"""What a command names and this machine does not have: one line that says what is meant, or how to get it."""

from __future__ import annotations

import contextlib
import difflib
import re
from pathlib import Path

import tisdpo_jax
from tisdpo_jax.config import PLACES, Experiment, check_path, named_places
from tisdpo_jax.errors import ConfigError
from tisdpo_jax.options import Place

_BARE = re.compile(r"[A-Za-z0-9][\w.-]*")  # old models of the hub have no ORG
_FILES = (".gguf", ".json", ".jsonl", ".gz", ".jinja", ".jinja2", ".yaml", ".yml", ".safetensors", ".bin")


def configuration_file(name: str | Path) -> Path:
    """The configuration file, if it is there. Raises: ConfigError with those that may be meant."""
    path = Path(check_path("the configuration file", str(name)))
    try:
        if path.is_file():
            return path
        beside, shipped = sorted(path.parent.glob("*.y*ml")), [_shown(file) for file in _shipped()]
    except OSError as error:
        raise ConfigError(f"{path}: no such configuration file ({error.strerror})") from None
    if path.is_dir():
        inside = ", ".join(map(str, sorted(path.glob("*.y*ml"))[:3]))
        hint = f"; there is {inside}" if inside else ""
        raise ConfigError(f"{path}: is a directory, not a configuration file{hint}")
    near: dict[str, None] = {}
    stem = path.name.lower().removesuffix(path.suffix.lower())
    for files in (beside, shipped):
        by_name = {Path(file).stem.lower(): str(file) for file in files}
        near |= dict.fromkeys(by_name[match] for match in difflib.get_close_matches(stem, by_name, n=1))
    hint = "`tisdpo run --help` lists what one may hold"
    if near or shipped:
        hint = f"did you mean {' or '.join(near)}?" if near else f"shipped are {', '.join(shipped)}"
    raise ConfigError(f"{path}: no such configuration file; {hint}")


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
    for field, place, value in named_places(config):
        if place != "output":
            check_hub_name(field, place, value)


def check_hub_name(field: str, place: Place, value: str) -> None:
    """The same for one field."""
    known = value in ("", "demo", "auto", "hh") or value.partition(":")[0] in PLACES.get(place, ())
    if known or value.lower().endswith(_FILES) or _exists(Path(value).expanduser()):
        return
    from tisdpo_jax.interchange import is_hub_name  # late: it loads jax

    if place in ("model", "tokenizer"):  # of the hub: fetched when it is read
        if _BARE.fullmatch(value):
            raise ConfigError(
                f"{field} {value}: no such file or directory; models of the Hugging Face hub are ORG/NAME[@revision]"
            )
    elif is_hub_name(value):
        remedies = {
            "data.template": "it must be auto (the tokenizer's), hh, or a jinja file",
            "pairs": f"a data set of the Hugging Face hub is written hf:{value}",
        }
        prompts = "prompts are read from a .jsonl, .jsonl.gz or .json file on this machine"
        raise ConfigError(f"{field} {value}: no such file; {remedies.get(field) or remedies.get(place, prompts)}")


def _exists(path: Path) -> bool:
    with contextlib.suppress(OSError):  # a name that no file can have
        return path.exists()
    return False
