"""The picture of a pair: what it shows is what it was given, and text stays text.

Its colours are readable at every weight, symmetric about 1, and not for some eyes only.
"""

from __future__ import annotations

import itertools
import math
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tisdpo_jax.reporting import SidePicture, TokenPicture
from tisdpo_jax.reporting.heatmap import LEVELS, THEMES, background, legend_html, level, pair_html, style_sheet
from tisdpo_jax.reporting.html import printable


def side(tokens, seed: int = 0) -> SidePicture:
    random = np.random.default_rng(seed)
    plus, minus = -random.gamma(1.0, 1.0, (2, len(tokens)))
    weights = np.exp(np.clip(plus - minus, -0.5, 1.5)).astype(np.float32)
    return SidePicture(tuple(tokens), weights, plus, minus)


def pair(chosen, rejected=("No", "."), prompt: str = "A question?", pair_id: str = "p-1") -> TokenPicture:
    return TokenPicture(pair_id, prompt, (side(chosen, 1), side(rejected, 2)))


def field(title: str, name: str) -> str:
    return re.search(rf"^{re.escape(name)} (.*)$", title, re.MULTILINE)[1].replace("−", "-")


def test_every_number_shown_is_the_one_given(read) -> None:
    picture = pair(["I", " can", "'t", " help", "\n", "."], ["Sure", ",", " do"])
    for given_side, section in zip(picture.sides, read(pair_html(picture)).all("section"), strict=True):
        spans = section.all("span", "tw-t")
        sums = list(itertools.accumulate(np.subtract(given_side.logps_plus, given_side.logps_minus)))
        for n, span in enumerate(spans):
            title = span.attributes["title"]
            weight = field(title, "weight").split(" ")[0]
            assert np.float32(weight) == given_side.weights[n], "the digits give back the same float32"
            assert field(title, "position") == str(n)
            assert float(field(title, "log π⁺")) == pytest.approx(given_side.logps_plus[n], abs=5e-5)
            assert float(field(title, "log π⁻")) == pytest.approx(given_side.logps_minus[n], abs=5e-5)
            ratio = given_side.logps_plus[n] - given_side.logps_minus[n]
            assert float(field(title, "log-ratio")) == pytest.approx(ratio, abs=5e-5)
            assert float(field(title, "sum of log-ratios so far")) == pytest.approx(sums[n], abs=5e-5)
            step = level(given_side.weights[n])
            assert f"tw-{'n' if step < 0 else 'p'}{abs(step)}" in span.attributes["class"].split()
        assert len(spans) == len(given_side.tokens)


def test_the_table_says_the_same_exactly(read) -> None:
    picture = pair(["a", "b", "c"])
    for given_side, table in zip(picture.sides, read(pair_html(picture)).all("table"), strict=True):
        shown = [
            [float(cell.attributes["value"]) for cell in row.all("data")] for row in table.all("tbody")[0].all("tr")
        ]
        ratios = np.subtract(given_side.logps_plus, given_side.logps_minus)
        columns = [given_side.weights, given_side.logps_plus, given_side.logps_minus, ratios, np.cumsum(ratios)]
        assert np.allclose(shown, np.array(columns, np.float64).T, rtol=1e-12)


def check_text(read, tokens, prompt: str) -> None:
    """Text of a picture is text, in the title of a token too."""
    root = read(pair_html(pair(tokens, prompt=prompt, pair_id=prompt)))
    spans = root.all("section")[0].all("span", "tw-t")
    marks = {"↵": "", "⇥": "", "◦": "", "·": " "}
    for token, span in zip(tokens, spans, strict=True):
        quoted = "“" + token.replace("\n", "↵").replace("\t", "⇥") + "”"
        assert span.attributes["title"].startswith(printable(f"token {quoted}\nposition "))
        if not any(mark in token for mark in marks):
            assert span.text.translate(str.maketrans(marks)) == printable(token)
    assert root.all("div", "tw-prompt")[0].text == root.all("bdi")[0].text == printable(prompt)


@settings(max_examples=25)
@given(st.lists(st.text(max_size=8), min_size=1, max_size=12), st.text(max_size=40))
def test_any_text_comes_out_as_text(read, tokens: list[str], prompt: str) -> None:
    check_text(read, tokens, prompt)


