"""metrics.jsonl: read back, and drawn by stage and metric."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from tisdpo_jax.errors import DataError
from tisdpo_jax.reporting import read_metrics
from tisdpo_jax.reporting.history import charts, metrics, series

ROWS = [
    {"stage": stage, "step": step, "split": split, "loss": 0.7 - 0.01 * step, "note": "text", "kl": None, "zeta": 1}
    for stage in ("plus", "policy")
    for step in range(5)
    for split in ("train", "eval")
]


def test_metrics_are_read_back_and_a_line_cut_off_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS), encoding="utf-8")
    assert read_metrics(path) == ROWS
    whole = path.read_text(encoding="utf-8")
    path.write_text(whole + '{"stage": "policy", "st', encoding="utf-8")
    assert read_metrics(path) == ROWS
    for bad in ('{"stage": \n', "3\n"):
        path.write_text(bad + whole, encoding="utf-8")
        with pytest.raises(DataError, match=r"metrics\.jsonl:1: not a JSON object"):
            read_metrics(path)


def test_a_step_written_twice_counts_once_and_the_later_row_wins() -> None:
    rows = [
        {"stage": "a", "step": step, "split": "train", "loss": loss} for step, loss in ((2, 5.0), (1, 1.0), (2, 3.0))
    ]
    assert series(rows, "loss") == {"train": ([1.0, 2.0], [1.0, 3.0])}
    steps, values = series([*rows, {"stage": "a", "step": 4, "split": "train", "loss": None}], "loss")["train"]
    assert steps == [1.0, 2.0, 4.0] and math.isnan(values[-1])


def test_charts_go_by_stage_and_metric(read) -> None:
    assert metrics([{"zeta": 1, "alpha": 2.0, "objective": 3, "step": 1, "note": "x", "flag": True}]) == [
        "objective",
        "alpha",
        "zeta",
    ]
    stages = read(charts(ROWS)).all("details")
    assert ["open" in stage.attributes for stage in stages] == [False, True]
    for stage in stages:
        titles = [caption.all("b")[0].text for caption in stage.all("figcaption")]
        assert titles == ["loss", "zeta"]
        assert [key.text.strip() for key in stage.all("figure")[0].all("span", "key")] == ["train", "eval"]
    named = [{"stage": stage, "step": 1, "objective": 1.0, "rewards/margins": 2.0} for stage in ("plus", "policy")]
    page = read(charts(named, weighted=("policy",)))
    titles = [caption.all("b")[0].text for caption in page.all("figcaption")]
    assert titles == ["margin", "objective", "margin", "objective (weighted)"]
