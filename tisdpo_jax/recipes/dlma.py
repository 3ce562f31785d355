"""DLMA as a graph of rounds, from prompts alone. Nothing is made here.

prompts, base -> answers behind the positive and the negative prompt
answers -> candidates -> contrast of every token -> R, token weights -> pairs
pairs, base -> policy, which the next round starts from
"""

from __future__ import annotations

from tisdpo_jax.artifacts import Stage
from tisdpo_jax.config import Experiment
from tisdpo_jax.estimators import CONTRAST
from tisdpo_jax.recipes.policy import BASE, Graph, policy_training, roles_of, scored_reference
from tisdpo_jax.roles import Role
from tisdpo_jax.stages import (
    REFERENCE_LOGPS,
    CachedScores,
    Candidates,
    Folded,
    Models,
    Pretrained,
    Responses,
    Selected,
    SelectedColumns,
)


def dlma_graph(config: Experiment) -> Graph:
    """The run of a configuration: the stages of its last round, and below them those of the others."""
    pretrained = Pretrained()
    graph = _round(config, 1, pretrained, pretrained)
    for number in range(2, config.dlma.rounds + 1):
        graph = _round(config, number, Folded(graph.policy, graph.base), pretrained)
    return graph


def _round(config: Experiment, number: int, base: Stage, first: Stage) -> Graph:
    place, roles = f"round-{number}", roles_of(config)
    models: Models = (("params", "base", base), ("params", "first", first))
    candidates = Candidates(Responses(place, base))
    scores = (CachedScores(read, roles[read.role], "train", models, candidates, place) for read in CONTRAST)
    pairs = Selected(candidates, tuple(scores))
    reference = Role("first") if number > 1 and config.dlma.reference == "first" else BASE
    cached = CachedScores(REFERENCE_LOGPS, reference, "train", models, pairs, place)
    columns = (("train", SelectedColumns(pairs, cached if scored_reference(config) else None)),)
    policy = policy_training(config, base, models, pairs, columns, reference=reference, place=place)
    return Graph(pairs, (pairs,), columns, base, policy, first)
