"""How positive the words of an answer are: VADER, a lexicon with rules, offline."""

from __future__ import annotations

import functools
from typing import Any

from tisdpo_jax.errors import ConfigError


@functools.cache
def _analyzer() -> Any:
    try:
        from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer
    except ImportError:
        raise ConfigError(
            "judge sentiment needs the package vaderSentiment: pip install 'tisdpo_jax[judges]'"
        ) from None
    return SentimentIntensityAnalyzer()


def sentiment_score(prompt: str, answer: str) -> float:
    """VADER's compound score of the answer, -1 (negative) to 1 (positive); 0 for text without known words.

    Source: Hutto and Gilbert, "VADER: A Parsimonious Rule-based Model for Sentiment Analysis", 2014. English.
    """
    return float(_analyzer().polarity_scores(answer)["compound"])
