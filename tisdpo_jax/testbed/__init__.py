"""A world with known token rewards: how well token weights are estimated, and what they are worth.

`world` is the language, `bench` trains in it, `cells` says what is compared, `statistics` and `tables` what came out.
"""

from tisdpo_jax.testbed.bench import Bench, Outcome, Setting
from tisdpo_jax.testbed.cells import Cell, ablations, methods
from tisdpo_jax.testbed.statistics import area_under_curve, at_kl, paired, quality
from tisdpo_jax.testbed.tables import Row, Table
from tisdpo_jax.testbed.world import Pairs, World, draw_pairs, draw_prompts, draw_responses, make_world, token_rewards

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
    "area_under_curve",
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
