"""Charts as geometry: where points land, what is a gap, what the page sees of a drawing; and those of metrics.jsonl."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from xml.etree import ElementTree

import matplotlib.image
import numpy as np
import pytest

from tisdpo_jax.errors import DataError
from tisdpo_jax.reporting import Distribution, distribution_png, histogram, read_metrics
from tisdpo_jax.reporting.charts import COLOURS, line_chart
from tisdpo_jax.reporting.history import series, stage_charts


def plot(figure: str) -> ElementTree.Element:
    """The chart's own svg, not those of the legend. It parses as XML."""
    return ElementTree.fromstring(figure).findall("svg")[0]


def strokes(figure: str, *, dots: bool = False) -> list[str]:
    """Styles of the lines of all series, or of their dots, which are lines of no length with round ends."""
    return [style for _, style in _strokes(figure, dots)]


def _strokes(figure: str, dots: bool) -> list[tuple[str, str]]:
    drawn = [(path.attrib["d"], path.attrib["style"]) for path in plot(figure).iter("path")]
    lines = [(path, style) for path, style in drawn if "fill: none" in style and "stroke: var(--c" in style]
    return [(path, style) for path, style in lines if ("linecap: round" in style) == dots]


def lines(figure: str, *, dots: bool = False) -> list[list[np.ndarray]]:
    """For each series its stretches, as arrays of (x, y)."""
    numbers = [[re.findall(r"-?[\d.]+", part) for part in path.split("M")[1:]] for path, _ in _strokes(figure, dots)]
    return [[np.array(part, float).reshape(-1, 2) for part in parts] for parts in numbers]


def points_of(figure: str) -> list[np.ndarray]:
    return [stretch[0] for stretches in lines(figure, dots=True) for stretch in stretches]


def ticks(figure: str) -> dict[str, list[tuple[float, float]]]:
    """{anchor: (pixel, value)} of the ticks: labels of x are anchored in their middle, those of y at their end."""
    marks: dict[str, list[tuple[float, float]]] = {"middle": [], "end": []}
    for text in plot(figure).iter("text"):
        anchor = re.search(r"text-anchor: (\w+)", text.attrib["style"])[1]
        value = float(text.text.replace("−", "-").removesuffix("%"))
        marks[anchor].append((float(text.attrib["x" if anchor == "middle" else "y"]), value))
    return marks


def test_points_stand_where_the_axes_say() -> None:
    xs, ys = np.array([0.0, 3.0, 10.0]), np.array([-2.0, 5.0, 1.0])
    chart = line_chart("t", "step", {"a": (xs, ys)})
    ((points,),) = lines(chart)
    np.testing.assert_allclose(points, points_of(chart), atol=0.01)
    for anchor, values, column in (("middle", xs, 0), ("end", ys, 1)):
        pixels, labels = np.array(ticks(chart)[anchor]).T
        assert len(labels) >= 3
        slope, _ = np.polyfit(labels, pixels, 1)
        np.testing.assert_allclose(np.diff(points[:, column]), slope * np.diff(values), atol=0.2)
    assert points[1, 1] == points[:, 1].min(), "up is more"
    fine = [value for _, value in ticks(line_chart("t", "x", {"a": ([0, 1], [0.5711, 0.5722])}))["end"]]
    assert len(set(fine)) == len(fine) and all(0.571 <= value <= 0.573 for value in fine), "labels keep their digits"


@pytest.mark.parametrize("count", [8, 60])
def test_a_value_that_is_not_finite_is_a_gap_and_a_lone_point_a_dot(count: int) -> None:
    ys = np.arange(count, dtype=float)
    ys[[2, 4, 5]] = np.nan, np.inf, -np.inf
    chart = line_chart("t", "x", {"a": (range(count), ys)})
    assert [len(stretch) for stretch in lines(chart)[0] if len(stretch) > 1] == [2, count - 6]
    assert len(points_of(chart)) == (count - 3 if count <= 40 else 1)
    assert "3 not finite" in chart
    assert "no data" in line_chart("t", "x", {"a": ([0, 1], [np.nan, np.inf])})


def test_a_long_series_is_a_short_path_with_its_extremes() -> None:
    ys = np.random.default_rng(0).normal(size=50_000)
    ys[123], ys[40_000] = 50, -50
    chart = line_chart("t", "x", {"a": (np.arange(50_000), ys)})
    assert len(chart) < 200_000
    heights = np.concatenate([stretch[:, 1] for stretch in lines(chart)[0]])
    pixels, labels = np.array(ticks(chart)["end"]).T
    slope, _ = np.polyfit(labels, pixels, 1)
    assert np.ptp(heights) == pytest.approx(100 * -slope, rel=0.02)


