"""A reward model as a graph: the pretrained decoder, with a head of one number, trained on pairs. Nothing is scored.

pretrained, records (their labels) -> reward model
"""

from __future__ import annotations

from tisdpo_jax.config import Experiment
from tisdpo_jax.recipes.policy import Graph, splits_of
from tisdpo_jax.roles import Roles, policy_role
from tisdpo_jax.stages import Models, PairColumns, Pretrained, Records, Training


def reward_graph(config: Experiment) -> Graph:
    """The run of a configuration."""
    pairs, pretrained, needs = Records(), Pretrained(), config.loss.needs
    columns = tuple((split, PairColumns(split, (), False, pairs)) for split in splits_of(config))
    under: Models = (("params", "base", pretrained),) if config.lora.rank else ()
    alone = Roles(policy_role(lora=config.lora.rank > 0), None)
    of_step = (alone, needs.sides, pairs, under, columns, (), needs.columns)
    return Graph(
        pairs, (), columns, pretrained, Training("reward", config.loss, "train", pretrained, *of_step), pretrained
    )
