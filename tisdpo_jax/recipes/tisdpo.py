"""TIS-DPO, and every method that trains one policy on pairs, as a graph. Nothing is made here.

(sft) -> base
base -> reference scores
base -> plus, minus          (S) SFT on chosen / on rejected; (D) DPO forward / reversed; (P) nothing to train
plus, minus -> scores -> token weights
base, weights -> policy
"""

from __future__ import annotations

from collections.abc import Iterable

from tisdpo_jax.artifacts import Stage
from tisdpo_jax.config import Experiment
from tisdpo_jax.estimators import Read
from tisdpo_jax.objectives import Dpo, Sft
from tisdpo_jax.recipes.policy import BASE, Graph, columns_of_pairs, policy_training, wanted_reads
from tisdpo_jax.roles import Roles, policy_role
from tisdpo_jax.stages import (
    REFERENCE_LOGPS,
    CachedScores,
    Folded,
    Models,
    PairColumns,
    Pretrained,
    Records,
    Training,
)

SIDES = {"plus": {"sft": (0,), "dpo": (0, 1)}, "minus": {"sft": (1,), "dpo": (1, 0)}}


def tisdpo_graph(config: Experiment, *, extra: Iterable[Read] = ()) -> Graph:
    """The run of a configuration. `extra` is read of models too, whatever the objective needs."""
    pairs, pretrained = Records(), Pretrained()
    base: Stage = pretrained
    if config.sft.epochs:
        under: Models = (("params", "base", pretrained),) if config.lora.rank else ()
        alone = Roles(policy_role(lora=config.lora.rank > 0), None)
        base = Folded(Training("sft", Sft(), "sft", pretrained, alone, (0,), pairs, under), pretrained)
    models: Models = (("params", "base", base),)
    reads = tuple(dict.fromkeys((*wanted_reads(config), *extra)))
    if config.contrast.construction in ("sft", "dpo") and any(read.role in SIDES for read in reads):
        models += contrast_trainings(config, base, models, pairs)
    columns = columns_of_pairs(config, models, pairs, reads)
    policy = policy_training(config, base, models, pairs, columns)
    return Graph(pairs, tuple(stage for _, stage in columns), columns, base, policy, pretrained)


def contrast_trainings(config: Experiment, base: Stage, models: Models, pairs: Stage) -> Models:
    """pi+ and pi-, each trained from the base on sides of its own."""
    construction, lora = config.contrast.construction, config.lora.rank > 0
    objective = Sft() if construction == "sft" else Dpo(beta=config.contrast.beta)
    cached = objective.needs.reference == "logps" and config.scores == "cached"
    roles = Roles(policy_role(lora=lora), BASE if objective.needs.reference == "logps" and not cached else None)
    scores = (CachedScores(REFERENCE_LOGPS, BASE, "train", models, pairs),)
    columns = (("train", PairColumns("train", scores, False, pairs)),) if cached else ()
    taken = ("reference_logps",) if cached else ()
    trainings = {
        kind: Training(
            kind,
            objective,
            "contrast.training",
            base,
            roles,
            sides[construction],
            pairs,
            models,
            columns,
            taken=taken,
        )
        for kind, sides in SIDES.items()
    }
    if lora:
        return tuple(("lora", kind, training) for kind, training in trainings.items())
    return tuple(("params", kind, Folded(training, base)) for kind, training in trainings.items())
