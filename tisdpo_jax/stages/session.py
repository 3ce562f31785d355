"""What all stages of a run share, made once: devices, model, tokenizer, pairs, run directory."""

from __future__ import annotations

import dataclasses
import functools
import logging
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from tisdpo_jax import interchange, partitioning
from tisdpo_jax.config import Experiment, MeshSection, StageSection
from tisdpo_jax.data import (
    Batches,
    EncodedSet,
    Layout,
    PairSet,
    apply_policy,
    balanced_batches,
    encode_pairs,
    fit,
    open_template,
    read_pairs,
    split_by_prompt,
)
from tisdpo_jax.errors import ConfigError, DataError
from tisdpo_jax.models import ComputeConfig, Model, abstract_params, init_adapters
from tisdpo_jax.stages.positions import warn_of_limit, warn_of_pairs
from tisdpo_jax.training import Interrupt, MetricsLog
from tisdpo_jax.types import Params

log = logging.getLogger(__name__)

DEMO_CACHE = Path("~/.cache/tisdpo_jax")


@dataclasses.dataclass
class Session:
    """An open run. Arrays live on `mesh`; stages add what they make to the run directory."""

    config: Experiment
    run_dir: Path
    mesh: Mesh
    model: Model
    model_path: Path
    tokenizer: Any
    train: EncodedSet
    eval: EncodedSet | None
    elements: int  # N, of every split and stage
    metrics: MetricsLog
    interrupt: Interrupt

    @property
    def lora(self) -> bool:
        return self.config.lora.rank > 0

    def split(self, name: str) -> EncodedSet:
        encoded = self.train if name == "train" else self.eval
        if encoded is None:
            raise ConfigError("there are no held-out pairs; set data.eval or data.eval_fraction")
        return encoded

    def layout(
        self,
        encoded: EncodedSet,
        batches: Iterable[np.ndarray],
        *,
        parts: int = 1,
        sides: tuple[int, ...] = (0, 1),
        views: Sequence[str] = ("main",),
    ) -> Layout:
        """One shape for `batches` of these pairs."""
        splash = self.model.compute.attention == "splash"
        return fit(
            encoded,
            batches,
            elements=self.elements,
            shards=partitioning.batch_shards(self.mesh),
            parts=parts,
            sides=sides,
            views=views,
            packed=self.config.data.packing == "shared",
            copies=splash and self.config.data.packing == "shared",
            multiple=128 if splash else 8,
            width=self.model.config.hidden_size,
            head=self.model.config.vocab_size / (12 * self.model.config.num_layers * self.model.config.hidden_size),
        )

    def passing(self, split: str, *views: str) -> tuple[Batches, list[np.ndarray]]:
        """All pairs of a split once, in batches for evaluation and scoring: the pairs, and the batches' indices."""
        encoded = self.split(split)
        size = partitioning.places(self.config.evaluation.batch_size, self.mesh)
        batches = balanced_batches(encoded.lengths(views[0]), size)
        return Batches(encoded, self.layout(encoded, batches, views=views)), batches

    def splits(self) -> tuple[str, ...]:
        return ("train",) if self.eval is None else ("train", "eval")


def open_mesh(section: MeshSection) -> Mesh:
    return partitioning.make_mesh(section.data, section.fsdp, section.tensor, slices=section.slices)


def open_session(config: Experiment, run_dir: Path, interrupt: Interrupt, *, pairs: bool = True) -> Session:
    """Checks everything that can be checked before the weights are read, cheapest first.

    `pairs` False is for what makes its own: the session has none yet.
    """
    mesh = open_mesh(config.mesh)
    check_batches(config, mesh)
    path = model_path(config)
    transformer = interchange.read_config(path)
    partitioning.check_heads(transformer.num_heads, transformer.num_kv_heads, mesh)
    partitioning.param_shardings(abstract_params(transformer), mesh)
    interchange.check_params(path, transformer)
    if config.lora.rank:  # a pattern that matches nothing is found here, not after the data are read
        make = functools.partial(init_adapters, rank=config.lora.rank, targets=config.lora.targets)
        jax.eval_shape(make, jax.random.key(0), abstract_params(transformer))
    tokenizer = interchange.load_tokenizer(
        Path(config.model.tokenizer).expanduser() if config.model.tokenizer else path
    )
    if pairs or config.dlma.rounds:  # else nothing is that long
        warn_of_limit(config, transformer, path)
    train, held_out = open_data(config, tokenizer) if pairs else (EncodedSet((), (), "no pairs"), None)
    if len(tokenizer) > transformer.vocab_size:
        raise ConfigError(
            f"the tokenizer has {len(tokenizer)} tokens, the model only {transformer.vocab_size}; "
            "set model.tokenizer to the one that belongs to it"
        )
    for encoded in (train, held_out):
        warn_of_pairs(encoded, transformer, path)
    elements = max(encoded.elements() for encoded in ([train] if held_out is None else [train, held_out]))
    if pairs:
        log.info(
            "pairs: %d for training, %d held out; responses of up to %d tokens",
            len(train),
            len(held_out) if held_out else 0,
            elements,
        )
    return Session(
        config=config,
        run_dir=run_dir,
        mesh=mesh,
        model=Model(transformer, compute_config(config)),
        model_path=path,
        tokenizer=tokenizer,
        train=train,
        eval=held_out,
        elements=elements,
        metrics=MetricsLog(run_dir, config.logging, config=dataclasses.asdict(config)),
        interrupt=interrupt,
    )


