"""The page as a whole: all that was given is in it, nothing else gets in, and it is written whole or not at all."""

from __future__ import annotations

import dataclasses
import itertools
import re
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest

from tisdpo_jax.metrics import compare, weight_limits, weight_statistics
from tisdpo_jax.reporting import (
    Comparison,
    DataCounts,
    Distribution,
    Report,
    Sample,
    Score,
    ShownAnswer,
    SidePicture,
    TokenPicture,
    headlines,
    weight_grid,
    write,
)
from tisdpo_jax.reporting.charts import COLOURS
from tisdpo_jax.reporting.heatmap import THEMES, style_sheet
from tisdpo_jax.reporting.report import render_report

Rejected = namedtuple("Rejected", "origin reason detail")

ROWS = [{"stage": stage, "step": n, "loss": 1 / (1 + n)} for stage in ("plus", "policy") for n in range(3)]

LOG_WEIGHTS = np.random.default_rng(1).normal(size=(2, 100))
STATISTICS = weight_statistics(np.exp(LOG_WEIGHTS), np.ones((2, 100)), limits=weight_limits())


def report(text: str = "plain") -> Report:
    random = np.random.default_rng(0)
    side = SidePicture((text, " b"), (0.5, 2.0), (-1.0, -2.0), (-2.0, -1.0))
    return Report(
        title=text,
        facts=((text, text), ("pairs", "12")),
        comparisons=(Comparison(text, 30, compare(*random.normal(size=(4, 30)))),),
        headline=(text, "12 of 24"),
        samples=(
            Sample(text, (ShownAnswer(text, text, True, text, True), ShownAnswer("last", "", note="x", good=False))),
        )
        * 7,
        scores=(Score(text, text, (text, "last"), (0, 3), 4, True), Score(text, "b", (text, "last"), (1, 1), 4, None)),
        history=[*ROWS, {"stage": text, "step": 1, "split": text, text or "x": 1.0}],
        weights=(weight_grid(*STATISTICS),),
        distributions=(Distribution(text, text, {text: LOG_WEIGHTS[0]}),),
        pictures=(TokenPicture(text, text, (side, side)),),
        data=(
            DataCounts(text, text, 10, 8, (Rejected("pairs.jsonl:3", text, text), Rejected("pairs.jsonl:7", "b", ""))),
        ),
        config=text,
        files=((text, text),),
    )


def test_hostile_text_anywhere_stays_text(read, hostile) -> None:
    for text in ("", "\n".join(hostile)):
        root = read(render_report(report(text)))
        assert len(root.all("html")) == 1 and len(root.all("body")) == 1
    assert "<script>alert(1)</script>" in root.all("pre")[0].text


def test_the_page_is_accessible(read) -> None:
    html = render_report(report())
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
def test_text_and_lines_of_the_page_have_contrast(read, contrast, dark: bool) -> None:
    css = read(render_report(report())).all("style")[0].text
    light_rules, *dark_rules = css.split("@media screen and (prefers-color-scheme:dark)")
    colours = {f"c{i}": colour for i, colour in enumerate(COLOURS)} | {"tw-ink": THEMES["light"][-1]}
    for rules in (light_rules, *dark_rules) if dark else (light_rules,):
        colours |= dict(re.findall(r"--([\w-]+):(#[0-9a-f]{3,6})\b", rules.split("@media")[0]))
    colours = {name: c if len(c) == 7 else "#" + "".join(2 * x for x in c[1:]) for name, c in colours.items()}
    theme = r"--tw-paper:(#\w+);--tw-quiet:(#\w+);.*--tw-soft:(#\w+);"
    for paper, quiet, soft in re.findall(theme, style_sheet().replace("#fff;", "#ffffff;")):
        assert contrast(quiet, paper) >= 4.5 and contrast(quiet, soft) >= 4.5
    for ground in ("page", "paper", "soft"):
        for name in ("ink", "quiet", "link", "good", "bad"):
            assert contrast(colours[name], colours[ground]) >= 4.5, (name, ground)
        for i in range(len(COLOURS)):
            assert contrast(colours[f"c{i}"], colours[ground]) >= 3, (i, ground)


