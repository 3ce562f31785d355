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
from tisdpo_jax.roles import Casting, Role, contrast_roles, policy_role
from tisdpo_jax.stages.models import Folded, Pretrained
from tisdpo_jax.stages.scores import HEAD, REFERENCE_LOGPS, Head, HiddenStates, Models, PairColumns, Scores
from tisdpo_jax.stages.training import Training

SIDES = {"plus": {"sft": (0,), "dpo": (0, 1)}, "minus": {"sft": (1,), "dpo": (1, 0)}}


class Graph(NamedTuple):
    """The stages that others ask for."""

    pretrained: Stage
    base: Stage  # what the policy starts from
    columns: tuple[tuple[str, Stage], ...]  # by split
    policy: Training


def tisdpo(config: Experiment, *, extra: Iterable[Read] = ()) -> Graph:
    """The run of a configuration. `extra` is read of models too, whatever the objective needs."""
    lora = config.lora.rank > 0
    alone = Casting(policy_role(lora=lora), None)
    pretrained = Pretrained()
    base: Stage = pretrained
    if config.sft.epochs:
        under: Models = (("params", "base", pretrained),) if lora else ()
        base = Folded(Training("sft", Sft(), "sft", pretrained, alone, (0,), under), pretrained)
    models: Models = (("params", "base", base),)
    reads = tuple(dict.fromkeys((*wanted_reads(config), *extra)))
    if trained_contrast(config, reads):
        models += _contrast(config, base, models)
    return Graph(pretrained, base, *policy_stage(config, base, models, reads, splits_of(config)))


def _contrast(config: Experiment, base: Stage, models: Models) -> Models:
    """pi+ and pi-, each trained from the base on sides of its own."""
    construction, lora = config.contrast.construction, config.lora.rank > 0
    objective = Sft() if construction == "sft" else Dpo(beta=config.contrast.beta)
    cached = objective.needs.reference == "logps" and config.contrast.scores == "cached"
    live = Role("base") if objective.needs.reference == "logps" and not cached else None
    columns = PairColumns("train", (Scores(REFERENCE_LOGPS, Role("base"), "train", models),), False)
    trainings = (
        Training(
            name,
            objective,
            "contrast.training",
            base,
            Casting(policy_role(lora=lora), live),
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


def policy_stage(
    config: Experiment,
    base: Stage,
    models: Models,
    reads: tuple[Read, ...],
    splits: tuple[str, ...],
    *,
    reference: Role = Role("base"),  # noqa: B008  # frozen
    columns: tuple[tuple[str, Stage], ...] | None = None,
) -> tuple[tuple[tuple[str, Stage], ...], Training]:
    """The columns of each split, and the training of the policy.

    Args:
      columns: of each split, where they are made already.
    """
    needs, cached = config.loss.needs, config.contrast.scores == "cached"
    roles = {**roles_of(config), "reference": reference}
    in_step = needs.direction is not None or (needs.reference == "logps" and not cached)
    scored = (*reads, *((REFERENCE_LOGPS,) if needs.reference == "logps" and not in_step else ())) if cached else ()
    if columns is None:
        columns = tuple(
            (
                split,
                PairColumns(
                    split,
                    tuple(Scores(read, roles[read.role], split, models) for read in scored),
                    bool(cached and config.contrast.construction != "none"),
                ),
            )
            for split in splits
        )
    online = {read.role for read in wanted_reads(config)} if not cached else set()
    live = {name: role for name, role in roles.items() if name in online or (name == "reference" and in_step)}
    states: tuple[tuple[str, Stage], ...] = ()
    if in_step and needs.direction and config.contrast.reference_states == "cached":
        states = tuple((split, HiddenStates(reference, split, models)) for split in splits)
        (whole,) = (stage for collection, key, stage in models if (collection, key) == ("params", reference.params))
        models, live["reference"] = (*models, ("params", HEAD, Head(whole))), Role(HEAD)
    taken = [name for name in needs.columns if not (online and name == "token_weights")]
    if needs.reference == "logps" and not in_step:
        taken.append("reference_logps")
    casting = Casting(policy_role(lora=config.lora.rank > 0), **{"reference": None, **live})
    frozen = tuple(
        (collection, key, stage) for collection, key, stage in models if (collection, key) in casting.needs()
    )
    contrasted = bool(wanted_reads(config))
    policy = Training(
        "policy", config.loss, "train", base, casting, needs.sides, frozen, columns, states, tuple(taken), contrasted
    )
    return columns, policy


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
    return {"reference": Role("base"), **(dict(zip(("plus", "minus"), pair, strict=True)) if pair else {})}


def splits_of(config: Experiment) -> tuple[str, ...]:
    return ("train", "eval") if config.data.eval or config.data.eval_fraction else ("train",)
