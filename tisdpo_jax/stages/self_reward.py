"""From answers behind two opposite prompts to labelled pairs: who answered what, R, and what is left out.

Answers behind the positive prompt stand on the chosen side until R says otherwise.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from tisdpo_jax.config import DlmaSection
from tisdpo_jax.data import EncodedSet, InvalidRecord, Pair, PairSet, Prompt, as_record
from tisdpo_jax.generation import Response

Floats = npt.NDArray[np.float64]
OPTIONS = ("score", "relabel", "tie_band", "length_ratio", "unfinished")  # of `dlma`, that pairs depend on


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


def as_lines(records: PairSet, encoded: EncodedSet, selection: Selection, margins: np.ndarray) -> str:
    """What a round trains on, as lines of pairs that any other recipe reads."""
    by_id, lines = {pair.id: pair for pair in records.pairs}, []
    for group, flip, margin in zip(encoded.groups, selection.flipped, margins, strict=True):
        pair = by_id[group.id]
        sides = (pair.rejected, pair.chosen) if flip else (pair.chosen, pair.rejected)
        texts = {"chosen": sides[0], "rejected": sides[1]}
        lines.append(json.dumps({"id": pair.id, **as_record(pair.messages), **texts, "margin": float(margin)}) + "\n")
    return "".join(lines)
