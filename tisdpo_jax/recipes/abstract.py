"""A session without arrays: a job on devices that need not be there, with lengths of pairs in place of pairs.

It is a run's `Session` in all that shapes depend on, so what is lowered from it is what a run would compile.
"""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

from tisdpo_jax import interchange, partitioning
from tisdpo_jax.config import Experiment
from tisdpo_jax.data import EncodedSet
from tisdpo_jax.errors import ConfigError
from tisdpo_jax.models import SIZES, Model, TransformerConfig, abstract_params
from tisdpo_jax.planning import Topology
from tisdpo_jax.planning import lengths as measured
from tisdpo_jax.stages import DEMO_CACHE, Session, check_batches, compute_config, open_data

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

    train: EncodedSet
    held_out: EncodedSet | None
    source: str


def read_lengths(config: Experiment, source: LengthsFrom) -> Lengths:
    """The data of the configuration, or blank pairs."""
    limits = {"max_length": config.data.max_length, "max_response": config.data.max_response}
    if source == "data" or (not source and _at_hand(config)):
        tokenizer = interchange.load_tokenizer(_tokenizer_path(config))
        train, held_out = open_data(config, tokenizer)
        return Lengths(train, held_out, f"{len(train)} pairs of {config.data.train}")
    contrast = None
    if config.contrast.construction == "prompts":
        contrast = (config.contrast.positive_prompt, config.contrast.negative_prompt)
    if source == "full":
        triples, words = measured.full_lengths(**limits), "every pair as long as data.max_length allows"
    else:
        triples, words = measured.cut(measured.hh_lengths(), **limits), "512 pairs of Anthropic HH harmless-base"
    sections = (config.train, config.contrast.training, config.sft)
    count = max(PAIRS, *(16 * section.batch_size for section in sections))
    blank = measured.blank_pairs(measured.repeat(triples, count), words, contrast=contrast)
    return Lengths(blank, None, words)


def _at_hand(config: Experiment) -> bool:
    """Whether data and tokenizer can be read without fetching anything."""
    local = config.data.train.startswith("demo:") or Path(config.data.train).expanduser().is_file()
    return local and _tokenizer_path(config).exists()


def _tokenizer_path(config: Experiment) -> Path:
    if config.model.tokenizer:
        return Path(config.model.tokenizer).expanduser()
    if config.model.path == "demo":
        return next(DEMO_CACHE.expanduser().glob("*.gguf"), DEMO_CACHE.expanduser() / "demo.gguf")
    return Path(config.model.path).expanduser()


def abstract_session(config: Experiment, transformer: TransformerConfig, pairs: Lengths, topology: Topology) -> Session:
    """A session on devices that need not be there; what it has no use for, logs and tokenizer, is left out.

    Raises: ConfigError for what does not divide, as a run would.
    """
    section = config.mesh
    sizes = (section.data, section.fsdp, section.tensor)
    mesh = partitioning.make_mesh(*sizes, devices=topology.devices, slices=section.slices)
    check_batches(config, mesh)
    partitioning.check_heads(transformer.num_heads, transformer.num_kv_heads, mesh)
    partitioning.param_shardings(abstract_params(transformer), mesh)
    compute = compute_config(config, topology.platform)
    if topology.spec.kind == "gpu" and compute.attention == "cudnn":
        compute = dataclasses.replace(compute, attention="xla")  # the stand-in, a CPU, has no such kernel
    nothing = cast(Any, None)
    return Session(
        config=config,
        run_dir=Path(config.run_dir),
        mesh=mesh,
        model=Model(transformer, compute),
        model_path=Path(config.model.path),
        tokenizer=nothing,
        train=pairs.train,
        eval=pairs.held_out,
        elements=max(encoded.elements() for encoded in (pairs.train, pairs.held_out) if encoded is not None),
        metrics=nothing,
        interrupt=nothing,
    )
