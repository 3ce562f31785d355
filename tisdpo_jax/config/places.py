"""Where things are that a configuration names: one rule for every field that holds a path or an address. Pure.

Known are plain local paths (`~` is the home directory), ORG/NAME of the hub for models, and the words of each field;
what has a scheme is refused by name, so that `gs://bucket/run` never becomes a directory called `gs:`.
"""

from __future__ import annotations

import os.path
import re
import urllib.parse

from tisdpo_jax.config.fields import get, replaced
from tisdpo_jax.config.schema import Experiment
from tisdpo_jax.errors import ConfigError

PAIRS = ("demo", "hf", "tfds")  # kinds of pairs that are no file, `KIND:NAME`

PATHS: dict[str, tuple[str, ...]] = {
    "run_dir": (),
    "model.path": (),
    "model.tokenizer": (),
    "data.train": PAIRS,
    "data.eval": PAIRS,
    "data.template": (),
    "sampling.prompts": ("demo",),
    "sampling.policy": (),
    "dlma.eval_prompts": ("demo",),
    "evaluation.policy": (),
    "evaluation.reference": (),
    "evaluation.data": PAIRS,
    "evaluation.judge.prompts": (),
}
"""Every field that names a place on this machine, and the kinds of names beside paths that it knows."""

MODELS = ("model.path", "sampling.policy", "evaluation.policy", "evaluation.reference")
TOKENIZERS = ("model.tokenizer",)

_SCHEME = re.compile(r"\s*([A-Za-z][A-Za-z0-9+.-]*):(//?)")
_BUCKETS = {"gs": "gcsfuse", "s3": "mountpoint-s3 or s3fs"}


def check_places(config: Experiment) -> Experiment:
    """The configuration with `~` of its paths expanded.

    Raises: ConfigError that names the field whose value has a scheme, or an address that holds more than an address.
    """
    changed: dict[str, str] = {}
    for name, kinds in PATHS.items():
        value = str(get(config, name))
        changed[name] = check_path(name, value, kinds)
    judge = config.evaluation.judge
    for part in judge.models.split(","):
        check_path("evaluation.judge.models", part.partition("=")[2].strip())
    if config.sampling.url:
        check_address(config.sampling.url, "sampling.url")
    if is_address(judge.by):
        check_address(judge.by, "evaluation.judge.by")
    else:
        changed["evaluation.judge.by"] = check_path("evaluation.judge.by", judge.by)
    for name, value in changed.items():
        if value != get(config, name):
            config = replaced(config, name, value)
    return config


def check_path(name: str, value: str, kinds: tuple[str, ...] = ()) -> str:
    """The path with `~` expanded. Raises: ConfigError for a value with a scheme, by the name of its field."""
    scheme = _SCHEME.match(value)
    if scheme and (scheme[2] == "//" or scheme[1].lower() not in kinds):
        raise ConfigError(f"{name} is {_shown(value)}: {_remedy(name, scheme[1].lower(), value)}")
    kind, _, rest = value.partition(":")
    head, path = (f"{kind}:", rest) if rest and kind in kinds else ("", value)
    if not path.startswith("~"):
        return value
    expanded = os.path.expanduser(path)
    if expanded.startswith("~"):
        raise ConfigError(f"{name} is {value}: there is no such home directory; write the path in full")
    return head + expanded


def _remedy(name: str, scheme: str, value: str) -> str:
    if scheme == "file":
        return "write the path alone, without file://"
    hub = re.search(
        r":/*([\w.-]+/[\w.-]+)" if scheme == "hf" else r"(?:huggingface\.co|hf\.co)/([\w.-]+/[\w.-]+)", value
    )
    if hub and name in MODELS + TOKENIZERS:
        return f"a model of the hub is written as its name alone, {hub[1]}"
    if scheme == "hf" and "hf" in PATHS.get(name, ()):
        return "a data set of the Hugging Face hub is written hf:ORG/NAME[:SPLIT]"
    mount = f" (for example with {_BUCKETS[scheme]})" if scheme in _BUCKETS else ""
    what = "is written to" if name == "run_dir" else "is read from"
    known = ", ".join(("a plain local path", *(f"`{kind}:...`" for kind in PATHS.get(name, ()))))
    return (
        f"{scheme}:// is not supported, {name} {what} this machine's file system; mount the bucket{mount} or copy it, "
        f"and give {known}"
        if scheme in _BUCKETS
        else f"{scheme}:// is not supported; give {known}"
    )


def is_address(text: str) -> bool:
    """Whether a text is meant as the address of an endpoint."""
    return text.strip().lower().startswith(("http://", "https://"))


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
