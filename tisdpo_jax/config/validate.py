"""What single fields cannot say: ranges, and combinations that make no sense together."""

from __future__ import annotations

import dataclasses
from typing import Any

from tisdpo_jax.config.fields import get
from tisdpo_jax.config.idle import idle
from tisdpo_jax.config.places import check_places, is_address
from tisdpo_jax.config.prompt_pairs import with_prompts
from tisdpo_jax.config.schema import Experiment, StageSection
from tisdpo_jax.errors import ConfigError
from tisdpo_jax.options import complaint


def validate(config: Experiment, *, trains: bool = True, verb: str = "") -> Experiment:
    """Returns the configuration, with the prompts of `contrast.pair` and without `~` in its paths.

    Raises: ConfigError that names the field and the remedy.

    Args:
      trains: False is for what needs no training pairs: the evaluation of models that are there.
      verb: of the command line; without it, a value may be for any of them.
    """
    config = with_prompts(check_places(config))
    _ranges(config)
    _required(config, trains)
    for name, stage in (("sft", config.sft), ("contrast.training", config.contrast.training), ("train", config.train)):
        _stage(name, stage)
    for name in ("contrast.training.epochs", "train.epochs"):
        if not get(config, name):
            _fail(f"{name} is 0; it must be above 0")
    _combinations(config)
    for name, why in idle(config, verb).items():
        value = get(config, name)
        _fail(f"{name} is {value!r} and does nothing: {why}; take it out")
    return config


def _fail(message: str) -> None:
    raise ConfigError(message)


def _required(config: Experiment, trains: bool) -> None:
    if not config.model.path:
        _fail("model.path is empty; name a Hugging Face directory, a .gguf file, ORG/NAME of the hub, or `demo`")
    if trains and config.dlma.rounds:
        if not config.sampling.prompts:
            _fail("sampling.prompts is empty; name a file of prompts, or `demo:prompts` (dlma.rounds asks for DLMA)")
        if config.data.train or config.data.eval:
            _fail("data.train and data.eval are files of pairs; DLMA makes its own (dlma.rounds), leave them empty")
    elif trains and not config.data.train:
        _fail("data.train is empty; name a file of pairs, `tfds:NAME`, `hf:NAME`, or `demo:train`")


def _ranges(section: Any, prefix: str = "") -> None:
    for field in dataclasses.fields(section):
        value, name = getattr(section, field.name), f"{prefix}{field.name}"
        if dataclasses.is_dataclass(value):
            _ranges(value, f"{name}.")
        elif field.metadata.get("limits") and (wrong := complaint(value, field.metadata["limits"])):
            _fail(f"{name} is {value}; {wrong}")


def _stage(name: str, section: StageSection) -> None:
    steps = section.gradient_accumulation_steps
    if section.batch_size % steps:
        _fail(
            f"{name}.batch_size {section.batch_size} must be a multiple of {name}.gradient_accumulation_steps {steps}"
        )


def _combinations(config: Experiment) -> None:
    if config.model.attention == "cudnn" and config.data.packing != "none":
        _fail("model.attention cudnn takes no packed rows; set data.packing none, or model.attention xla")
    if config.data.eval and config.data.eval_fraction:
        _fail("data.eval and data.eval_fraction are both given; held-out pairs come from one of them")
    for section, lower, upper in (("weights", "lower", "upper"), ("loss", "margin_lower", "margin_upper")):
        low, high = (getattr(get(config, section), name, 0.0) for name in (lower, upper))
        if low > high:
            _fail(f"{section}.{lower} {low} is above {section}.{upper} {high}")
    judge = config.evaluation.judge
    if is_address(judge.by) and not judge.endpoint_model:
        _fail("evaluation.judge.endpoint_model is empty; name the model to ask the endpoint for")
    contrast = config.contrast
    if contrast.construction == "prompts" and contrast.positive_prompt == contrast.negative_prompt:
        _fail("contrast.positive_prompt and contrast.negative_prompt are the same; every token would weigh the same")
    self_reward = "self_reward" in config.loss.needs.columns
    if self_reward and contrast.scores == "online" and contrast.construction != "none":
        _fail(
            f"loss.name {config.loss.name} takes the self-reward of whole pairs from cached scores; "
            "set contrast.scores to cached"
        )
    if config.sampling.engine == "http" and not (config.sampling.url and config.sampling.endpoint_model):
        _fail("sampling.engine http needs sampling.url (http://HOST:PORT/v1) and sampling.endpoint_model")
    if config.dlma.rounds:
        _dlma(config)


def _dlma(config: Experiment) -> None:
    if config.contrast.construction != "prompts":
        _fail(f"contrast.construction is {config.contrast.construction}; DLMA contrasts two prompts: set it to prompts")
    if config.contrast.scores != "cached":
        _fail("contrast.scores is online; DLMA chooses pairs by their scores: set it to cached")
    if config.loss.needs.sides == (0,) or config.sft.epochs:
        _fail(
            f"loss.name {config.loss.name} and sft.epochs need answers that somebody wrote; DLMA has none (dlma.rounds)"
        )
    if config.dlma.rounds > 1 and config.sampling.engine != "local":
        _fail(
            f"dlma.rounds {config.dlma.rounds} with sampling.engine {config.sampling.engine}: from the second round on "
            "the trained policy answers, which that engine does not have; run one round, serve its export/, run again"
        )
    if 0 < config.dlma.length_ratio < 1:
        _fail(f"dlma.length_ratio is {config.dlma.length_ratio}; it must be at least 1, or 0 for no limit")
