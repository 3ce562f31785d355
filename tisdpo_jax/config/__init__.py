"""Everything an experiment is. Nothing here reads a file."""

from tisdpo_jax.config.build import build, describe, let_go, nest, resolved
from tisdpo_jax.config.idle import idle, without
from tisdpo_jax.config.places import check_places
from tisdpo_jax.config.prompt_pairs import PROMPT_PAIRS, with_prompts
from tisdpo_jax.config.schema import (
    ContrastSection,
    DataSection,
    DlmaSection,
    EvaluationSection,
    Experiment,
    JudgeSection,
    LoggingSection,
    LoraSection,
    MeshSection,
    ModelSection,
    OptimizerSection,
    SamplingSection,
    StageSection,
    TrainSection,
)
from tisdpo_jax.config.validate import validate

__all__ = [
    "PROMPT_PAIRS",
    "ContrastSection",
    "DataSection",
    "DlmaSection",
    "EvaluationSection",
    "Experiment",
    "JudgeSection",
    "LoggingSection",
    "LoraSection",
    "MeshSection",
    "ModelSection",
    "OptimizerSection",
    "SamplingSection",
    "StageSection",
    "TrainSection",
    "build",
    "check_places",
    "describe",
    "idle",
    "let_go",
    "nest",
    "resolved",
    "validate",
    "with_prompts",
    "without",
]
