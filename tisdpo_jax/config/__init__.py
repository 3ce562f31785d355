"""Everything an experiment is. Nothing here reads a file."""

from tisdpo_jax.config.build import build, describe, nest, resolved
from tisdpo_jax.config.schema import (
    ContrastSection,
    DataSection,
    EvaluationSection,
    Experiment,
    JudgeSection,
    LoggingSection,
    LoraSection,
    LossSection,
    MeshSection,
    ModelSection,
    OptimizerSection,
    StageSection,
    TrainSection,
    WeightsSection,
)
from tisdpo_jax.config.validate import validate

__all__ = [
    "ContrastSection",
    "DataSection",
    "EvaluationSection",
    "Experiment",
    "JudgeSection",
    "LoggingSection",
    "LoraSection",
    "LossSection",
    "MeshSection",
    "ModelSection",
    "OptimizerSection",
    "StageSection",
    "TrainSection",
    "WeightsSection",
    "build",
    "describe",
    "nest",
    "resolved",
    "validate",
]
