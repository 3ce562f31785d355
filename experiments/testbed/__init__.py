"""A world with known token rewards: how well token weights are estimated, and what they are worth.

`world` is the language, `bench` trains in it, `cells` says what is compared, `statistics` and `tables` what came out.
"""

from experiments.testbed.bench import Bench, Outcome, Setting
from experiments.testbed.cells import Cell, ablations, methods
from experiments.testbed.statistics import at_kl, paired, quality
from experiments.testbed.tables import Row, Table
from experiments.testbed.world import Pairs, World, draw_pairs, draw_prompts, draw_responses, make_world, token_rewards

__all__ = [
    "Bench",
    "Cell",
    "Outcome",
    "Pairs",
    "Row",
    "Setting",
    "Table",
    "World",
    "ablations",
    "at_kl",
    "draw_pairs",
    "draw_prompts",
    "draw_responses",
    "make_world",
    "methods",
    "paired",
    "quality",
    "token_rewards",
]
