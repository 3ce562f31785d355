"""What all stages of a run share, opened once: devices, model, tokenizer, directory, metrics. No data, no weights."""

from __future__ import annotations

import dataclasses
import functools
import logging
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from tisdpo_jax import interchange, partitioning
from tisdpo_jax.config import Experiment, StageSection
from tisdpo_jax.errors import ConfigError
from tisdpo_jax.models import ComputeConfig, Model, TransformerConfig, abstract_params, init_adapters
from tisdpo_jax.stages.text import Text
from tisdpo_jax.training import Interrupt, MetricsLog

log = logging.getLogger(__name__)

DEMO_CACHE = Path("~/.cache/tisdpo_jax")


@dataclasses.dataclass
class Session:
    """The context of a run's stages. Arrays live on `mesh`; stages add what they make to the run directory."""

    config: Experiment
    run_dir: Path
    mesh: Mesh
    model: Model
    model_path: Path
    tokenizer: Any
    metrics: MetricsLog
    interrupt: Interrupt

    @property
    def lora(self) -> bool:
        return self.config.lora.rank > 0

    @property
    def text(self) -> Text:
        return Text.of(self.config, self.tokenizer)

    def say(self, text: str) -> None:
        """A line for the terminal, once for all processes."""
        if jax.process_index() == 0:
            print(text, flush=True)


def open_mesh(config: Experiment, devices: Any = None) -> Mesh:
    section = config.mesh
    options = {} if devices is None else {"devices": devices}
    return partitioning.make_mesh(section.data, section.fsdp, section.tensor, slices=section.slices, **options)


def open_session(config: Experiment, run_dir: Path, interrupt: Interrupt, *, model: str = "") -> Session:
    """Checks everything that can be checked before data and weights are read, cheapest first.

    Args:
      model: another than `model.path`, which is looked at and not trained.
    """
    mesh, path = open_mesh(config), named_path(model or config.model.path)
    transformer = interchange.read_config(path)
    if not model:
        check_batches(config, mesh)
        check_model(config, transformer, mesh)
        interchange.check_params(path, transformer)
    tokenizer = open_tokenizer(config, path)
    if len(tokenizer) > transformer.vocab_size:
        raise ConfigError(
            f"the tokenizer has {len(tokenizer)} tokens, {path} only {transformer.vocab_size}; "
            "set model.tokenizer to the one that belongs to it"
        )
    return Session(
        config=config,
        run_dir=run_dir,
        mesh=mesh,
        model=Model(transformer, compute_config(config)),
        model_path=path,
        tokenizer=tokenizer,
        metrics=MetricsLog(run_dir, config.logging, config=dataclasses.asdict(config)),
        interrupt=interrupt,
    )


def open_tokenizer(config: Experiment, model: Path | None = None) -> Any:
    """The tokenizer of `model.tokenizer` or, without one, that of the model."""
    named = config.model.tokenizer
    return interchange.load_tokenizer(Path(named).expanduser() if named else model or named_path(config.model.path))


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


def named_path(name: str) -> Path:
    """Where the model is that a configuration names; `demo` is fetched first."""
    if name == "demo":
        return interchange.demo_model_path(DEMO_CACHE.expanduser())
    return Path(name).expanduser()


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