def test_values_shown_are_the_values_given(read) -> None:
    given = report()
    root = read(render_report(given))
    result, *_ = [section for section in root.all("section") if section.attributes.get("id") == "result"]
    shown = [float(cell.attributes["value"]) for cell in result.all("data")]
    assert shown == [x for row in given.comparisons[0].rows for x in (row.before, row.after, row.difference)]
    weights = next(section for section in root.all("section") if section.attributes.get("id") == "weights")
    shown = [float(cell.attributes["value"]) for cell in weights.all("data")]
    expected = [
        x
        for side in STATISTICS
        for x in (side.count, side.mean, side.std, *side.quantiles, side.share_at_lowest, side.share_at_highest)
    ]
    assert shown == expected


def test_every_rejected_record_is_named(read) -> None:
    rejected = [
        Rejected(f"pairs.jsonl:{n}", "prompts differ" if n % 3 else "empty response", f"record {n}") for n in range(60)
    ]
    root = read(render_report(Report("t", data=(DataCounts("training", "pairs.jsonl", 100, 40, rejected),))))
    rows = root.all("table")[1].all("tbody")[0].all("tr")
    assert [tuple(cell.text for cell in row.all("bdi")) for row in rows] == rejected
    assert [cell.text for cell in root.all("table")[0].all("data")] == ["100", "40", "60"]
    assert root.all("summary")[0].text == "Invalid, training: 40 prompts differ, 20 empty response"


def test_a_reader_sees_first_what_came_of_the_run(read) -> None:
    """Scores as bars and a sentence, then the answers; what was run stands further down."""
    root = read(render_report(report()))
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
    bare = read(render_report(dataclasses.replace(report(), headline=(), scores=())))
    assert bare.all("header")[0].all("dl"), "without a result, what was run"


def test_sections_without_content_are_left_out(read) -> None:
    assert read(render_report(Report("empty"))).all("section") == []
    for name in ("comparisons", "samples", "scores", "history", "weights", "distributions", "pictures", "data"):
        only = Report("t", **{name: getattr(report(), name)})
        page = read(render_report(only))
        sections = [section for section in page.all("section") if "id" in section.attributes]
        assert len(sections) == len(page.all("nav")[0].all("a")) == 1


def test_writing_replaces_the_whole_file_or_leaves_it(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    write(path, report("first"))  # equal reports give equal pages
    assert path.read_text(encoding="utf-8") == render_report(report("first")) and path.stat().st_mode & 0o777 == 0o644
    broken = dataclasses.replace(report("second"), data=(None,), history=(), distributions=())
    with pytest.raises(AttributeError):
        write(path, broken)
    assert path.read_text(encoding="utf-8") == render_report(report("first"))
    write(path, report("second"))
    assert path.read_text(encoding="utf-8") == render_report(report("second"))
    assert [file.name for file in tmp_path.iterdir()] == ["report.html"]


def test_importing_draws_nothing_yet_and_drawing_leaves_matplotlib_as_it_is() -> None:
    program = """
import sys
from tisdpo_jax.reporting import histogram
heavy = {"jax", "flax", "transformers", "matplotlib", "pandas", "grain", "orbax"} & {*sys.modules}
assert not heavy, heavy
import matplotlib
matplotlib.rcParams["svg.fonttype"] = "path"
names = "svg.fonttype", "svg.hashsalt", "font.family", "font.size", "text.parse_math", "lines.scale_dashes"
before = [matplotlib.rcParams[name] for name in names]
histogram("t", "x", {"a": [1.0, 2.0]})
assert [matplotlib.rcParams[name] for name in names] == before
assert "matplotlib.pyplot" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", program], check=True)
