"""A session without arrays: a job on devices that need not be there, with lengths of pairs in place of pairs.

It is a run's `Session` in all that shapes depend on, so what is lowered from it is what a run would compile.
"""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

from tisdpo_jax import interchange
from tisdpo_jax.config import Experiment
from tisdpo_jax.errors import ConfigError
from tisdpo_jax.models import SIZES, TransformerConfig
from tisdpo_jax.planning import Topology
from tisdpo_jax.planning import useful as measured
from tisdpo_jax.stages import (
    DEMO_CACHE,
    Encoder,
    Session,
    Splits,
    check_batches,
    check_model,
    model_of,
    open_data,
    open_mesh,
)

LengthsFrom = Literal["", "data", "hh", "full"]
PAIRS = 2048  # made from the histogram, or 16 batches if that is more
ALIASES = {"qwen257b": "qwen2_7b"}  # released names of sizes that another name has in the zoo


def read_transformer(config: Experiment) -> TransformerConfig:
    """The architecture: from the model's own files where they are, else by its name, else from the hub's config.json.

    Raises: ConfigError for a directory that is not there and has no known name.
    """
    path = Path(config.model.path).expanduser()
    if config.model.path == "demo":
        return SIZES["smollm2_135m"]
    if path.exists():
        return interchange.read_config(path)
    name = _plain(path.name)
    known = {_plain(key): key for key in SIZES} | ALIASES
    found = next((key for shape, key in known.items() if shape in name), None)
    if found is None and interchange.is_hub_name(config.model.path):
        return interchange.read_config(interchange.local_model(config.model.path, interchange.HUB_CONFIGS))
    if found is None:
        raise ConfigError(
            f"model.path {config.model.path}: no such directory, and its name is none of {', '.join(SIZES)}; "
            "name a directory with a config.json, or one of these"
        )
    return SIZES[found]


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


class Lengths(NamedTuple):
    """Pairs with the lengths to plan for, and where those come from, in words."""

    pairs: Splits
    source: str


def read_lengths(config: Experiment, source: LengthsFrom) -> Lengths:
    """The data of the configuration, or blank pairs."""
    limits = {"max_length": config.data.max_length, "max_response": config.data.max_response}
    if source == "data" or (not source and _at_hand(config)):
        tokenizer = interchange.load_tokenizer(_tokenizer_path(config))
        pairs = Splits(*open_data(config, Encoder.of(config, tokenizer)))
        return Lengths(pairs, f"{len(pairs.train)} pairs of {config.data.train}")
    contrast = None
    if config.contrast.construction == "prompts":
        contrast = (config.contrast.positive_prompt, config.contrast.negative_prompt)
    if source == "full":
        triples, words = measured.full_lengths(**limits), "every pair as long as data.max_length allows"
    else:
        triples, words = measured.cut(measured.hh_lengths(), **limits), "512 pairs of Anthropic HH harmless-base"
    count = max(PAIRS, *(16 * section.batch_size for section in config.trainings.values()))
    blank = measured.blank_pairs(measured.repeat(triples, count), words, contrast=contrast)
    return Lengths(Splits(blank), words)


def _at_hand(config: Experiment) -> bool:
    """Whether data and tokenizer can be read without fetching anything."""
    train = config.data.train or ""  # DLMA has no pairs yet
    local = train.startswith("demo:") or Path(train).expanduser().is_file()
    return local and _tokenizer_path(config).exists()


def _tokenizer_path(config: Experiment) -> Path:
    if config.model.tokenizer:
        return Path(config.model.tokenizer).expanduser()
    if config.model.path == "demo":
        return next(DEMO_CACHE.expanduser().glob("*.gguf"), DEMO_CACHE.expanduser() / "demo.gguf")
    return Path(config.model.path).expanduser()


def abstract_session(config: Experiment, transformer: TransformerConfig, topology: Topology) -> Session:
    """A session on devices that need not be there; what it has no use for, logs and tokenizer, is left out.

    Raises: ConfigError for what does not divide, as a run would.
    """
    mesh = open_mesh(config, topology.devices)
    check_batches(config, mesh)
    check_model(config, transformer, mesh)
    model = model_of(config, transformer, topology.platform)
    if topology.spec.kind == "gpu" and model.compute.attention == "cudnn":
        compute = dataclasses.replace(model.compute, attention="xla")  # the stand-in, a CPU, has no such kernel
        model = dataclasses.replace(model, compute=compute)
    nothing = cast(Any, None)
    places = (Path(config.run_dir), mesh, model, Path(config.model.path))
    return Session(config, *places, tokenizer=nothing, metrics=nothing, interrupt=nothing)
