"""What single fields cannot say: combinations that make no sense, and values that do nothing beside the others.

A value that is ignored in silence is a result that is reported under a wrong name, so it is refused by name instead.
What a recipe has no field for needs no rule.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from typing import TypeVar

from tisdpo_jax.config.build import build, chosen, get, leaves, nest
from tisdpo_jax.config.places import check_places, is_address
from tisdpo_jax.config.prompt_pairs import with_prompts
from tisdpo_jax.config.recipes import Experiment
from tisdpo_jax.errors import ConfigError
from tisdpo_jax.estimators import reads_of
from tisdpo_jax.options import complaint

E = TypeVar("E", bound=Experiment)

OPTIMIZERS: dict[str, tuple[str, ...]] = {"adamw": ("b1", "b2", "eps"), "rmsprop": ("b2", "eps"), "adafactor": ()}
"""The fields of an optimizer that are for some of them only."""


def validate(config: E, *, trains: bool = True) -> E:
    """Returns the configuration, with the prompts of `contrast.pair` and without `~` in its paths.

    Raises: ConfigError that names the field and the remedy.

    Args:
      trains: False is for what needs no training pairs: the evaluation of models that are there.
    """
    config = with_prompts(check_places(config))
    for name, field, value in leaves(config):
        if value is not None and (wrong := complaint(value, field.metadata["limits"])):
            raise ConfigError(f"{name} is {value}; {wrong}{', or null' if 'None' in str(field.type) else ''}")
    for name, field, value in leaves(config):
        if value is None and field.metadata["needed"] and (trains or name != "data.train"):
            raise ConfigError(f"{name} is not set; name {field.metadata['doc']}")
    for complained in _combinations(config):
        raise ConfigError(complained)
    for name, why in idle(config).items():
        raise ConfigError(f"{name} is {get(config, name)!r} and does nothing: {why}; take it out")
    return config


def idle(config: Experiment) -> dict[str, str]:
    """Dotted names of values that are not the defaults and do nothing, and why."""
    changed, reasons = chosen(config), dict[str, str]()
    for used, why, names in _rules(config):
        for leaf in () if used else changed:
            if any(f"{leaf}.".startswith(f"{name}.") for name in names):
                reasons.setdefault(leaf, why)
    return reasons


def without(config: E, names: Iterable[str]) -> E:
    """The configuration with the defaults of these fields."""
    left_out = set(names)
    kept = {name: value for name, value in chosen(config).items() if name not in left_out}
    return build(type(config), nest(kept, where="without"), where="without")


Rule = tuple[bool, str, tuple[str, ...]]  # whether it does something, why not, names of fields and sections


def _rules(config: Experiment) -> Iterator[Rule]:
    yield from _method(config)
    yield from _stages(config)
    yield from _sampling(config)
    yield from _data(config)


def _method(config: Experiment) -> Iterator[Rule]:
    loss, needs, construction = config.loss.name, config.loss.needs, config.contrast.construction
    prompts = ("contrast.pair", "contrast.positive_prompt", "contrast.negative_prompt")
    yield getattr(config.loss, "variant", 2) == 2, "loss.variant 1 has no alpha", ("loss.alpha",)
    reads = bool(reads_of(needs.columns, config.weights))
    if config.recipe == "tisdpo":
        brought = "with contrast.construction none the records bring their weights"
        yield construction != "none", brought, ("weights",)
        why = f"loss.name {loss} with weights.method {config.weights.method} does not read pi+ and pi-"
        yield reads or construction == "none", why, ("contrast",)
        why = f"contrast.construction {construction} does not read it"
        yield construction == "prompts", why, prompts
        yield construction == "dpo", why, ("contrast.beta",)
        yield construction in ("sft", "dpo"), why, ("contrast.training",)
    yield needs.reference != "none" or reads, f"loss.name {loss} reads no other model", ("scores",)
    kl = "only a loss with the KL reads the reference's hidden states"
    yield needs.direction is not None, kl, ("reference_states",)
    yield config.lora.rank > 0, "lora.rank is 0", ("lora",)


def _stages(config: Experiment) -> Iterator[Rule]:
    yield config.sft.epochs > 0, "sft.epochs is 0", ("sft",)
    for name in ("sft", "contrast.training", "train"):
        optimizer = get(config, name).optimizer
        for field in ("b1", "b2", "eps"):
            why = f"{name}.optimizer.name {optimizer.name} does not read it"
            yield field in OPTIMIZERS[optimizer.name], why, (f"{name}.optimizer.{field}",)
        why = f"{name}.optimizer.schedule is constant"
        yield optimizer.schedule != "constant", why, (f"{name}.optimizer.end_fraction",)


def _sampling(config: Experiment) -> Iterator[Rule]:
    section, dlma = config.sampling, config.dlma
    why = f"sampling.engine {section.engine} does not read it"
    of_http = ("url", "endpoint_model", "concurrency", "timeout", "retries")
    of_local = ("batch_size", "max_prompt", "policy")
    draws = ("max_new_tokens", "temperature", "top_k", "top_p", "min_p", "stop", "seed")
    local = section.engine == "local" or config.recipe == "dlma"  # whose held-out answers are always made here
    yield section.engine == "http", why, tuple(f"sampling.{name}" for name in of_http)
    yield local, why, tuple(f"sampling.{name}" for name in of_local)
    yield local or section.engine == "http", why, tuple(f"sampling.{name}" for name in draws)
    if config.recipe == "generate":
        yield section.show != "main", "sampling.show is main", ("contrast",)
    yield dlma.rounds > 1, "dlma.rounds is 1: there is no later round", ("dlma.reference",)
    yield dlma.eval_prompts is None, "dlma.eval_prompts names the held-out prompts", ("dlma.eval_fraction",)


def _data(config: Experiment) -> Iterator[Rule]:
    data, judge = config.data, config.evaluation.judge
    held_out = bool(data.eval or data.eval_fraction)
    yield held_out or bool(config.evaluation.data), "there are no held-out pairs", ("data.eval_limit",)
    yield held_out, "there are no held-out pairs (data.eval, data.eval_fraction)", ("train.eval_every",)
    yield data.on_error == "skip", "data.on_error is fail", ("data.max_invalid",)
    others = tuple(field.name for field in dataclasses.fields(judge) if field.name != "by")
    of_endpoints = ("endpoint_model", "criterion", "concurrency", "timeout", "retries")
    alone = tuple(name for name in others if name not in of_endpoints)
    for used, why, fields in (
        (judge.by is not None, "evaluation.judge.by is null", others),
        (is_address(judge.by), "evaluation.judge.by is no endpoint", of_endpoints),
        (not is_address(judge.by), "an endpoint gives verdicts, no scores", ("tie_band",)),
        (config.recipe != "dlma", "DLMA compares the model before with the model after", alone),
    ):
        yield used, why, tuple(f"evaluation.judge.{name}" for name in fields)


def _combinations(config: Experiment) -> Iterator[str]:
    """What is wrong with values beside each other."""
    for name, section in config.trainings.items():
        steps = section.gradient_accumulation_steps
        if section.batch_size % steps:
            field = f"{name}.gradient_accumulation_steps"
            yield f"{name}.batch_size {section.batch_size} must be a multiple of {field} {steps}"
    if config.model.attention == "cudnn" and config.data.packing != "none":
        yield "model.attention cudnn takes no packed rows; set data.packing none, or model.attention xla"
    if config.data.eval and config.data.eval_fraction:
        yield "data.eval and data.eval_fraction are both given; held-out pairs come from one of them"
    for part, lower, upper in (("weights", "lower", "upper"), ("loss", "margin_lower", "margin_upper")):
        low, high = (getattr(get(config, part), name, 0.0) for name in (lower, upper))
        if low > high:
            yield f"{part}.{lower} {low} is above {part}.{upper} {high}"
    if config.recipe == "evaluate" and not config.evaluation.policy:
        yield "evaluation.policy is not set; name the model to measure: --policy PATH"
    contrast, judge, sampling = config.contrast, config.evaluation.judge, config.sampling
    if is_address(judge.by) and not judge.endpoint_model:
        yield "evaluation.judge.endpoint_model is not set; name the model to ask the endpoint for"
    if contrast.construction == "prompts" and contrast.positive_prompt == contrast.negative_prompt:
        yield "contrast.positive_prompt and contrast.negative_prompt are the same; every token would weigh the same"
    self_reward = "self_reward" in config.loss.needs.columns
    if self_reward and config.scores == "online" and contrast.construction != "none":
        yield f"loss.name {config.loss.name} takes the self-reward of whole pairs from cached scores; set scores cached"
    if sampling.engine == "http" and not (sampling.url and sampling.endpoint_model):
        yield "sampling.engine http needs sampling.url (http://HOST:PORT/v1) and sampling.endpoint_model"
    if config.dlma.rounds > 1 and sampling.engine != "local":
        yield (
            f"dlma.rounds {config.dlma.rounds} with sampling.engine {sampling.engine}: from the second round on the "
            "trained policy answers, which that engine does not have; run one round, serve its export/, run again"
        )
