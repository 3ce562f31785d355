"""Values that do nothing beside the others: what each objective, optimizer and construction reads. Pure.

A value that is ignored in silence is a result that is reported under a wrong name, so it is refused by name instead.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from typing import Any

from tisdpo_jax.config.fields import get, replaced
from tisdpo_jax.config.places import is_address
from tisdpo_jax.config.schema import Experiment, OptimizerSection, StageSection
from tisdpo_jax.estimators import reads_of

OPTIMIZERS: dict[str, tuple[str, ...]] = {"adamw": ("b1", "b2", "eps"), "rmsprop": ("b2", "eps"), "adafactor": ()}
"""The fields of an optimizer that are for some of them only."""


def idle(config: Experiment, verb: str = "") -> dict[str, str]:
    """Dotted names of values that are not the defaults and do nothing, and why.

    Args:
      verb: of the command; without it, what any verb reads counts.
    """
    default, reasons = Experiment(), dict[str, str]()
    for used, why, names in _rules(config, verb):
        for name in () if used else names:
            for leaf in _changed(name, config, default):
                reasons.setdefault(leaf, why)
    return reasons


def without(config: Experiment, names: Iterable[str]) -> Experiment:
    """The configuration with the defaults of these fields."""
    default = Experiment()
    for name in names:
        section, _, leaf = name.rpartition(".")
        if leaf == "method":  # another kind of section
            config = replaced(config, section, get(default, section))
        else:
            config = replaced(config, name, _usual(name, config))
    return config


Rule = tuple[bool, str, tuple[str, ...]]  # whether it does something, why not, names of fields and sections


def _rules(config: Experiment, verb: str) -> Iterator[Rule]:
    yield from _objective(config, verb)
    yield from _contrast(config, verb)
    yield from _stages(config)
    yield from _prompts(config, verb)
    yield from _data(config)
    yield from _judge(config)


def _objective(config: Experiment, verb: str) -> Iterator[Rule]:
    loss = config.loss.name
    yield getattr(config.loss, "variant", 2) == 2, "loss.variant 1 has no alpha", ("loss.alpha",)
    shown = "self_reward" in config.loss.needs.columns or bool(config.dlma.rounds) or verb == "inspect"  # in pictures
    weighs = "token_weights" in config.loss.needs.columns or shown
    yield weighs, f"loss.name {loss} takes no token weights", ("weights",)
    brought = config.contrast.construction == "none" and verb != "inspect"
    yield not brought, "with contrast.construction none the records bring their weights", ("weights",)


def _contrast(config: Experiment, verb: str) -> Iterator[Rule]:
    loss, construction = config.loss.name, config.contrast.construction
    asks = verb == "generate" or (not verb and config.sampling.show != "main")
    needs = config.loss.needs
    reads = bool(reads_of(needs.columns, config.weights)) or bool(config.dlma.rounds)
    texts = ("contrast.pair", "contrast.positive_prompt", "contrast.negative_prompt")
    trained = ("contrast.training",)
    if not reads:
        weights = f" with weights.method {config.weights.method}" if "token_weights" in needs.columns else ""
        why = f"loss.name {loss}{weights} does not read pi+ and pi-"
        yield construction == "none", why, ("contrast.construction",)
        yield False, why, ("contrast.beta", *trained)
        yield asks, why, texts
    why = f"contrast.construction {construction} does not read it"
    yield construction == "prompts" or asks, why, texts
    yield construction == "dpo", why, ("contrast.beta",)
    yield construction in ("sft", "dpo"), why, trained
    scored = needs.reference != "none" or reads
    yield scored, f"loss.name {loss} reads no other model", ("contrast.scores",)
    yield (
        needs.direction is not None,
        "only a loss with the KL reads the reference's hidden states",
        ("contrast.reference_states",),
    )


def _stages(config: Experiment) -> Iterator[Rule]:
    yield config.sft.epochs > 0, "sft.epochs is 0", ("sft",)
    stages: tuple[tuple[str, StageSection], ...] = (
        ("sft", config.sft),
        ("contrast.training", config.contrast.training),
        ("train", config.train),
    )
    for name, stage in stages:
        optimizer: OptimizerSection = stage.optimizer
        for field in ("b1", "b2", "eps"):
            used = field in OPTIMIZERS[optimizer.name]
            yield used, f"{name}.optimizer.name {optimizer.name} does not read it", (f"{name}.optimizer.{field}",)
        constant = optimizer.schedule == "constant"
        why = f"{name}.optimizer.schedule is constant"
        yield not constant, why, (f"{name}.optimizer.end_fraction",)
    yield config.lora.rank > 0, "lora.rank is 0", ("lora",)


def _prompts(config: Experiment, verb: str) -> Iterator[Rule]:
    section, dlma = config.sampling, config.dlma
    yield (
        verb in ("", "generate") or dlma.rounds > 0,
        f"tisdpo {verb} without dlma.rounds samples nothing",
        ("sampling",),
    )
    engine = f"sampling.engine {section.engine} does not read it"
    of_http = ("url", "endpoint_model", "concurrency", "timeout", "retries")
    of_local = ("batch_size", "max_prompt", "policy")
    draws = ("max_new_tokens", "temperature", "top_k", "top_p", "min_p", "stop", "seed")
    local = section.engine == "local" or dlma.rounds > 0  # DLMA's held-out answers are always made here
    yield section.engine == "http", engine, tuple(f"sampling.{name}" for name in of_http)
    yield local, engine, tuple(f"sampling.{name}" for name in of_local)
    yield local or section.engine == "http", engine, tuple(f"sampling.{name}" for name in draws)
    yield dlma.rounds > 0, "dlma.rounds is 0", ("dlma",)
    yield dlma.rounds > 1, "dlma.rounds is 1: there is no later round", ("dlma.reference",)
    yield not dlma.eval_prompts, "dlma.eval_prompts names the held-out prompts", ("dlma.eval_fraction",)


def _data(config: Experiment) -> Iterator[Rule]:
    data = config.data
    held_out = bool(data.eval or data.eval_fraction)
    yield held_out or bool(config.evaluation.data), "there are no held-out pairs", ("data.eval_limit",)
    yield held_out, "there are no held-out pairs (data.eval, data.eval_fraction)", ("train.eval_every",)
    yield data.on_error == "skip", "data.on_error is fail", ("data.max_invalid",)
    own = ("data.limit", "data.format", "data.on_error", "data.max_invalid", "data.eval_fraction", "train.eval_every")
    yield not config.dlma.rounds, "DLMA makes its own pairs (dlma.rounds)", own


def _judge(config: Experiment) -> Iterator[Rule]:
    judge = config.evaluation.judge
    names = {field.name: f"evaluation.judge.{field.name}" for field in dataclasses.fields(judge)}
    others = tuple(name for field, name in names.items() if field != "by")
    yield bool(judge.by), "evaluation.judge.by is empty", others
    of_endpoints = tuple(names[field] for field in ("endpoint_model", "criterion", "concurrency", "timeout", "retries"))
    yield is_address(judge.by), "evaluation.judge.by is no endpoint", of_endpoints
    yield not is_address(judge.by), "an endpoint gives verdicts, no scores", (names["tie_band"],)
    alone = tuple(names[field] for field in ("models", "prompts", "limit", "temperature", "tie_band", "anchor"))
    yield not config.dlma.rounds, "DLMA compares the model before with the model after", alone


def _changed(name: str, config: Experiment, default: Experiment) -> Iterator[str]:
    """Leaves of a field or section that are not its defaults; of another kind of section, that it is one."""
    section, _, leaf = name.rpartition(".")
    if section and leaf not in type(get(config, section)).__dataclass_fields__:
        return  # of another kind than this section is
    value = get(config, name)
    if not dataclasses.is_dataclass(value):
        if value != _usual(name, config):
            yield name
    elif type(value) is not type(get(default, name)):
        yield f"{name}.method"
    else:
        for field in dataclasses.fields(value):
            yield from _changed(f"{name}.{field.name}", config, default)


def _usual(name: str, config: Experiment) -> Any:
    """The default of a field; of a section of several kinds, that of the kind that it is."""
    section, _, leaf = name.rpartition(".")
    whole = get(Experiment(), section) if section else Experiment()
    here = get(config, section) if section else config
    return getattr(whole if type(whole) is type(here) else type(here)(), leaf)
