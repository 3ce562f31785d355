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
            row, why = json.loads(line), ""
        except json.JSONDecodeError as error:
            if n == len(lines):  # no newline behind it
                break
            row, why = None, f" ({error.msg})"
        if not isinstance(row, dict):
            raise DataError(f"{path}:{n}: not a JSON object{why}; remove the line")
        rows.append(row)
    return rows


def stage_charts(rows: Sequence[Mapping[str, Any]], *, weighted: Sequence[str] = ()) -> list[tuple[str, list[Markup]]]:
    """For each stage, in the order in which they ran, charts of every numeric metric: the usual ones first.

    `weighted` are the stages whose objective is weighted token by token; their charts say so.
    """
    stages: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        stages.setdefault(str(row["stage"]), []).append(row)
    charts = []
    for stage, own in stages.items():
        titles = TITLES | ({"objective": "objective (weighted)"} if stage in weighted else {})
        numbers = {name for row in own for name, value in row.items() if name not in _KEYS and _is_number(value)}
        names = [name for name in _FIRST if name in numbers] + sorted(numbers.difference(_FIRST))
        drawn = [line_chart(titles.get(name, name.replace("_", " ")), "step", series(own, name)) for name in names]
        charts += [(stage, drawn)] if drawn else []
    return charts


def series(rows: Sequence[Mapping[str, Any]], metric: str) -> dict[str, tuple[list[float], list[float]]]:
    """`{split: (steps, values)}` by step. Of two rows of one step, which a resumed run writes, the later counts."""
    points: dict[str, dict[float, float]] = {}
    for row in rows:
        if metric in row:
            value = float(row[metric]) if _is_number(row[metric]) else math.nan
            points.setdefault(str(row.get("split", "train")), {})[float(row["step"])] = value
    return {split: (sorted(values), [values[step] for step in sorted(values)]) for split, values in points.items()}


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