def test_hostile_text_stays_text(read, hostile) -> None:
    check_text(read, hostile, "\n".join(hostile))


def test_what_cannot_be_seen_is_named(read) -> None:
    shown = [
        span.text
        for span in read(pair_html(pair(["\x00", "\x1b", "\u202e", "\ud800", "\u200b", "\r"])))
        .all("section")[0]
        .all("span", "tw-t")
    ]
    assert shown == ["␀", "␛", "[U+202E]", "[U+D800]", "[U+200B]", "␍"]
    joined = ["👩\u200d👧", "क\u094d\u200dष", "\ufffd", "e\u0301"]
    assert [printable(text) for text in joined] == joined


def test_white_space_is_kept_and_marked(read) -> None:
    shown = [
        span.text
        for span in read(pair_html(pair([" a", "  ", "\n\n", "\t", ""]))).all("section")[0].all("span", "tw-t")
    ]
    assert shown == [" a", "··", "↵\n↵\n", "⇥\t", "◦"]


def test_two_directions_do_not_mix(read) -> None:
    root = read(pair_html(pair(["שלום", " hello"], prompt="مرحبا")))
    for block in [*root.all("div", "tw-text"), *root.all("div", "tw-prompt")]:
        assert block.attributes["dir"] == "auto"
    assert "unicode-bidi:plaintext" in style_sheet()


def test_weights_without_logarithm_or_contrast(read) -> None:
    odd = SidePicture(("a", "b", "c", "d"), (0.0, -0.5, math.nan, 1.0))
    root = read(pair_html(TokenPicture("x", "", (odd, SidePicture((), ())))))
    chosen, rejected = root.all("section")
    classes = [span.attributes["class"].split()[1] for span in chosen.all("span", "tw-t")]
    assert classes == [f"tw-n{LEVELS}", "tw-odd", "tw-odd", "tw-p0"]
    titles = [span.attributes["title"] for span in chosen.all("span", "tw-t")]
    assert field(titles[0], "weight") == "0.0 (log -∞)" and field(titles[1], "weight") == "-0.5 (log undefined)"
    assert not any("π" in title for title in titles)
    assert "empty response" in rejected.text


def test_a_long_prompt_is_folded_with_its_end_in_sight(read) -> None:
    root = read(pair_html(pair(["a"], prompt="start " + "x " * 500 + "the end")))
    summary = root.all("summary")[0]
    assert "1,013 characters" in summary.text and summary.text.endswith("the end")
    assert root.all("div", "tw-prompt")[0].text.startswith("start x")


def test_the_legend_is_symmetric_and_says_the_limit(read) -> None:
    legend = read(legend_html())
    ticks = [span.text for span in legend.all("div", "tw-ticks")[0].all("span")]
    numbers = [float(re.sub("[≤≥ ]", "", re.match(r"[≤≥ ]*\d+\.\d{2}", tick)[0])) for tick in ticks]
    assert numbers[0] == pytest.approx(math.exp(-1.5), abs=0.01) and numbers[3] == 1
    for low, high in zip(numbers, numbers[::-1], strict=True):
        assert low * high == pytest.approx(1, rel=0.03)
    swatches = legend.all("div", "tw-bar")[0].all("i")
    assert len(swatches) == 2 * LEVELS + 1


def test_the_style_sheet_has_every_class_and_colour(read) -> None:
    css = style_sheet()
    tokens = [str(step) for step in range(81)]
    weights = np.exp(np.linspace(-2, 2, 81))
    picture = TokenPicture("all", "p", (SidePicture(tokens, weights), SidePicture(tokens, -weights)))
    for element in read(pair_html(picture)).all():
        for name in element.attributes.get("class", "").split():
            assert re.search(rf"\.{name}\b", css) or name in ("tw-numbers", "scroll"), name
    light, dark = css.split("@media screen and (prefers-color-scheme:dark)")
    for step in range(-LEVELS, LEVELS + 1):
        name = f".tw-{'n' if step < 0 else 'p'}{abs(step)}"
        assert f"{name}{{background:{background(step)}}}" in light
        assert f"{name}{{background:{background(step, 'dark')}}}" in dark


