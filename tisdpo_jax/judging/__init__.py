"""Who answers better: judges and their verdicts; `metrics` makes win rates and ratings of them.

Judges are sentiment and refusal (built in), a scoring function, a reward model, or a language model behind an HTTP
endpoint. What they said is kept in a `generation.Lines`.
"""

from tisdpo_jax.judging.endpoint import ask_judge
from tisdpo_jax.judging.rules import is_refusal, load_function, refusal_score, sentiment_score
from tisdpo_jax.judging.scorers import RewardModel, ScoringJudge, by_reward_model, by_rule
from tisdpo_jax.judging.verdicts import outcomes_of_scores

__all__ = [
    "RewardModel",
    "ScoringJudge",
    "ask_judge",
    "by_reward_model",
    "by_rule",
    "is_refusal",
    "load_function",
    "outcomes_of_scores",
    "refusal_score",
    "sentiment_score",
]
