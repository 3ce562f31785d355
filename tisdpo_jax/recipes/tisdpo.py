"""TIS-DPO, and every method that trains one policy on pairs, as a graph. Nothing is made here.

(sft) -> base
base -> reference scores
base -> plus, minus          (S) SFT on chosen / on rejected; (D) DPO forward / reversed; (P) nothing to train
plus, minus -> scores -> token weights
base, weights -> policy
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from tisdpo_jax.artifacts import Stage
from tisdpo_jax.config import Experiment
from tisdpo_jax.estimators import Read, reads_of
from tisdpo_jax.objectives import Dpo, Sft
from tisdpo_jax.roles import Role, Roles, contrast_roles, policy_role
from tisdpo_jax.stages import (
    HEAD,
    REFERENCE_LOGPS,
    CachedScores,
    Folded,
    HiddenStates,
    Models,
    PairColumns,
    Pretrained,
    ReferenceHead,
    Training,
)

BASE = Role("base")
SIDES = {"plus": {"sft": (0,), "dpo": (0, 1)}, "minus": {"sft": (1,), "dpo": (1, 0)}}


ByPart = tuple[tuple[str, Stage], ...]


class Graph(NamedTuple):
    """The stages that others ask for."""

    pretrained: Stage
    base: Stage  # what the policy starts from
    columns: ByPart  # by split
    policy: Training


def tisdpo(config: Experiment, *, extra: Iterable[Read] = ()) -> Graph:
    """The run of a configuration. `extra` is read of models too, whatever the objective needs."""
    lora = config.lora.rank > 0
    alone = Roles(policy_role(lora=lora), None)
    pretrained = Pretrained()
    base: Stage = pretrained
    if config.sft.epochs:
        under: Models = (("params", "base", pretrained),) if lora else ()
        base = Folded(Training("sft", Sft(), "sft", pretrained, alone, (0,), under), pretrained)
    models: Models = (("params", "base", base),)
    reads = tuple(dict.fromkeys((*wanted_reads(config), *extra)))
    if trained_contrast(config, reads):
        models += _contrast(config, base, models)
    columns = pair_columns(config, models, reads)
    return Graph(pretrained, base, columns, policy_training(config, base, models, columns))


def _contrast(config: Experiment, base: Stage, models: Models) -> Models:
    """pi+ and pi-, each trained from the base on sides of its own."""
    construction, lora = config.contrast.construction, config.lora.rank > 0
    objective = Sft() if construction == "sft" else Dpo(beta=config.contrast.beta)
    cached = objective.needs.reference == "logps" and config.scores == "cached"
    live = BASE if objective.needs.reference == "logps" and not cached else None
    columns = PairColumns("train", (CachedScores(REFERENCE_LOGPS, BASE, "train", models),), False)
    trainings = (
        Training(
            name,
            objective,
            "contrast.training",
            base,
            Roles(policy_role(lora=lora), live),
            SIDES[name][construction],
            models,
            (("train", columns),) if cached else (),
            taken=("reference_logps",) if cached else (),
        )
        for name in ("plus", "minus")
    )
    if lora:
        return tuple(("lora", training.name, training) for training in trainings)
    return tuple(("params", training.name, Folded(training, base)) for training in trainings)


def pair_columns(config: Experiment, models: Models, reads: Iterable[Read]) -> ByPart:
    """What each split's pairs are given beside their tokens: from the records, or from scores that are kept."""
    if config.scores == "online":
        return tuple((split, PairColumns(split, (), False)) for split in splits_of(config))
    reads = (*reads, *((REFERENCE_LOGPS,) if scored_reference(config) else ()))
    roles, derived = roles_of(config), config.contrast.construction != "none"
    return tuple(
        (
            split,
            PairColumns(split, tuple(CachedScores(read, roles[read.role], split, models) for read in reads), derived),
        )
        for split in splits_of(config)
    )


def policy_training(
    config: Experiment, base: Stage, models: Models, columns: ByPart, *, reference: Role = BASE
) -> Training:
    """The training of the policy: what its objective needs is a column, or a model in its step."""
    needs, online = config.loss.needs, config.scores == "online"
    taken, live, states = list(needs.columns), dict[str, Role](), ByPart()
    if online and config.contrast.construction != "none" and "token_weights" in taken:
        taken.remove("token_weights")
        live = {read.role: roles_of(config)[read.role] for read in wanted_reads(config)}
    if scored_reference(config):
        taken.append("reference_logps")
    elif needs.reference != "none":
        live["reference"] = reference
    if needs.direction and config.reference_states == "cached":  # its head is all that is left in the step
        states = tuple((split, HiddenStates(reference, split, models)) for split, _ in columns)
        (whole,) = (stage for _, key, stage in models if key == reference.params)
        models, live["reference"] = (*models, ("params", HEAD, ReferenceHead(whole))), Role(HEAD)
    roles = Roles(policy_role(lora=config.lora.rank > 0), live.pop("reference", None), **live)
    read = tuple(one for one in models if one[:2] in roles.needs())
    contrasted = bool(wanted_reads(config))
    of_step = (roles, needs.sides, read, columns, states, tuple(taken), contrasted)
    return Training("policy", config.loss, "train", base, *of_step)


def scored_reference(config: Experiment) -> bool:
    """Whether the reference's log-likelihoods are a column; else it is in the step, or not needed."""
    return config.loss.needs.reference == "logps" and config.scores == "cached"


def wanted_reads(config: Experiment) -> tuple[Read, ...]:
    """What the columns that the objective needs are made of; nothing where the records bring them."""
    if config.contrast.construction == "none":
        return ()
    return reads_of(config.loss.needs.columns, config.weights)


def trained_contrast(config: Experiment, reads: Iterable[Read]) -> bool:
    """Whether pi+ and pi- are trained: something reads them, and the construction trains them."""
    read = any(read.role in ("plus", "minus") for read in reads)
    return read and config.contrast.construction in ("sft", "dpo")


def roles_of(config: Experiment) -> dict[str, Role]:
    """The models that values are read of, by the name that estimators have for them."""
    pair = contrast_roles(config.contrast.construction, lora=config.lora.rank > 0)
    return {"reference": BASE, **(dict(zip(("plus", "minus"), pair, strict=True)) if pair else {})}


def splits_of(config: Experiment) -> tuple[str, ...]:
    return ("train", "eval") if config.data.eval or config.data.eval_fraction else ("train",)
