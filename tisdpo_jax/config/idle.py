"""Values that do nothing beside the others: what each loss, kind of weights and construction knows. Pure.

A value that is ignored in silence is a result that is reported under a wrong name, so it is refused by name instead.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from typing import Any

from tisdpo_jax.config.fields import get, replaced
from tisdpo_jax.config.places import is_address
from tisdpo_jax.config.schema import Experiment, OptimizerSection, StageSection

_MARGIN = ("margin_coef", "margin_lower", "margin_upper")
LOSSES: dict[str, tuple[str, ...]] = {
    "tisdpo": ("beta", "label_smoothing", "kl_coef"),
    "dpo": ("beta", "label_smoothing"),
    "ipo": ("beta", "average"),
    "tdpo": ("beta", "alpha", "variant"),
    "kto": ("beta", "desirable_weight", "undesirable_weight"),
    "dlma": ("beta", "label_smoothing", *_MARGIN),
    "dlma+tisdpo": ("beta", "label_smoothing", "kl_coef", *_MARGIN),
    "sft": ("beta",),  # of the implicit reward that evaluation measures
}
"""The fields of `loss` that each loss knows."""

_PAPER = ("scale", "mu", "lower", "upper")
WEIGHTS: dict[str, tuple[str, ...]] = {
    "importance": _PAPER,
    "uniform": (),
    "log_uniform": (*_PAPER, "seed"),
    "shuffled": (*_PAPER, "seed"),
    "position": ("gamma",),
    "rank": _PAPER,
    "binary": ("top_percent",),
    "rank_based": (),
    "threshold_and_scale": (),
    "threshold": (),
    "origin": (),
    "random": ("seed",),
}
"""The fields of `weights` that each kind of weights knows."""

OPTIMIZERS: dict[str, tuple[str, ...]] = {"adamw": ("b1", "b2", "eps"), "rmsprop": ("b2", "eps"), "adafactor": ()}
"""The fields of an optimizer that are for some of them only."""

CONTRASTED = ("tisdpo", "dlma", "dlma+tisdpo")
"""Losses that read the contrast of pi+ and pi-."""


def idle(config: Experiment, verb: str = "") -> dict[str, str]:
    """Dotted names of values that are not the defaults and do nothing, and why.

    Args:
      verb: of the command; without it, what any verb reads counts.
    """
    default, found = Experiment(), dict[str, str]()
    for used, why, names in _rules(config, verb):
        for name in () if used else names:
            for leaf in _leaves(name, default):
                if get(config, leaf) != get(default, leaf):
                    found.setdefault(leaf, why)
    return found


def without(config: Experiment, names: Iterable[str]) -> Experiment:
    """The configuration with the defaults of these fields."""
    default = Experiment()
    for name in names:
        config = replaced(config, name, get(default, name))
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
    loss, method = config.loss.name, config.weights.method
    for field in dataclasses.fields(config.loss):
        used = field.name in ("name", *LOSSES[loss])
        yield used, f"loss.name {loss} knows {_listed(LOSSES[loss], 'loss')}", (f"loss.{field.name}",)
    yield loss != "tdpo" or config.loss.variant == 2, "loss.variant 1 has no alpha", ("loss.alpha",)
    shown = loss == "dlma" or bool(config.dlma.rounds) or verb == "inspect"  # in pictures
    weighs = loss in ("tisdpo", "dlma+tisdpo") or shown
    yield weighs, f"loss.name {loss} takes no token weights", ("weights",)
    brought = config.contrast.construction == "none" and verb != "inspect"
    yield not brought, "with contrast.construction none the records bring their weights", ("weights",)
    for field in dataclasses.fields(config.weights):
        used = field.name in ("method", *WEIGHTS[method])
        why = f"weights.method {method} knows {_listed(WEIGHTS[method], 'weights')}"
        yield used, why, (f"weights.{field.name}",)


def _listed(names: tuple[str, ...], section: str) -> str:
    return ", ".join(f"{section}.{name}" for name in names) or f"none of the fields of {section}"


def _contrast(config: Experiment, verb: str) -> Iterator[Rule]:
    loss, construction = config.loss.name, config.contrast.construction
    asks = verb == "generate" or (not verb and config.sampling.show != "main")
    reads = loss in CONTRASTED or bool(config.dlma.rounds)
    texts = ("contrast.pair", "contrast.positive_prompt", "contrast.negative_prompt")
    trained = ("contrast.training",)
    if not reads:
        why = f"loss.name {loss} does not read pi+ and pi-"
        yield construction == "none", why, ("contrast.construction",)
        yield False, why, ("contrast.beta", *trained)
        yield asks, why, texts
    why = f"contrast.construction {construction} does not read it"
    yield construction == "prompts" or asks, why, texts
    yield construction == "dpo", why, ("contrast.beta",)
    yield construction in ("sft", "dpo"), why, trained
    yield loss != "sft", "loss.name sft has no reference", ("contrast.scores",)
    kl = loss == "tdpo" or (loss in ("tisdpo", "dlma+tisdpo") and config.loss.kl_coef != 0)
    yield kl, "only a loss with the KL reads the reference's hidden states", ("contrast.reference_states",)


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
    yield data.on_error == "skip", "data.on_error is fail", ("data.max_rejected",)
    own = ("data.limit", "data.format", "data.on_error", "data.max_rejected", "data.eval_fraction", "train.eval_every")
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


def _leaves(name: str, config: Any) -> Iterator[str]:
    value = get(config, name)
    if not dataclasses.is_dataclass(value):
        yield name
        return
    for field in dataclasses.fields(value):
        yield from _leaves(f"{name}.{field.name}", config)
