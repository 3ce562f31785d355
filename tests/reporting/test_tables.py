"""Tables: the same numbers in the terminal, on the page and in JSON, with the digits that their errors allow."""

from __future__ import annotations

import json
import math
import re

import numpy as np
import pytest

from tisdpo_jax.metrics import Change, Interval, PairScores, TokenMean, compare, defined, evaluate_pairs
from tisdpo_jax.reporting import (
    Comparison,
    Grid,
    as_plain,
    extreme_grid,
    grid_text,
    preference_grids,
)
from tisdpo_jax.reporting.tables import grid_html


def pair_scores(groups: list[str]) -> PairScores:
    random = np.random.default_rng(6)
    policy, reference = random.normal(-20, 4, (2, len(groups), 2))
    tokens = random.integers(1, 40, policy.shape).astype(float)
    return PairScores(
        policy, reference, np.ones_like(tokens), tokens, [f"p{n // 2}" for n in range(len(groups))], groups
    )


def test_tables_and_json_hold_what_was_found(read, hostile) -> None:
    done = evaluate_pairs(pair_scores([hostile[n % len(hostile)] for n in range(80)]), beta=0.1, resamples=100)
    grids = preference_grids(done, policy=hostile[0], reference="r")
    assert [grid.title for grid in grids[1:]] == [
        "By subset",
        "Length",
        "Calibration of sigmoid(margin)",
        "Reliability",
    ]
    for grid in grids:
        page = read(grid_html(grid))
        values = [float(cell.attributes["value"]) for cell in page.all("data")]
        for row in grid.rows:
            for cell in row[1:]:
                number = cell.value if isinstance(cell, Interval) else float(cell)
                assert math.isnan(number) or number in values
    plain = json.loads(json.dumps(as_plain(done), allow_nan=False))
    assert plain["measures"][0]["interval"]["value"] == done.measures[0].interval.value
    assert plain["calibration"]["bins"][0]["count"] == done.calibration.bins[0].count


def text_of(cell) -> str:
    return grid_text(Grid("t", ("", ""), (("x", cell),))).splitlines()[-1].removeprefix("x").strip()


def test_intervals_show_two_digits_of_their_width() -> None:
    assert text_of(Interval(0.71234, 0.651, 0.774)) == "0.712 [0.651, 0.774]"
    assert text_of(Interval(12.3456, 10.1, 14.9)) == "12.3 [10.1, 14.9]"
    assert text_of(Interval(-0.00001, -0.1, 0.1)) == "0.00 [-0.10, 0.10]"
    assert text_of(Interval(0.5, math.nan, math.nan)) == "0.5000"
    assert text_of(Interval(math.nan, math.nan, math.nan)) == "–"
    assert text_of(Interval(1.0, 1.0, 1.0)) == "1.0000 [1.0000, 1.0000]"
    assert grid_text(Grid("t", ("a", "b"), (("x", 3), ("long name", 1000)))).splitlines() == [
        *("t", "a              b", "x              3", "long name  1,000")
    ]


def test_what_holds_by_definition_is_compared_with_nothing(read) -> None:
    rows = tuple(defined(row) for row in compare(np.zeros(9), np.full(9, math.log(2)), *np.random.rand(2, 9)))
    comparison = Comparison("t", 9, rows, ("after SFT", "after DPO"))
    text = grid_text(comparison.grid())
    assert "SE" not in text and text.count("not compared") == text.count("by definition") == 3
    assert "after SFT" in text and "0.6931 by definition" in text
    page = read(grid_html(comparison.grid()))
    assert not page.all("span", "better") and page.text.count("by definition") == 3
    assert [cell.text for cell in page.all("thead")[0].all("th")][1:3] == ["after SFT", "after DPO"]
    assert all(row.by_definition and math.isnan(row.difference) and math.isnan(row.before_se) for row in rows)


def test_the_table_for_the_terminal_is_aligned_and_says_what_the_page_says(read) -> None:
    comparison = Comparison("Held-out pairs", 40, compare(*np.random.default_rng(3).normal(size=(4, 40))))
    caption, header, *rows = grid_text(comparison.grid()).split("\n")
    assert caption == "Held-out pairs (40 pairs, mean ± standard error)" and len(rows) == 3
    ends = [header.index(word) + len(word) for word in ("before", "after", "change")]
    for row in rows:
        assert all(row[end - 1].isdigit() and row[end : end + 1] in ("", " ") for end in ends)
    page = read(grid_html(comparison.grid()))
    for row, cells in zip(rows, page.all("tbody")[0].all("tr"), strict=True):
        shown = [cell.text.replace("−", "-").replace("\u00a0", " ") for cell in cells.all("td")]
        assert re.split(r"\s{2,}", row)[1:] == shown


@pytest.mark.parametrize(
    ("difference", "error", "higher", "words"),
    [
        (0.2, 0.05, True, "better by 4.0 SE"),
        (-0.2, 0.05, True, "worse by 4.0 SE"),
        (-0.2, 0.05, False, "better by 4.0 SE"),
        (0.2, 0.05, False, "worse by 4.0 SE"),
        (0.04, 0.05, True, "within 1 SE"),
        (0.0, 0.0, True, "unchanged"),
        (0.3, math.nan, True, ""),
    ],
)
def test_the_verdict(difference: float, error: float, higher: bool, words: str) -> None:
    change = Change("x", 0.5, 0.0, 0.5 + difference, error, difference, error, higher)
    last = grid_text(Comparison("t", 1, (change,)).grid()).split("\n")[-1]
    assert (
        last.endswith(words) and ("better" in last) == ("better" in words) and ("worse" in last) == ("worse" in words)
    )


@pytest.mark.parametrize(
    ("value", "error", "text"),
    [
        (0.61234, 0.0123, "0.612 ± 0.012"),
        (12345.6, 123.0, "12,346 ± 123"),
        (0.5, 0.0, "0.5000 ± 0"),
        (0.5, math.nan, "0.5000"),
        (math.nan, math.nan, "–"),
        (3e-9, 1e-10, "3e-09 ± 1e-10"),
        (-2.0, 0.96, "-2.00 ± 0.96"),
    ],
)
def test_numbers_have_the_digits_that_their_error_allows(value: float, error: float, text: str) -> None:
    change = Change("x", value, error, 0.0, 0.0, 0.0, 0.0, True)
    assert f" {text}  " in grid_text(Comparison("t", 1, (change,)).grid())


def test_the_table_of_tokens_shows_both_ends() -> None:
    means = [TokenMean(n, 9, 3, 1.0 - n / 10, 0.1) for n in range(40)]
    grid = extreme_grid("t", means, [f"w{n}" for n in range(40)])
    assert [row[0] for row in grid.rows] == [f"w{n}" for n in (*range(15), *range(25, 40))]
    assert grid.rows[0][5] == pytest.approx(math.e)
