"""Where things are that a configuration names: one rule for every field that holds a path or an address. Pure.

Known are plain local paths (`~` is the home directory), ORG/NAME of the hub for models, and the words of each field;
what has a scheme is refused by name, so that `gs://bucket/run` never becomes a directory called `gs:`.
"""

from __future__ import annotations

import os.path
import re
import urllib.parse
from collections.abc import Iterator
from typing import Any, TypeVar

from tisdpo_jax.config.build import get, leaves, replaced
from tisdpo_jax.config.recipes import Experiment
from tisdpo_jax.errors import ConfigError
from tisdpo_jax.options import Place

E = TypeVar("E", bound=Experiment)

PLACES: dict[Place, tuple[str, ...]] = {"pairs": ("demo", "hf", "tfds"), "prompts": ("demo",)}
"""What a place may be beside a path, as `KIND:NAME`."""

_SCHEME = re.compile(r"\s*([A-Za-z][A-Za-z0-9+.-]*):(//?)")
_BUCKETS = {"gs": "gcsfuse", "s3": "mountpoint-s3 or s3fs"}


def named_places(config: Any) -> Iterator[tuple[str, Place, str]]:
    """(dotted name, what it is for, value) of every path and name that a configuration holds."""
    for name, field, value in leaves(config):
        if place := field.metadata.get("place"):
            for text in value.values() if isinstance(value, dict) else () if value is None else (value,):
                yield name, place, text


def check_places(config: E) -> E:
    """The configuration with `~` of its paths expanded.

    Raises: ConfigError that names the field whose value has a scheme, or an address that holds more than an address.
    """
    for name, place, value in named_places(config):
        path = check_path(name, value, place)
        if path != value and not isinstance(get(config, name), dict):
            config = replaced(config, name, path)
    by = config.evaluation.judge.by
    if config.sampling.url:
        check_address(config.sampling.url, "sampling.url")
    if is_address(by):
        check_address(by, "evaluation.judge.by")
    elif by:
        config = replaced(config, "evaluation.judge.by", check_path("evaluation.judge.by", by))
    return config


def check_path(name: str, value: str, place: Place = "") -> str:
    """The path with `~` expanded. Raises: ConfigError for a value with a scheme, by the name of its field."""
    scheme, kinds = _SCHEME.match(value), PLACES.get(place, ())
    if scheme and (scheme[2] == "//" or scheme[1].lower() not in kinds):
        raise ConfigError(f"{name} is {_shown(value)}: {_remedy(name, place, scheme[1].lower(), value)}")
    kind, _, rest = value.partition(":")
    head, path = (f"{kind}:", rest) if rest and kind in kinds else ("", value)
    if not path.startswith("~"):
        return value
    expanded = os.path.expanduser(path)
    if expanded.startswith("~"):
        raise ConfigError(f"{name} is {value}: there is no such home directory; write the path in full")
    return head + expanded


def _remedy(name: str, place: Place, scheme: str, value: str) -> str:
    if scheme == "file":
        return "write the path alone, without file://"
    pattern = r":/*([\w.-]+/[\w.-]+)" if scheme == "hf" else r"(?:huggingface\.co|hf\.co)/([\w.-]+/[\w.-]+)"
    if place in ("model", "tokenizer") and (hub := re.search(pattern, value)):
        return f"a model of the hub is written as its name alone, {hub[1]}"
    if scheme == "hf" and "hf" in PLACES.get(place, ()):
        return "a data set of the Hugging Face hub is written hf:ORG/NAME[:SPLIT]"
    known = ", ".join(("a plain local path", *(f"`{kind}:...`" for kind in PLACES.get(place, ()))))
    if scheme not in _BUCKETS:
        return f"{scheme}:// is not supported; give {known}"
    what = "is written to" if place == "output" else "is read from"
    return (
        f"{scheme}:// is not supported, {name} {what} this machine's file system; mount the bucket (for example with "
        f"{_BUCKETS[scheme]}) or copy it, and give {known}"
    )


def is_address(text: str | None) -> bool:
    """Whether a text is meant as the address of an endpoint."""
    return (text or "").strip().lower().startswith(("http://", "https://"))


def check_address(url: str, field: str) -> str:
    """The address of an endpoint, without a slash at its end.

    Keys come from the environment: an address would carry them into config.yaml, reports and logs.

    Raises: ConfigError, which repeats neither user names, passwords nor what stands behind a question mark.
    """
    try:
        parts = urllib.parse.urlsplit(url)
        port_is_a_number = parts.port is None or parts.port > 0
    except ValueError:
        parts, port_is_a_number = urllib.parse.SplitResult("", "", "", "", ""), False
    if "@" in parts.netloc or parts.query or parts.fragment or re.search(r"://[^/]*@|[?#]", url):
        raise ConfigError(
            f"{field} is {_shown(url)} with more than an address (user name, password, ? or #): check {field}, "
            "write http://HOST:PORT/v1; a key is taken from the environment"
        )
    clean = parts.scheme.lower() in ("http", "https") and parts.hostname and port_is_a_number
    if not clean or re.search(r"[^\x21-\x7e]", url):
        named = _shown(url) if is_address(url) else field  # what is no address may be a key
        raise ConfigError(f"{named}: not an address; check {field}: write http://HOST:PORT/v1")
    return url.rstrip("/")


def _shown(value: str) -> str:
    """A value for messages: user names, passwords and queries left out."""
    hidden = re.sub(r"(?<=://)[^/\s]*@", "", value.strip())
    return re.sub(r"[?#].*", "", hidden) if "://" in hidden else hidden
