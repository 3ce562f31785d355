"""Who answers better: judges, verdicts, win rates and ratings.

`verdicts` and `ratings` are functions of arrays. Judges are sentiment and refusal (built in), a scoring function, a
reward model, or a language model behind an HTTP endpoint. `store` keeps what they said.
"""

from tisdpo_jax.judging.endpoint import Endpoint, Question, Reply, ask, ask_all
from tisdpo_jax.judging.functions import Score, checked, load_function, source_of
from tisdpo_jax.judging.ratings import ELO, Rating, WinRate, bradley_terry, ratings, win_rate
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
    Outcomes,
    outcomes_of_orders,
    outcomes_of_scores,
    parse_verdict,
    without_thoughts,
)

__all__ = [
    "ELO",
    "FAILED",
    "FILTERED",
    "TIE",
    "UNDECIDED",
    "UNPARSABLE",
    "Endpoint",
    "Outcomes",
    "Question",
    "Rating",
    "Reply",
    "RewardModel",
    "Score",
    "Store",
    "WinRate",
    "ask",
    "ask_all",
    "bradley_terry",
    "checked",
    "is_refusal",
    "key_of",
    "load_function",
    "outcomes_of_orders",
    "outcomes_of_scores",
    "parse_verdict",
    "ratings",
    "refusal_score",
    "score_conversations",
    "score_rows",
    "sentiment_score",
    "source_of",
    "win_rate",
    "without_thoughts",
]
