"""From the records of public preference data sets, as published, to records of the `pairs` layout.

Pure functions: a record that holds no usable preference is an `Unusable` with its reason.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from tisdpo_jax.data.layouts import read_record
from tisdpo_jax.data.records import SETTINGS, Unusable

Converter = Callable[[Mapping[str, Any], str], dict[str, Any]]


def convert_hh(record: Mapping[str, Any], key: str) -> dict[str, Any]:
    """Anthropic HH: whole transcripts under "chosen" and "rejected"."""
    return _checked(record, key, "hh")


def convert_safe_rlhf(record: Mapping[str, Any], key: str, *, by: str = "safer_response_id") -> dict[str, Any]:
    """PKU-SafeRLHF: "prompt", "response_0", "response_1", and which is safer and which is better (more helpful)."""
    choice = _choice(record, by)
    return _checked(
        {
            "prompt": record.get("prompt"),
            "chosen": record.get(f"response_{choice}"),
            "rejected": record.get(f"response_{1 - choice}"),
        },
        key,
        "pairs",
    )


def convert_ultrafeedback(record: Mapping[str, Any], key: str) -> dict[str, Any]:
    """UltraFeedback: an "instruction" and several scored "completions"; the best is preferred to the worst.

    The published binarised version draws the rejected one at random among the rest; here nothing is drawn.
    The difference of the two scores is kept as "margin".
    """
    completions = [(_score(item), item) for item in record.get("completions") or [] if isinstance(item, Mapping)]
    if len(completions) < 2:
        raise Unusable("no preference", "fewer than two completions")
    best, worst = max(completions, key=lambda pair: pair[0]), min(completions, key=lambda pair: pair[0])
    if best[0] == worst[0]:
        raise Unusable("no preference", f"all completions have score {best[0]:g}")
    return _checked(
        {
            "prompt": record.get("instruction"),
            "chosen": best[1].get("response"),
            "rejected": worst[1].get("response"),
            "margin": best[0] - worst[0],
        },
        key,
        "pairs",
    )


def convert_tldr(record: Mapping[str, Any], key: str) -> dict[str, Any]:
    """TL;DR comparisons: a post in "info", two "summaries", and the index of the better one in "choice"."""
    choice = _choice(record, "choice")
    info, summaries = record.get("info"), record.get("summaries")
    if not isinstance(info, Mapping) or not isinstance(summaries, list) or len(summaries) != 2:
        raise Unusable("missing field", "'info' and two 'summaries'")
    if info.get("post") is None:
        raise Unusable("not a post", "a news article, not a Reddit post")
    lines = [f"SUBREDDIT: r/{info.get('subreddit')}", f"TITLE: {info.get('title')}", f"POST: {info['post']}", "TL;DR:"]
    texts = [item.get("text") if isinstance(item, Mapping) else None for item in summaries]
    return _checked(
        {"prompt": "\n\n".join(lines), "chosen": texts[choice], "rejected": texts[1 - choice]}, key, "pairs"
    )


def _choice(record: Mapping[str, Any], field: str) -> int:
    choice = record.get(field)
    if isinstance(choice, bool) or choice not in (0, 1):
        raise Unusable("no preference", f"'{field}' is {choice!r}")
    return int(choice)


def _score(completion: Mapping[str, Any]) -> float:
    score = completion.get("overall_score")
    if isinstance(score, bool) or not isinstance(score, int | float):
        raise Unusable("no preference", f"'overall_score' of a completion is {score!r}")
    return float(score)


def _checked(record: Mapping[str, Any], key: str, layout: str) -> dict[str, Any]:
    """The record in the `pairs` layout, after the checks of any pair."""
    pair = read_record(record, layout, origin=key, default_id=key)
    if any(message.extra or message.role in SETTINGS for message in pair.messages):
        raise Unusable(
            "unread field", "tools or settings of the template, which the prepared data set has no place for"
        )
    converted = {
        "id": key,
        "messages": [{"role": message.role, "content": message.content} for message in pair.messages],
        "chosen": pair.chosen,
        "rejected": pair.rejected,
    }
    return converted if pair.margin is None else {**converted, "margin": pair.margin}
