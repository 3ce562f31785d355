"""Token weights of a pair as a picture for people: HTML that needs no script and nothing from outside.

The background of a token is its log-weight: blue below weight 1, neutral at 1, orange above; the same for every kind of
colour vision. The two ends have equal lightness and chroma in OKLCH (B. Ottosson, "A perceptual color space for image
processing", 2020; hues 250 and 60 degrees) and differ in hue alone, along the blue-yellow axis that red-green colour
blindness leaves intact; between them and the middle colours are mixed. Numbers of a token stand in its `title`, on
hover, and in a table below, for touch screens, keyboards, screen readers and paper.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from markupsafe import Markup, escape

from tisdpo_jax.reporting.html import marked, readable, render_template, with_sign
from tisdpo_jax.reporting.tables import Grid, Shown, grid_html

LIMIT = 1.5
"""Log-weight at the ends of the scale; the paper's weights lie in [exp(-1.5), exp(1.5)]."""

LEVELS = 20
"""A weight is drawn as one of 2 * LEVELS + 1 levels, so that a style sheet can hold them all."""

# at the smallest weight, at weight 1, at the largest weight, and the ink on top
THEMES = {"light": ("#5daaf5", "#fafafa", "#e18e43", "#16181d"), "dark": ("#20609b", "#242424", "#8b4b00", "#f4f5f7")}

SIDE_NAMES = ("Chosen", "Rejected")
_SHORT_PROMPT = 600  # characters; a longer one is folded
_PROMPT_END = 150  # characters of a folded prompt that stay in sight
_STEPS = range(-LEVELS, LEVELS + 1)


@dataclasses.dataclass(frozen=True, eq=False)
class SidePicture:
    """One response: for each token its text, its weight, and its log-likelihood under pi+ and pi-.

    Weights that come without a contrast (controls such as uniform) have None for both log-likelihoods.
    """

    tokens: Sequence[str]
    weights: Sequence[float]
    logps_plus: Sequence[float] | None = None
    logps_minus: Sequence[float] | None = None

    def __post_init__(self) -> None:
        if (self.logps_plus is None) != (self.logps_minus is None):
            raise ValueError("log-likelihoods under pi+ and pi- come together, or not at all")
        for name in ("weights", "logps_plus", "logps_minus"):
            values = getattr(self, name)
            if values is not None and len(values) != len(self.tokens):
                raise ValueError(f"{len(self.tokens)} tokens but {len(values)} {name}")


@dataclasses.dataclass(frozen=True, eq=False)
class TokenPicture:
    """A pair, chosen first, rejected second. A notebook shows it as it is."""

    pair_id: str
    prompt: str
    sides: tuple[SidePicture, SidePicture]

    def _repr_html_(self) -> str:
        """What notebooks ask an object for."""
        return f"<style>{style_sheet()}</style>\n{legend_html()}\n{pair_html(self)}"


def pair_html(picture: TokenPicture) -> Markup:
    """An `<article>` with both responses, side by side where there is room; it wants `style_sheet` and `legend_html`,
    once a page."""
    prompt = picture.prompt
    end = " ".join(prompt[-_PROMPT_END:].split()) if len(prompt) > _SHORT_PROMPT else ""
    sides = [_side(name, side) for name, side in zip(SIDE_NAMES, picture.sides, strict=True)]
    return render_template("pair.html", picture=picture, end=end, sides=sides)


def legend_html() -> Markup:
    """The scale: swatches of every level, and under it weights and their natural logarithms."""
    marks = [LIMIT * part / 3 for part in range(-3, 4)]
    ticks = [(readable(math.exp(mark), 3), with_sign(mark, 2)) for mark in marks]
    return render_template("legend.html", levels=map(_css, _STEPS), ticks=ticks)


def style_sheet() -> Markup:
    """CSS of pairs and legend; every class begins with `tw`, so that it can stand in any page."""
    levels = {theme: [(_css(step), background(step, theme)) for step in _STEPS] for theme in THEMES}
    return render_template("heatmap.css", levels=levels, inks={theme: colours[-1] for theme, colours in THEMES.items()})


def level(weight: float) -> int | None:
    """Level of a weight, -LEVELS to LEVELS: its logarithm over LIMIT, rounded and clipped; None below 0."""
    if not weight >= 0:
        return None
    return round(LEVELS * max(-1.0, min(1.0, math.log(weight) / LIMIT))) if weight else -LEVELS


def background(step: int, theme: str = "light") -> str:
    """`#rrggbb` of a level: from the neutral middle towards one of the ends."""
    low, middle, high, _ = THEMES[theme]
    end, share = high if step > 0 else low, abs(step) / LEVELS
    both = zip(bytes.fromhex(middle[1:]), bytes.fromhex(end[1:]), strict=True)
    return "#" + bytes(round((1 - share) * one + share * other) for one, other in both).hex()


def heading(side: SidePicture) -> list[str]:
    """What a response is introduced by."""
    mean = [f"mean weight {readable(float(np.mean(side.weights)), 3)}"] if len(side.tokens) else []
    return [f"{len(side.tokens):,} tokens", *mean]


def _side(name: str, side: SidePicture) -> dict[str, Any]:
    """What the template shows of a response."""
    facts, words, columns = heading(side), list[str](), list[Sequence[float]]()
    if side.logps_plus is not None and side.logps_minus is not None:
        ratios = [float(plus) - float(minus) for plus, minus in zip(side.logps_plus, side.logps_minus, strict=True)]
        facts.append(f"log π⁺/π⁻ {with_sign(sum(ratios), 2)} in all")
        words = ["log π⁺", "log π⁻", "log-ratio", "sum of log-ratios so far"]
        columns = [side.logps_plus, side.logps_minus, ratios, list(itertools.accumulate(ratios))]
    tokens, rows = [], []
    for n, (token, weight, *numbers) in enumerate(zip(side.tokens, side.weights, *columns, strict=True)):
        quoted = "“" + token.replace("\n", "↵").replace("\t", "⇥") + "”"
        log = math.log(weight) if weight > 0 else -math.inf if weight == 0 else math.nan
        said = [f"token {quoted}", f"position {n}", f"weight {_exact(weight)} (log {with_sign(log)})"]
        said += [f"{word} {with_sign(value)}" for word, value in zip(words, numbers, strict=True)]
        tokens.append((_css(level(weight)), "\n".join(said), marked(token, _MARK, escape)))
        exact = [Shown(with_sign(value), repr(float(value))) for value in numbers]
        rows.append((Shown(str(n)), Shown(quoted), Shown(_exact(weight), repr(float(weight))), *exact))
    heads = ("n", "token", "weight", *("log π⁺", "log π⁻", "ratio", "sum")[: len(columns)])
    return {"name": name, "facts": facts, "tokens": tokens, "numbers": grid_html(Grid(name, heads, rows, "tw-table"))}


_MARK = Markup('<span class="tw-mark">{}</span>').format


def _exact(weight: float) -> str:
    """With the digits that give back the same float32."""
    if not math.isfinite(weight):
        return with_sign(weight)
    return np.format_float_positional(np.float32(weight), unique=True, trim="0").replace("-", "−")


def _css(step: int | None) -> str:
    if step is None:
        return "odd"
    return f"p{step}" if step >= 0 else f"n{-step}"
