"""From answers behind two opposite prompts to labelled pairs: who answered what, R, and what is left out.

Answers behind the positive prompt stand on the chosen side until R says otherwise.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from tisdpo_jax.config import DlmaSection
from tisdpo_jax.data import EncodedGroup, EncodedSet, InvalidRecord, Pair, PairSet, Prompt
from tisdpo_jax.generation import Response
from tisdpo_jax.metrics import auc

Floats = npt.NDArray[np.float64]


def candidates(
    prompts: Sequence[Prompt], responses: Mapping[str, Response], samples: int, *, unfinished: str
) -> PairSet:
    """A pair for each prompt and sample number; those that are none are invalid, by reason.

    `unfinished`: "keep" or "drop" pairs with an answer that ran into the limit.
    """
    pairs: list[Pair] = []
    invalid: list[InvalidRecord] = []
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
                invalid.append(InvalidRecord(f"{prompt.origin} sample {number}", reason))
                continue
            seen.add(key)
            name = f"{prompt.id}/{number}"
            pairs.append(Pair(name, prompt.messages, plus.response, minus.response, f"{prompt.origin} sample {number}"))
    return PairSet(tuple(pairs), tuple(invalid), "answers")


def _unusable(plus: Response, minus: Response, unfinished: str) -> str:
    finishes = {plus.finish, minus.finish}
    if "too long" in finishes:
        return "prompt too long"
    for kind in ("filtered", "failed"):
        if kind in finishes:
            return f"{kind} answer"
    if plus.empty or minus.empty:
        return "empty answer"
    return "unfinished answer" if unfinished == "drop" and "length" in finishes else ""


@dataclasses.dataclass(frozen=True, eq=False)
class Selection:
    """Which candidates train, which way round, and why the others do not."""

    indices: npt.NDArray[np.int64]  # [n], into the candidates
    flipped: npt.NDArray[np.bool_]  # [n], the answer behind the negative prompt is the better one
    dropped: dict[int, str]  # index of each other candidate, and the reason


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
    dropped = {int(index): "tie" if ties[index] else "length ratio" for index in np.flatnonzero(~kept)}
    return Selection(np.flatnonzero(kept), flipped[kept], dropped)


def taken(encoded: EncodedSet, selection: Selection) -> EncodedSet:
    """The selected candidates, each the right way round; the others are among the invalid."""
    pairs = tuple(
        encoded.groups[index].flipped() if flip else encoded.groups[index]
        for index, flip in zip(selection.indices.tolist(), selection.flipped.tolist(), strict=True)
    )
    left_out = [
        InvalidRecord(encoded.groups[index].origin, reason) for index, reason in sorted(selection.dropped.items())
    ]
    return dataclasses.replace(encoded, groups=pairs, invalid=(*encoded.invalid, *left_out))


def turned_columns(columns: Mapping[str, np.ndarray], selection: Selection) -> dict[str, np.ndarray]:
    """Columns `[n, 2, N]` of the candidates as those of the selected pairs."""
    turn = selection.flipped[:, None, None]
    found = {name: column[selection.indices] for name, column in columns.items()}
    return {name: np.where(turn, column[:, ::-1], column) for name, column in found.items()}


def selection_counts(invalid: Sequence[InvalidRecord], selection: Selection, scores: Floats) -> dict[str, Any]:
    """What became of the candidates, as plain numbers; `invalid` are those from before the scores."""
    reasons = [invalid_record.reason for invalid_record in invalid] + list(selection.dropped.values())
    rewards = scores[:, 0] - scores[:, 1]
    value, error = auc(scores)
    return {
        "pairs": len(selection.indices),
        "relabelled": int(selection.flipped.sum()),
        "left_out": dict(collections.Counter(reasons).most_common()),
        "reward_mean": float(rewards.mean()),
        "reward_below_0": int((rewards < 0).sum()),
        "auc": value,
        "auc_se": error,
    }


def unfinished(pairs: Sequence[EncodedGroup], selection: Selection, responses: Mapping[str, Response]) -> int:
    """How many of the pairs that train have an answer that ran into the limit."""
    count = 0
    for index in selection.indices.tolist():
        prompt, _, number = pairs[index].id.rpartition("/")
        sides = (responses.get(f"{prompt}/{view}/{number}") for view in ("plus", "minus"))
        count += any(side is not None and side.finish == "length" for side in sides)
    return count


def nothing_left(invalid: Sequence[InvalidRecord]) -> str:
    """What to say, and what to do, where no pair is left to train on."""
    reasons = collections.Counter(invalid_record.reason for invalid_record in invalid)
    counts = ", ".join(f"{count} {reason}" for reason, count in reasons.most_common())
    hint = "loosen the dlma filters"
    if "unfinished answer" in reasons:
        hint = "raise sampling.max_new_tokens, set dlma.unfinished keep, or loosen the other dlma filters"
    return f"no pair is left to train on ({counts or 'no prompt was answered'}); {hint}"


def summary_text(found: dict[str, Any]) -> str:
    """The same for people."""
    left_out = ", ".join(f"{count} {reason}" for reason, count in found["left_out"].items()) or "none"
    kept = found.get("unfinished_kept", 0)
    return (
        f"R        mean {found['reward_mean']:.2f} nats, below 0 in {found['reward_below_0']}; AUC of the contrast "
        f"between the two origins {found['auc']:.3f} +- {found['auc_se']:.3f}\n"
        f"pairs    {found['pairs']} train, {found['relabelled']} of them relabelled (R < 0); left out: {left_out}"
        + (f"\n         {kept} of them with an unfinished answer (dlma.unfinished keep)" if kept else "")
    )
