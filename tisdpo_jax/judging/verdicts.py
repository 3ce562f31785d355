"""From what judges say to outcomes: 1 the first model wins, 0 the second, 1/2 a tie, nan no verdict. Pure."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from tisdpo_jax.metrics import Outcomes

FIRST, SECOND, TIE = "first", "second", "tie"
UNPARSABLE, FILTERED, FAILED = "unparsable", "filtered", "failed"
UNDECIDED = (UNPARSABLE, FILTERED, FAILED)  # no verdict: of the reply, of a filter, of the server


_LINE = re.compile(r"verdict\W{0,8}(first|second|tie)\b", re.IGNORECASE)
_SWAPPED = {FIRST: SECOND, SECOND: FIRST, TIE: TIE}
_VALUE = {FIRST: 1.0, SECOND: 0.0, TIE: 0.5}
# what reasoning models write before their answer, by how they mark it
_MARKS = (
    *((rf"<{tag}\b[^<>]{{0,80}}>", f"</{tag}>") for tag in ("think", "thinking", "thought", "thoughts", "reasoning")),
    (r"\[THINK\]", r"\[/THINK\]"),
    ("◁think▷", "◁/think▷"),
    (r"<\|channel\|>analysis", r"<\|channel\|>final(?:<\|message\|>)?"),
    (r"<\|begin_of_thought\|>", r"<\|end_of_thought\|>"),
)


def parse_verdict(reply: str) -> str:
    """The verdict that a judge's reply ends with: the last `verdict: first | second | tie`, or that word alone.

    What it says in its thoughts is none.
    """
    reply = without_thoughts(reply)
    found = _LINE.findall(reply)
    if found:
        return str(found[-1]).lower()
    alone = reply.strip().strip("\"'*.` ").lower()
    return alone if alone in (FIRST, SECOND, TIE) else UNPARSABLE


def without_thoughts(reply: str) -> str:
    """The reply without the thoughts before it: blocks like `<think>...</think>`, also one whose opening mark stood in
    the prompt, and one that was never closed."""
    for opening, closing in _MARKS:
        reply = re.sub(rf"(?is)\A.*{closing}", "", reply)  # thoughts come first: all up to the last end of them
        reply = re.sub(rf"(?ims)^\s*{opening}.*", "", reply)
    return reply


def outcomes_of_orders(straight: Sequence[str], swapped: Sequence[str]) -> Outcomes:
    """Outcomes of comparisons that were asked in both orders: (a, b), and (b, a).

    Verdicts that agree about the models count. Those that do not, whether they contradict each other or one of them
    is a tie, are a tie and marked as inconsistent. Where either order has no clear verdict there is none: nan.
    """
    values, inconsistent = [], []
    for one, other in zip(straight, swapped, strict=True):
        unclear = one in UNDECIDED or other in UNDECIDED
        agree = not unclear and one == _SWAPPED[other]
        values.append(float("nan") if unclear else _VALUE[one] if agree else 0.5)
        inconsistent.append(not unclear and not agree)
    return Outcomes(np.asarray(values, np.float64), np.asarray(inconsistent, bool))


def outcomes_of_scores(first: ArrayLike, second: ArrayLike, *, tie_band: float = 0.0) -> Outcomes:
    """Outcomes of scores [n] of the answers of two models; nan scores give no verdict."""
    difference = np.asarray(first, np.float64) - np.asarray(second, np.float64)
    sign = np.where(np.abs(difference) <= tie_band, 0.0, np.sign(difference))
    return Outcomes(0.5 * (sign + 1.0), np.zeros(difference.shape, bool))
