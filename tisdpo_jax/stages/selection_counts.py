"""What became of DLMA's candidates: counts, and what to say of them."""

from __future__ import annotations

import collections
from collections.abc import Mapping, Sequence
from typing import Any

from tisdpo_jax.data import EncodedGroup, InvalidRecord
from tisdpo_jax.generation import Response
from tisdpo_jax.metrics import auc
from tisdpo_jax.stages.self_reward import Floats, Selection


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
