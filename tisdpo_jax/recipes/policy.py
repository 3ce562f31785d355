"""What a policy's training needs beside pairs: columns of values, or frozen models in its step."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from tisdpo_jax.artifacts import Stage
from tisdpo_jax.config import Experiment
from tisdpo_jax.estimators import Read, reads_of
from tisdpo_jax.roles import Role, Roles, contrast_roles, policy_role
from tisdpo_jax.stages import (
    HEAD,
    REFERENCE_LOGPS,
    CachedScores,
    HiddenStates,
    Models,
    PairColumns,
    ReferenceHead,
    Training,
)

BASE = Role("base")
ByPart = tuple[tuple[str, Stage], ...]


class Graph(NamedTuple):
    """The stages of a run that others ask for."""

    pairs: Stage  # that the policy is trained on
    scored: tuple[Stage, ...]  # what `tisdpo score` makes
    columns: ByPart  # by split
    base: Stage  # what the policy starts from
    policy: Training  # or the reward model
    first: Stage  # the pretrained model


def columns_of_pairs(config: Experiment, models: Models, pairs: Stage, reads: Iterable[Read]) -> ByPart:
    """What each split's pairs are given beside their tokens: from the records, or from scores that are kept."""
    if config.scores == "online":
        return tuple((split, PairColumns(split, (), False, pairs)) for split in splits_of(config))
    reads = (*reads, *((REFERENCE_LOGPS,) if scored_reference(config) else ()))
    roles, derived = roles_of(config), config.contrast.construction != "none"

    def columns(split: str) -> PairColumns:
        scores = tuple(CachedScores(read, roles[read.role], split, models, pairs) for read in reads)
        return PairColumns(split, scores, derived, pairs)

    return tuple((split, columns(split)) for split in splits_of(config))


def policy_training(
    config: Experiment,
    base: Stage,
    models: Models,
    pairs: Stage,
    columns: ByPart,
    *,
    reference: Role = BASE,
    place: str = "",
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
        states = tuple((split, HiddenStates(reference, split, models, pairs, place)) for split, _ in columns)
        (whole,) = (stage for _, key, stage in models if key == reference.params)
        models, live["reference"] = (*models, ("params", HEAD, ReferenceHead(whole))), Role(HEAD)
    roles = Roles(policy_role(lora=config.lora.rank > 0), live.pop("reference", None), **live)
    read = tuple(one for one in models if one[:2] in roles.needs())
    of_step = (roles, needs.sides, pairs, read, columns, states, tuple(taken), bool(wanted_reads(config)), place)
    return Training("policy", config.loss, "train", base, *of_step)


def scored_reference(config: Experiment) -> bool:
    """Whether the reference's log-likelihoods are a column; else it is in the step, or not needed."""
    return config.loss.needs.reference == "logps" and config.scores == "cached"


def wanted_reads(config: Experiment) -> tuple[Read, ...]:
    """What the columns that the objective needs are made of; nothing where the records bring them."""
    if config.contrast.construction == "none":
        return ()
    return reads_of(config.loss.needs.columns, config.weights)


def roles_of(config: Experiment) -> dict[str, Role]:
    """The models that values are read of, by the name that estimators have for them."""
    pair = contrast_roles(config.contrast.construction, lora=config.lora.rank > 0)
    return {"reference": BASE, **(dict(zip(("plus", "minus"), pair, strict=True)) if pair else {})}


def splits_of(config: Experiment) -> tuple[str, ...]:
    return ("train", "eval") if config.data.eval or config.data.eval_fraction else ("train",)
