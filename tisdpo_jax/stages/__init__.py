"""The stages of a run: what each is made of, its key, how it is made and where it is kept."""

from tisdpo_jax.stages import models
from tisdpo_jax.stages.answers import RESPONSES, answers, answers_of
from tisdpo_jax.stages.columns import PairColumns, targets, weights_of_pairs
from tisdpo_jax.stages.devices import check_batches, check_model, compute_config, model_of, open_mesh
from tisdpo_jax.stages.encoder import Encoder
from tisdpo_jax.stages.frozen import HEAD, Columns, Models, ReferenceHead
from tisdpo_jax.stages.hidden_states import HiddenStates
from tisdpo_jax.stages.jobs import feed
from tisdpo_jax.stages.models import Base, Folded, Pretrained
from tisdpo_jax.stages.pairs import Records, Splits, open_data
from tisdpo_jax.stages.passes import check_finite, passing, scorer
from tisdpo_jax.stages.positions import warn_of_limit, warn_of_pairs
from tisdpo_jax.stages.prompts import Generator, generator_of, prompts_in_views
from tisdpo_jax.stages.rounds import Candidates, Responses, round_prompts
from tisdpo_jax.stages.scores import REFERENCE_LOGPS, CachedScores, score_path
from tisdpo_jax.stages.selection import Chosen, Selected, SelectedColumns
from tisdpo_jax.stages.session import DEMO_CACHE, Session, named_path, open_session, open_tokenizer
from tisdpo_jax.stages.subjects import Subject, adapter_base, is_adapter, open_subject
from tisdpo_jax.stages.trained import abstract_base, abstract_trained, new_trained
from tisdpo_jax.stages.training import Training

__all__ = [
    "DEMO_CACHE",
    "HEAD",
    "REFERENCE_LOGPS",
    "RESPONSES",
    "Base",
    "CachedScores",
    "Candidates",
    "Chosen",
    "Columns",
    "Encoder",
    "Folded",
    "Generator",
    "HiddenStates",
    "Models",
    "PairColumns",
    "Pretrained",
    "Records",
    "ReferenceHead",
    "Responses",
    "Selected",
    "SelectedColumns",
    "Session",
    "Splits",
    "Subject",
    "Training",
    "abstract_base",
    "abstract_trained",
    "adapter_base",
    "answers",
    "answers_of",
    "check_batches",
    "check_finite",
    "check_model",
    "compute_config",
    "feed",
    "generator_of",
    "is_adapter",
    "model_of",
    "models",
    "named_path",
    "new_trained",
    "open_data",
    "open_mesh",
    "open_session",
    "open_subject",
    "open_tokenizer",
    "passing",
    "prompts_in_views",
    "round_prompts",
    "score_path",
    "scorer",
    "targets",
    "warn_of_limit",
    "warn_of_pairs",
    "weights_of_pairs",
]
