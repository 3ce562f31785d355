"""The stages of a run: what each is made of, its key, how it is made and where it is kept."""

from tisdpo_jax.stages import models
from tisdpo_jax.stages.answers import RESPONSES, answers, answers_of
from tisdpo_jax.stages.models import Base, Folded, Pretrained
from tisdpo_jax.stages.positions import warn_of_limit, warn_of_pairs
from tisdpo_jax.stages.prompts import Generator, generator_of, prompts_in_views
from tisdpo_jax.stages.scores import (
    HEAD,
    REFERENCE_LOGPS,
    CachedScores,
    Columns,
    HiddenStates,
    Models,
    PairColumns,
    ReferenceHead,
    cached_scores,
    check_finite,
    derive,
    peek,
    scorer,
    weights_of_pairs,
)
from tisdpo_jax.stages.session import (
    DEMO_CACHE,
    Session,
    check_batches,
    compute_config,
    model_path,
    named_path,
    open_data,
    open_mesh,
    open_session,
)
from tisdpo_jax.stages.subjects import Subject, adapter_base, check_same_tokens, is_adapter, open_subject
from tisdpo_jax.stages.training import DERIVED, Training, feed

__all__ = [
    "DEMO_CACHE",
    "DERIVED",
    "HEAD",
    "REFERENCE_LOGPS",
    "RESPONSES",
    "Base",
    "CachedScores",
    "Columns",
    "Folded",
    "Generator",
    "HiddenStates",
    "Models",
    "PairColumns",
    "Pretrained",
    "ReferenceHead",
    "Session",
    "Subject",
    "Training",
    "adapter_base",
    "answers",
    "answers_of",
    "cached_scores",
    "check_batches",
    "check_finite",
    "check_same_tokens",
    "compute_config",
    "derive",
    "feed",
    "generator_of",
    "is_adapter",
    "model_path",
    "models",
    "named_path",
    "open_data",
    "open_mesh",
    "open_session",
    "open_subject",
    "peek",
    "prompts_in_views",
    "scorer",
    "warn_of_limit",
    "warn_of_pairs",
    "weights_of_pairs",
]
