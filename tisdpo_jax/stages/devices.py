"""The devices of a run: its mesh, how the model is computed on them, and whether model and batches divide by them."""

from __future__ import annotations

import functools
import logging
from typing import Any

import jax
from jax.sharding import Mesh

from tisdpo_jax import partitioning
from tisdpo_jax.config import Experiment
from tisdpo_jax.models import ComputeConfig, Model, TransformerConfig, abstract_params, init_adapters

log = logging.getLogger(__name__)


def open_mesh(config: Experiment, devices: Any = None) -> Mesh:
    section = config.mesh
    options = {} if devices is None else {"devices": devices}
    return partitioning.make_mesh(section.data, section.fsdp, section.tensor, slices=section.slices, **options)


def check_model(config: Experiment, transformer: TransformerConfig, mesh: Mesh) -> None:
    """Raises ConfigError for a mesh that the model's shapes do not divide by, and adapters that fit nothing."""
    partitioning.check_heads(transformer.num_heads, transformer.num_kv_heads, mesh)
    partitioning.param_shardings(abstract_params(transformer), mesh)
    if config.lora.rank:
        make = functools.partial(init_adapters, rank=config.lora.rank, targets=config.lora.targets)
        jax.eval_shape(make, jax.random.key(0), abstract_params(transformer))


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


def model_of(config: Experiment, transformer: TransformerConfig, platform: str = "") -> Model:
    """The model of a run: that of `transformer`, with another head where the objective reads rewards."""
    transformer = transformer.scoring if config.loss.needs.reads == "rewards" else transformer
    return Model(transformer, compute_config(config, platform))


def check_batches(config: Experiment, mesh: Mesh) -> None:
    """Raises ConfigError for a stage whose micro-batches leave devices idle; warns of batches that do not divide."""
    for name, section in config.trainings.items():
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
