"""Everything a configuration is. Nothing here reads a file."""

from tisdpo_jax.config.build import build, carried, describe, get, leaves, let_go, nest, replaced, resolved
from tisdpo_jax.config.places import PLACES, check_address, check_path, check_places, is_address, named_places
from tisdpo_jax.config.prompt_pairs import PROMPT_PAIRS, with_prompts
from tisdpo_jax.config.recipes import (
    RECIPES,
    DlmaRecipe,
    DpoRecipe,
    EvaluateRecipe,
    Experiment,
    GenerateRecipe,
    RewardRecipe,
    SftRecipe,
    TisDpoRecipe,
)
from tisdpo_jax.config.rules import idle, validate, without
from tisdpo_jax.config.schema import (
    ContrastSection,
    DlmaSection,
    GenerateSection,
    JudgeSection,
    LoggingSection,
    MeshSection,
    OptimizerSection,
    SamplingSection,
    StageSection,
)
from tisdpo_jax.config.values import parse_yaml

__all__ = [
    "PLACES",
    "PROMPT_PAIRS",
    "RECIPES",
    "ContrastSection",
    "DlmaRecipe",
    "DlmaSection",
    "DpoRecipe",
    "EvaluateRecipe",
    "Experiment",
    "GenerateRecipe",
    "GenerateSection",
    "JudgeSection",
    "LoggingSection",
    "MeshSection",
    "OptimizerSection",
    "RewardRecipe",
    "SamplingSection",
    "SftRecipe",
    "StageSection",
    "TisDpoRecipe",
    "build",
    "carried",
    "check_address",
    "check_path",
    "check_places",
    "describe",
    "get",
    "idle",
    "is_address",
    "leaves",
    "let_go",
    "named_places",
    "nest",
    "parse_yaml",
    "replaced",
    "resolved",
    "validate",
    "with_prompts",
    "without",
]
