"""Recipes: from a configuration to the graph of its run. They know no devices, files or sessions."""

from __future__ import annotations

from tisdpo_jax.config import Experiment
from tisdpo_jax.estimators import CONTRAST
from tisdpo_jax.recipes.dlma import dlma_graph
from tisdpo_jax.recipes.policy import Graph, roles_of, wanted_reads
from tisdpo_jax.recipes.reward import reward_graph
from tisdpo_jax.recipes.tisdpo import tisdpo_graph

__all__ = ["Graph", "graph_of", "roles_of", "wanted_reads"]


def graph_of(config: Experiment, *, contrast: bool = False) -> Graph:
    """The run of a configuration as stages. With `contrast`, pi+ and pi- are scored whatever the objective reads."""
    if config.recipe == "dlma":
        return dlma_graph(config)
    if config.recipe == "reward":
        return reward_graph(config)
    return tisdpo_graph(config, extra=CONTRAST if contrast and config.contrast.construction != "none" else ())
