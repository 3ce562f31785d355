"""Everything an experiment is. Nothing here reads a file."""

from tisdpo_jax.config.build import build, describe, let_go, nest, resolved
from tisdpo_jax.config.fields import get
from tisdpo_jax.config.idle import idle, without
from tisdpo_jax.config.places import (
    MODELS,
    PATHS,
    TOKENIZERS,
    check_address,
    check_path,
    check_places,
    is_address,
)
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
    "MODELS",
    "PATHS",
    "PROMPT_PAIRS",
    "TOKENIZERS",
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
    "check_address",
    "check_path",
    "check_places",
    "describe",
    "get",
    "idle",
    "is_address",
    "let_go",
    "nest",
    "resolved",
    "validate",
    "with_prompts",
    "without",
]
