"""`metrics.jsonl`, read back and drawn: one chart a metric, a line each for training and evaluation."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from tisdpo_jax.errors import DataError
from tisdpo_jax.reporting.charts import line_chart
from tisdpo_jax.reporting.html import macro

_Row = Mapping[str, Any]
Series = dict[str, tuple[list[float], list[float]]]

TITLES = {
    "rewards/accuracies": "reward accuracy",
    "rewards/margins": "margin",
    "dpo_loss": "DPO loss",
    "objective": "objective",
    "kl": "KL(policy || reference), a token",
    "forward_kl": "KL(reference || policy), a token",
}
"""Metrics under the names that tables have for the same numbers; those that are not here keep their own."""

_KEYS = ("stage", "step", "split")
_FIRST = (*TITLES, "grad_norm", "tokens_per_second")


def read_metrics(path: str | Path) -> list[dict[str, Any]]:
    """Rows of a metrics.jsonl. A last line that was cut off (the run was killed in writing it) is left out."""
    lines = Path(path).read_text(encoding="utf-8").split("\n")
    rows = []
    for n, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            if n == len(lines):  # no newline behind it
                break
            raise DataError(f"{path}:{n}: not a JSON object ({error.msg}); remove the line") from None
        if not isinstance(row, dict):
            raise DataError(f"{path}:{n}: not a JSON object; remove the line")
        rows.append(row)
    return rows


def charts(rows: Sequence[_Row], *, weighted: Sequence[str] = ()) -> str:
    """Charts of every numeric metric, stage by stage in the order in which they ran; only the last is unfolded.

    `weighted` are the stages whose objective is weighted token by token; their charts say so.
    """
    stages = list(dict.fromkeys(str(row["stage"]) for row in rows))
    folds = []
    for stage in stages:
        own = [row for row in rows if str(row["stage"]) == stage]
        titles = TITLES | ({"objective": "objective (weighted)"} if stage in weighted else {})
        drawn = [
            Markup(line_chart(titles.get(metric, metric.replace("_", " ")), "step", series(own, metric)))
            for metric in metrics(own)
        ]
        if drawn:
            folds.append(macro("stage", stage, drawn, stage == stages[-1]))
    return "\n".join(folds)


def metrics(rows: Sequence[_Row]) -> list[str]:
    """Names of the numeric metrics of some rows: the usual ones first, then the others by name."""
    names = {name for row in rows for name, value in row.items() if name not in _KEYS and _is_number(value)}
    return [name for name in _FIRST if name in names] + sorted(names.difference(_FIRST))


def series(rows: Sequence[_Row], metric: str) -> Series:
    """`{split: (steps, values)}` by step. Of two rows of one step, which a resumed run writes, the later counts."""
    points: dict[str, dict[float, float]] = {}
    for row in rows:
        if metric in row:
            value = row[metric]
            known = points.setdefault(str(row.get("split", "train")), {})
            known[float(row["step"])] = float(value) if _is_number(value) else math.nan
    return {split: (sorted(values), [values[step] for step in sorted(values)]) for split, values in points.items()}


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