def compute_config(config: Experiment, platform: str = "") -> ComputeConfig:
    """How the configuration wants the model computed, on `platform` or, without it, on the default one."""
    attention = config.model.attention
    if attention == "auto":  # a kernel over rows with repeated prompts pays where scores of whole rows would be large
        on_tpu = (platform or jax.default_backend()) == "tpu"
        attention = "splash" if on_tpu and config.data.max_length >= 1024 else "xla"
    return ComputeConfig(
        dtype=config.model.dtype,
        param_dtype=config.model.param_dtype,
        attention=attention,
        remat=config.model.remat,
        layer_loop=config.model.layer_loop,
        lora_scale=config.lora.alpha / config.lora.rank if config.lora.rank else 1.0,
        platform=platform,
    )


def model_path(config: Experiment) -> Path:
    return named_path(config.model.path)


def named_path(name: str) -> Path:
    """Where the model is that a configuration names; `demo` and models of the hub are fetched first."""
    if name == "demo":
        return interchange.demo_model_path(DEMO_CACHE.expanduser())
    return interchange.local_model(name)


def check_batches(config: Experiment, mesh: Mesh) -> None:
    """Raises ConfigError for a stage whose micro-batches leave devices idle; warns of batches that do not divide."""
    stages: list[tuple[str, StageSection]] = [("train", config.train)]
    if config.sft.epochs > 0:
        stages.append(("sft", config.sft))
    if config.contrast.construction in ("sft", "dpo"):
        stages.append(("contrast.training", config.contrast.training))
    for name, section in stages:
        size, parts, field = section.batch_size, section.gradient_accumulation_steps, f"{name}.batch_size"
        places = partitioning.places(size, mesh, parts=parts, field=field)
        if places > size and jax.process_index() == 0:
            cut = f" times {parts} micro-batches" if parts > 1 else ""
            shards = partitioning.batch_shards(mesh)
            log.warning(
                "%s %d does not divide by mesh data*fsdp = %d%s: %d of %d places stay empty; "
                "a multiple of %d, or a larger mesh.tensor, fills them",
                *(field, size, shards, cut, places - size, places, shards * parts),
            )


def open_data(config: Experiment, tokenizer: Any) -> tuple[EncodedSet, EncodedSet | None]:
    """Training and held-out pairs as tokens; every record that cannot be used is named, or stops the run."""
    data, subset = config.data, config.evaluation.subset
    template = open_template(data.template, tokenizer)
    contrast = None
    if config.contrast.construction == "prompts":
        contrast = (config.contrast.positive_prompt, config.contrast.negative_prompt)

    def encode(pairs: PairSet) -> EncodedSet:
        encoded = encode_pairs(
            pairs,
            tokenizer,
            template=template,
            system=data.system,
            max_length=data.max_length,
            max_response=data.max_response,
            contrast=contrast,
        )
        if (encoded.invalid or encoded.unread) and jax.process_index() == 0:
            log.warning("%s", encoded.summary())
            for invalid_record in encoded.invalid:
                log.warning("  %s", invalid_record)
        usable = apply_policy(encoded, data.on_error, data.max_invalid)
        if not usable.groups:
            raise DataError(f"{usable.source}: none of its records can be used; `tisdpo inspect` names the reasons")
        return usable

    pairs = read_pairs(data.train, format=data.format, limit=data.limit, group_field=subset)
    held_out = None
    if data.eval:
        held_out = read_pairs(data.eval, format=data.format, limit=data.eval_limit, group_field=subset)
    elif data.eval_fraction:
        pairs, held_out = split_by_prompt(pairs, data.eval_fraction, data.seed)
        if data.eval_limit:
            held_out = dataclasses.replace(held_out, pairs=held_out.pairs[: data.eval_limit])
    return encode(pairs), None if held_out is None else encode(held_out)


def cast(tree: Params, dtype: str) -> Params:
    """A copy in another dtype; in the same dtype the same arrays."""
    return jax.tree.map(lambda x: x.astype(dtype), tree)
