"""From answers behind two opposite prompts to labelled pairs: who answered what, R, and what is left out.

Answers behind the positive prompt stand on the chosen side until R says otherwise.
"""

from __future__ import annotations

import collections
import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from tisdpo_jax.config import DlmaSection
from tisdpo_jax.data import EncodedPair, EncodedSet, Pair, PairSet, Prompt, Rejection
from tisdpo_jax.sampling.responses import Response

Floats = npt.NDArray[np.float64]


def candidates(
    prompts: Sequence[Prompt], responses: Mapping[str, Response], samples: int, *, unfinished: str
) -> PairSet:
    """A pair for each prompt and sample number; those that are none are rejections, by reason.

    `unfinished`: "keep" or "drop" pairs with an answer that ran into the limit.
    """
    pairs: list[Pair] = []
    rejections: list[Rejection] = []
    seen: set[tuple[object, ...]] = set()
    for prompt in prompts:
        for number in range(samples):
            sides = [responses.get(f"{prompt.id}/{view}/{number}") for view in ("plus", "minus")]
            if None in sides:
                continue  # left out when it was asked, and told there
            plus, minus = (side for side in sides if side is not None)
            reason = _unusable(plus, minus, unfinished)
            key = (prompt.messages, plus.response, minus.response)
            if not reason and (plus.response == minus.response or key in seen):
                reason = "duplicate"
            if reason:
                rejections.append(Rejection(f"{prompt.origin} sample {number}", reason))
                continue
            seen.add(key)
            name = f"{prompt.id}/{number}"
            pairs.append(Pair(name, prompt.messages, plus.response, minus.response, f"{prompt.origin} sample {number}"))
    return PairSet(tuple(pairs), tuple(rejections), "answers")


def _unusable(plus: Response, minus: Response, unfinished: str) -> str:
    finishes = {plus.finish, minus.finish}
    if "too long" in finishes:
        return "prompt too long"
    if plus.empty or minus.empty:
        return "empty answer"
    return "unfinished answer" if unfinished == "drop" and "length" in finishes else ""


@dataclasses.dataclass(frozen=True, eq=False)
class Selection:
    """Which candidates train, which way round, and why the others do not."""

    indices: npt.NDArray[np.int64]  # [n], into the candidates
    flipped: npt.NDArray[np.bool_]  # [n], the answer behind the negative prompt is the better one
    dropped: dict[str, int]  # by reason


def select(scores: Floats, tokens: npt.NDArray[np.int64], section: DlmaSection) -> Selection:
    """Filters in this order: ties, length ratio.

    Args:
      scores: `[n, 2]` contrasts of the answers, that behind the positive prompt first.
      tokens: `[n, 2]` their lengths.
    """
    rewards = scores[:, 0] - scores[:, 1]
    ties = np.abs(rewards) <= section.tie_band if section.tie_band else np.zeros(len(rewards), bool)
    ratio = tokens.max(1) / np.maximum(tokens.min(1), 1)
    uneven = (ratio > section.length_ratio) if section.length_ratio else np.zeros(len(rewards), bool)
    kept = ~ties & ~uneven
    flipped = (rewards < 0) & section.relabel
    dropped = {"tie": int(ties.sum()), "length ratio": int((uneven & ~ties).sum())}
    return Selection(np.flatnonzero(kept), flipped[kept], {name: count for name, count in dropped.items() if count})


def taken(encoded: EncodedSet, selection: Selection) -> EncodedSet:
    """The selected candidates, each the right way round."""
    pairs = tuple(
        _turned(encoded.pairs[index]) if flip else encoded.pairs[index]
        for index, flip in zip(selection.indices.tolist(), selection.flipped.tolist(), strict=True)
    )
    return dataclasses.replace(encoded, pairs=pairs, rejections=())


def _turned(pair: EncodedPair) -> EncodedPair:
    return dataclasses.replace(
        pair,
        chosen=pair.rejected,
        rejected=pair.chosen,
        truncated_chosen=pair.truncated_rejected,
        truncated_rejected=pair.truncated_chosen,
    )


def turned_columns(columns: Mapping[str, np.ndarray], selection: Selection) -> dict[str, np.ndarray]:
    """Columns `[n, 2, N]` of the candidates as those of the selected pairs."""
    turn = selection.flipped[:, None, None]
    found = {name: column[selection.indices] for name, column in columns.items()}
    return {name: np.where(turn, column[:, ::-1], column) for name, column in found.items()}


def auc(scores: Floats) -> tuple[float, float]:
    """How well the contrast tells who wrote an answer: P(score behind + > score behind -), ties half; standard error.

    Over all pairs of answers `[n, 2]`, of whatever prompts. Source of the error: DeLong and others, 1988, with the two
    answers of a prompt taken together.
    """
    plus, minus = scores[:, 0], scores[:, 1]
    wins = (plus[:, None] > minus[None]) + 0.5 * (plus[:, None] == minus[None])
    count = len(scores)
    if count < 2:
        return float(wins.mean()) if count else math.nan, math.nan
    placement = wins.mean(1) + wins.mean(0)
    return float(wins.mean()), float(placement.std(ddof=1) / math.sqrt(count))


def counted(rejections: Sequence[Rejection], selection: Selection, rewards: Floats) -> str:
    """What became of the candidates, as text."""
    reasons = collections.Counter(rejection.reason for rejection in rejections) + collections.Counter(selection.dropped)
    left_out = ", ".join(f"{count} {reason}" for reason, count in reasons.most_common()) or "none"
    return (
        f"pairs    {len(selection.indices)} train, {int(selection.flipped.sum())} of them relabelled (R < 0 in "
        f"{int((rewards < 0).sum())}); left out: {left_out}"
    )
