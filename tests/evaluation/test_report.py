"""The page as a whole: all that was given is in it, nothing else gets in, and it is written whole or not at all."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import re
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest

from tisdpo_jax.errors import DataError
from tisdpo_jax.evaluation import (
    Answer,
    Change,
    Comparison,
    DataCounts,
    Report,
    Sample,
    Score,
    SidePicture,
    TokenPicture,
    WeightSection,
    compare,
    defined,
    headlines,
    palette,
    read_metrics,
    render,
    table_text,
    weight_limits,
    weight_statistics,
    write,
)
from tisdpo_jax.evaluation.curves import COLOURS
from tisdpo_jax.evaluation.heatmap import _DARK, _LIGHT
from tisdpo_jax.evaluation.history import charts, metrics, series

Rejected = namedtuple("Rejected", "origin reason detail")

ROWS = [
    {"stage": stage, "step": step, "split": split, "loss": 0.7 - 0.01 * step, "note": "text", "kl": None, "zeta": 1}
    for stage in ("plus", "policy")
    for step in range(5)
    for split in ("train", "eval")
]


def report(text: str = "plain") -> Report:
    random = np.random.default_rng(0)
    log_weights = random.normal(size=(2, 100))
    weights = np.exp(log_weights)
    side = SidePicture((text, " b"), (0.5, 2.0), (-1.0, -2.0), (-2.0, -1.0))
    statistics = weight_statistics(weights, np.ones_like(weights), limits=weight_limits())
    return Report(
        title=text,
        facts=((text, text), ("pairs", "12")),
        comparisons=(Comparison(text, 30, compare(*random.normal(size=(4, 30)))),),
        headline=(text, "12 of 24"),
        samples=(Sample(text, (Answer(text, text, True, text, True), Answer("last", "", note="x", good=False))),) * 7,
        scores=(Score(text, text, (text, "last"), (0, 3), 4, True), Score(text, "b", (text, "last"), (1, 1), 4, None)),
        history=[*ROWS, {"stage": text, "step": 1, "split": text, text or "x": 1.0}],
        weights=WeightSection(*statistics, *log_weights),
        pictures=(TokenPicture(text, text, (side, side)),),
        data=(
            DataCounts(text, text, 10, 8, (Rejected("pairs.jsonl:3", text, text), Rejected("pairs.jsonl:7", "b", ""))),
        ),
        config=text,
        files=((text, text),),
    )


def test_hostile_text_anywhere_stays_text(read, hostile) -> None:
    for text in hostile:
        root = read(render(report(text)))
        assert len(root.all("html")) == 1 and len(root.all("body")) == 1
    everything = "\n".join(hostile)
    assert "<script>alert(1)</script>" in read(render(report(everything))).all("pre")[0].text


def test_the_page_is_accessible(read) -> None:
    html = render(report())
    root = read(html)
    assert root.all("html")[0].attributes["lang"] == "en" and root.all("title")[0].text == "plain"
    levels = [int(element.tag[1]) for element in root.all() if re.fullmatch("h[1-6]", element.tag)]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels)), "no level is skipped"
    for table in root.all("table"):
        assert table.all("caption")[0].text.strip()
        for header in table.all("th"):
            assert header.attributes["scope"] in ("row", "col") and header.text.strip()
        widths = {len(row.all("th")) + len(row.all("td")) for row in table.all("tr")}
        assert len(widths) == 1
    ids = [element.attributes["id"] for element in root.all() if "id" in element.attributes]
    assert len(ids) == len(set(ids))
    for link in root.all("a"):
        assert link.attributes["href"].removeprefix("#") in ids
    for chart in (svg for svg in root.all("svg") if "aria-hidden" not in svg.attributes):
        assert chart.attributes["role"] == "img" and chart.attributes["aria-label"]
    assert "prefers-color-scheme:dark" in html and "@media print" in html
    assert "default-src 'none'" in html, "the browser is told to load nothing, whatever the page says"


@pytest.mark.parametrize("dark", [False, True])
def test_text_and_lines_of_the_page_have_contrast(read, dark: bool) -> None:
    css = read(render(report())).all("style")[0].text
    light_rules, *dark_rules = css.split("@media screen and (prefers-color-scheme:dark)")
    colours = {f"c{i}": colour for i, colour in enumerate(COLOURS)} | {"tw-ink": palette.ink()}
    for rules in (light_rules, *dark_rules) if dark else (light_rules,):
        colours |= dict(re.findall(r"--([\w-]+):(#[0-9a-f]{3,6})\b", rules.split("@media")[0]))
    colours = {name: c if len(c) == 7 else "#" + "".join(2 * x for x in c[1:]) for name, c in colours.items()}
    for ground in ("page", "paper", "soft"):
        for name in ("ink", "quiet", "link", "good", "bad"):
            assert palette.contrast(colours[name], colours[ground]) >= 4.5, (name, ground)
        for i in range(len(COLOURS)):
            assert palette.contrast(colours[f"c{i}"], colours[ground]) >= 3, (i, ground)


def test_the_colours_of_heat_maps_fit_the_page() -> None:
    for rules in (_LIGHT, _DARK):
        colours = dict(re.findall(r"--tw-(\w+):(#[0-9a-f]{3,6})", rules.replace("#fff;", "#ffffff;")))
        for ground in ("paper", "soft"):
            assert palette.contrast(colours["quiet"], colours[ground]) >= 4.5


def test_values_shown_are_the_values_given(read) -> None:
    given = report()
    root = read(render(given))
    result, *_ = [section for section in root.all("section") if section.attributes.get("id") == "result"]
    shown = [float(cell.attributes["value"]) for cell in result.all("data")]
    assert shown == [x for row in given.comparisons[0].rows for x in (row.before, row.after, row.difference)]
    weights = next(section for section in root.all("section") if section.attributes.get("id") == "weights")
    shown = [float(cell.attributes["value"]) for cell in weights.all("data")]
    expected = [
        x
        for side in (given.weights.chosen, given.weights.rejected)
        for x in (side.count, side.mean, side.std, *side.quantiles, side.share_at_lowest, side.share_at_highest)
    ]
    assert shown == expected


def test_what_holds_by_definition_is_compared_with_nothing(read) -> None:
    rows = tuple(defined(row) for row in compare(np.zeros(9), np.full(9, math.log(2)), *np.random.rand(2, 9)))
    comparison = Comparison("t", 9, rows, ("after SFT", "after DPO"))
    text = table_text(comparison)
    assert "SE" not in text and text.count("not compared") == text.count("by definition") == 3
    assert "after SFT" in text and "0.6931 by definition" in text
    page = read(render(Report("t", comparisons=(comparison,))))
    assert not page.all("span", "better") and page.text.count("by definition") == 3
    assert [cell.text for cell in page.all("thead")[0].all("th")][1:3] == ["after SFT", "after DPO"]
    assert all(row.by_definition and math.isnan(row.difference) and math.isnan(row.before_se) for row in rows)


def test_every_rejected_record_is_named(read) -> None:
    rejected = [
        Rejected(f"pairs.jsonl:{n}", "prompts differ" if n % 3 else "empty response", f"record {n}") for n in range(60)
    ]
    root = read(render(Report("t", data=(DataCounts("training", "pairs.jsonl", 100, 40, rejected),))))
    rows = root.all("table")[1].all("tbody")[0].all("tr")
    assert [tuple(cell.text for cell in row.all("bdi")) for row in rows] == rejected
    assert [cell.text for cell in root.all("table")[0].all("data")] == ["100", "40", "60"]
    assert root.all("summary")[0].text == "Rejected, training: 40 prompts differ, 20 empty response"


def test_a_reader_sees_first_what_came_of_the_run(read) -> None:
    """Scores as bars and a sentence, then the answers; what was run stands further down."""
    root = read(render(report()))
    header = root.all("header")[0]
    assert [bar.attributes["aria-label"] for bar in header.all("svg")] == ["0 of 4", "3 of 4"]
    assert [line.text for line in header.all("p", "headline")] == ["plain", "12 of 24"] and not header.all("dl")
    first, *others = [section.attributes["id"] for section in root.all("section") if "id" in section.attributes]
    assert first == "samples" and "run" in others
    answers = root.all("table", "answers")
    assert [len(table.all("tbody")[0].all("tr")) for table in answers] == [6, 1], "the seventh is folded"
    assert len(root.all("section")[0].all("details")) == 1
    assert [cell.text for cell in answers[0].all("thead")[0].all("th")] == ["prompt", "plain", "last"]
    notes = [(note.attributes["class"], note.text) for note in answers[1].all("div", "note")]
    assert notes == [("note better", "✓ plain"), ("note worse", "✗ x")]
    assert "(cut off)" in answers[1].text
    assert headlines(report().scores) == ("Plain: plain, 0 → 3 of 4",)
    bare = read(render(dataclasses.replace(report(), headline=(), scores=())))
    assert bare.all("header")[0].all("dl"), "without a result, what was run"


def test_sections_without_content_are_left_out(read) -> None:
    assert read(render(Report("empty"))).all("section") == []
    for name in ("comparisons", "samples", "scores", "history", "weights", "pictures", "data", "config", "files"):
        only = Report("t", **{name: getattr(report(), name)})
        page = read(render(only))
        sections = [section for section in page.all("section") if "id" in section.attributes]
        assert len(sections) == len(page.all("nav")[0].all("a")) == 1


def test_equal_reports_give_equal_pages() -> None:
    assert render(report()) == render(report())


def test_writing_replaces_the_whole_file_or_leaves_it(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    write(path, report("first"))
    assert path.read_text(encoding="utf-8") == render(report("first")) and path.stat().st_mode & 0o777 == 0o644
    broken = dataclasses.replace(report("second"), data=(None,))
    with pytest.raises(AttributeError):
        write(path, broken)
    assert path.read_text(encoding="utf-8") == render(report("first"))
    write(path, report("second"))
    assert path.read_text(encoding="utf-8") == render(report("second"))
    assert [file.name for file in tmp_path.iterdir()] == ["report.html"]


def test_a_write_that_fails_half_way_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "report.html"
    path.write_text("old", encoding="utf-8")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        write(path, report())
    assert path.read_text(encoding="utf-8") == "old" and len(list(tmp_path.iterdir())) == 1


def test_the_table_for_the_terminal_is_aligned_and_says_what_the_page_says(read) -> None:
    comparison = Comparison("Held-out pairs", 40, compare(*np.random.default_rng(3).normal(size=(4, 40))))
    caption, header, *rows = table_text(comparison).split("\n")
    assert caption == "Held-out pairs (40 pairs, mean ± standard error)" and len(rows) == 3
    ends = [header.index(word) + len(word) for word in ("before", "after", "change")]
    for row in rows:
        assert all(row[end - 1].isdigit() and row[end : end + 1] in ("", " ") for end in ends)
    page = read(render(Report("t", comparisons=(comparison,))))
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
    last = table_text(Comparison("t", 1, (change,))).split("\n")[-1]
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
    assert f" {text}  " in table_text(Comparison("t", 1, (change,)))


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


def test_importing_loads_nothing_heavier_than_numpy() -> None:
    code = "import sys, tisdpo_jax.evaluation; print(*{name.split('.')[0] for name in sys.modules})"
    loaded = set(
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    )
    assert "numpy" in loaded
    assert not loaded & {"jax", "flax", "transformers", "matplotlib", "pandas", "PIL", "grain", "orbax", "yaml"}
