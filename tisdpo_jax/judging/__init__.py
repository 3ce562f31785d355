"""Who answers better: judges and their verdicts; `metrics` makes win rates and ratings of them.

Judges are sentiment and refusal (built in), a scoring function, a
reward model, or a language model behind an HTTP endpoint. `store` keeps what they said.
"""

from tisdpo_jax.judging.endpoint import JudgeEndpoint, Question, Reply, ask, ask_judge
from tisdpo_jax.judging.functions import Score, checked_scores, load_function, source_of
from tisdpo_jax.judging.refusal import is_refusal, refusal_score
from tisdpo_jax.judging.reward_model import RewardModel, score_conversations, score_rows
from tisdpo_jax.judging.sentiment import sentiment_score
from tisdpo_jax.judging.store import Store, key_of
from tisdpo_jax.judging.verdicts import (
    FAILED,
    FILTERED,
    TIE,
    UNDECIDED,
    UNPARSABLE,
    outcomes_of_orders,
    outcomes_of_scores,
    parse_verdict,
    without_thoughts,
)

__all__ = [
    "FAILED",
    "FILTERED",
    "TIE",
    "UNDECIDED",
    "UNPARSABLE",
    "JudgeEndpoint",
    "Question",
    "Reply",
    "RewardModel",
    "Score",
    "Store",
    "ask",
    "ask_judge",
    "checked_scores",
    "is_refusal",
    "key_of",
    "load_function",
    "outcomes_of_orders",
    "outcomes_of_scores",
    "parse_verdict",
    "refusal_score",
    "score_conversations",
    "score_rows",
    "sentiment_score",
    "source_of",
    "without_thoughts",
]
