"""What all stages of a run share, opened once: devices, model, tokenizer, directory, metrics. No data, no weights."""

from __future__ import annotations

import dataclasses
import functools
import logging
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from tisdpo_jax import interchange
from tisdpo_jax.config import Experiment
from tisdpo_jax.errors import ConfigError
from tisdpo_jax.models import Model
from tisdpo_jax.stages.devices import check_batches, check_model, model_of, open_mesh
from tisdpo_jax.stages.encoder import Encoder
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

    @functools.cached_property
    def encoder(self) -> Encoder:
        return Encoder.of(self.config, self.tokenizer)

    def say(self, text: str) -> None:
        """A line for the terminal, once for all processes."""
        if jax.process_index() == 0:
            print(text, flush=True)


def open_session(config: Experiment, run_dir: Path, interrupt: Interrupt, *, model: str = "") -> Session:
    """Checks everything that can be checked before data and weights are read, cheapest first.

    Args:
      model: another than `model.path`, which is looked at and not trained.
    """
    mesh, path = open_mesh(config), named_path(model or config.model.path)
    transformer = interchange.read_config(path)
    computed = model_of(config, transformer)
    if not model:
        check_batches(config, mesh)
        check_model(config, transformer, mesh)
        interchange.check_params(path, computed.config)
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
        model=computed,
        model_path=path,
        tokenizer=tokenizer,
        metrics=MetricsLog(run_dir, config.logging, config=dataclasses.asdict(config)),
        interrupt=interrupt,
    )


def open_tokenizer(config: Experiment, model: Path | None = None) -> Any:
    """The tokenizer of `model.tokenizer` or, without one, that of the model."""
    named = config.model.tokenizer
    return interchange.load_tokenizer(Path(named).expanduser() if named else model or named_path(config.model.path))


def named_path(name: str) -> Path:
    """Where the model is that a configuration names; `demo` and models of the hub are fetched first."""
    if name == "demo":
        return interchange.demo_model_path(DEMO_CACHE.expanduser())
    return interchange.local_model(name)