def test_series_differ_in_colour_and_dash_and_are_named(read, contrast) -> None:
    series = {f"series {i}": ([0, 1], [i, i + 1]) for i in range(6)}
    chart = line_chart("t", "x", series)
    styles = strokes(chart)
    assert len({re.search(r"stroke: ([^;]*)", style)[1] for style in styles}) == 6
    assert len({(re.search(r"dasharray: ([^;]*)", style) or [""])[0] for style in styles}) == 6
    keys = read(chart).all("span", "key")
    assert [key.text.strip() for key in keys] == list(series)
    for key, style in zip(keys, styles, strict=True):
        sample = key.all("path")[0].attributes
        assert sample["style"].removeprefix("stroke:") in style
        dashes = sample["stroke-dasharray"].replace(" ", ",")
        assert dashes in style or dashes == "none"
    assert all(contrast(colour, "#ffffff") >= 3 for colour in COLOURS), "WCAG asks 3 of graphics"


def test_a_histogram_has_common_bins_of_shares_that_sum_to_one() -> None:
    values = np.random.default_rng(0).normal(size=200)
    figure = histogram("t", "x", {"a": [*values, np.nan], "b": [0.0, *values[:50]], "none": []})
    assert "a: 200 values, 1 not finite; b: 51 values; none: 0 values" in figure
    pixels, labels = np.array(ticks(figure)["end"]).T
    slope, _ = np.polyfit(labels, pixels, 1)
    steps = [np.concatenate(stretches) for stretches in lines(figure)]
    for points in steps[:2]:
        bottom = points[0, 1]  # a drawing of stairs begins and ends at 0
        heights = (points[1:-1:2, 1] - bottom) / slope / 100
        assert heights.size == 40 and heights.sum() == pytest.approx(1, abs=0.03) and heights.min() > -0.002
    np.testing.assert_array_equal(steps[0][:, 0], steps[1][:, 0])
    assert "no data" in histogram("t", "x", {"a": []})


def test_a_drawing_fits_into_the_page(read, hostile) -> None:
    """Its colours and font are the page's, it has no names, words are text."""
    chart = line_chart("t", "x", {"a": ([0, 1], [0, 1])}) + histogram("t", "x", {"a": [0.0, 1.0, 1.0]})
    for word in ("DejaVu", "<defs", "<style", "metadata", " id=", "href", "url("):
        assert word not in chart
    assert not re.search(r"(?<!,)#[0-9a-f]{6}", chart), "no colour without one of the page"
    for name in hostile:
        read(line_chart(name, name, {name: ([0, 1], [0, 1])}))
    assert line_chart("t", "x", {"a": ([0, 1], [0, 1])}) == line_chart("t", "x", {"a": ([0, 1], [0, 1])})


def test_a_png_has_its_words_and_the_same_bytes_each_time(tmp_path) -> None:
    for name in ("a", "b"):
        distribution_png(Distribution("", "$x_", {"chosen": [1.0, np.nan], "rejected": []}), tmp_path / f"{name}.png")
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    assert matplotlib.image.imread(tmp_path / "a.png").shape[:2] == (560, 840)
    distribution_png(Distribution("", "x", {"no logarithm": []}), tmp_path / "none.png")


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
    def titles(drawn) -> list[str]:
        return [read(chart).all("b")[0].text for chart in drawn]

    one = [{"stage": "a", "zeta": 1, "alpha": 2.0, "objective": 3, "step": 1, "note": "x", "flag": True}]
    assert titles(stage_charts(one)[0][1]) == ["objective", "alpha", "zeta"]
    stages = stage_charts(ROWS)
    assert [(name, titles(drawn)) for name, drawn in stages] == [(n, ["loss", "zeta"]) for n in ("plus", "policy")]
    assert [key.text.strip() for key in read(stages[0][1][0]).all("span", "key")] == ["train", "eval"]
    named = [{"stage": stage, "step": 1, "objective": 1.0, "rewards/margins": 2.0} for stage in ("plus", "policy")]
    drawn = dict(stage_charts(named, weighted=("policy",)))
    assert titles(drawn["plus"]) == ["margin", "objective"]
    assert titles(drawn["policy"]) == ["margin", "objective (weighted)"]