def test_a_notebook_shows_a_picture_as_it_is(read) -> None:
    picture = pair(["<b>", "x"])
    page = read(picture._repr_html_())
    assert len(page.all("span", "tw-t")) == 5 and not page.all("script")  # two sides, and the sample in the legend
    assert picture._repr_html_() == pair(["<b>", "x"])._repr_html_() and "<style>" not in pair_html(picture)


def test_columns_of_unequal_length_are_refused() -> None:
    with pytest.raises(ValueError, match="2 tokens but 1 weights"):
        SidePicture(("a", "b"), (1.0,))
    with pytest.raises(ValueError, match="2 tokens but 3 logps_minus"):
        SidePicture(("a", "b"), (1.0, 1.0), (0.0, 0.0), (0.0, 0.0, 0.0))
    with pytest.raises(ValueError, match="come together"):
        SidePicture(("a",), (1.0,), (0.0,))


STEPS = range(-LEVELS, LEVELS + 1)

# Simulation of complete colour blindness of each kind in linear RGB: Machado, Oliveira and Fernandes, 2009.
BLIND = {
    "protan": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deutan": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritan": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}


def rgb(colour: str) -> np.ndarray:
    return np.array(list(bytes.fromhex(colour[1:]))) / 255


def seen_by(matrix: list[list[float]], colour: str) -> np.ndarray:
    encoded = rgb(colour)
    linear = np.where(encoded <= 0.04045, encoded / 12.92, ((encoded + 0.055) / 1.055) ** 2.4)
    return np.clip(np.array(matrix) @ linear, 0, 1) ** (1 / 2.4)


@pytest.mark.parametrize("theme", THEMES)
def test_text_has_aa_contrast_on_every_level(contrast, theme: str) -> None:
    for step in STEPS:
        assert contrast(THEMES[theme][-1], background(step, theme)) >= 4.5


@given(st.floats(1e-6, 1e6))
def test_the_scale_is_symmetric_about_weight_one(weight: float) -> None:
    assert abs(level(weight) + level(1 / weight)) <= (1 if weight != 1 else 0)
    assert abs(level(weight)) <= LEVELS
    assert level(1.0) == 0


@given(st.floats(1e-3, 1e3), st.floats(1e-3, 1e3))
def test_a_larger_weight_never_has_a_lower_level(one: float, other: float) -> None:
    low, high = sorted((one, other))
    assert level(low) <= level(high)


def test_levels_at_known_weights() -> None:
    exact = [math.exp(1.5 * step / LEVELS) for step in STEPS]
    assert [level(weight) for weight in exact] == list(STEPS)
    assert level(0.0) == -LEVELS and level(-0.5) is None and level(math.nan) is None


@pytest.mark.parametrize("theme", THEMES)
def test_colours_leave_the_middle_evenly_to_both_sides(contrast, theme: str) -> None:
    middle = rgb(background(0, theme))
    assert np.ptp(middle) < 0.01, "weight 1 has no colour"
    white = "#000000" if theme == "dark" else "#ffffff"
    sides = [[contrast(white, background(s * step, theme)) for step in STEPS if step >= 0] for s in (1, -1)]
    for side in sides:
        assert side == sorted(side) and len(set(side)) == len(side), "every level is told from the one before"
    assert np.allclose(*sides, rtol=0.17), "equal distance from 1 is about equally strong"
    low, high = (rgb(background(step, theme)) for step in (-LEVELS, LEVELS))
    assert low[2] > low[1] > low[0] and high[0] > high[1] > high[2], "blue below, orange above"


@pytest.mark.parametrize("theme", THEMES)
@pytest.mark.parametrize("kind", BLIND)
def test_the_ends_differ_for_colour_blind_eyes(kind: str, theme: str) -> None:
    low, middle, high = (seen_by(BLIND[kind], background(step, theme)) for step in (-LEVELS, 0, LEVELS))
    assert np.linalg.norm(low - high) > 0.3
    assert min(np.linalg.norm(low - middle), np.linalg.norm(high - middle)) > 0.2
