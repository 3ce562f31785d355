"""Token weights of a pair as a picture for people: HTML that needs no script and nothing from outside.

The background of a token is its log-weight (`palette`); its `title` says the numbers on hover, and a table
below says them to touch screens, keyboards, screen readers and paper.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from markupsafe import Markup, escape

from tisdpo_jax.reporting import palette
from tisdpo_jax.reporting.html import macro, printable, readable, render_template
from tisdpo_jax.reporting.tables import Shown

LIMIT = 1.5
"""Log-weight at the ends of the scale; the paper's weights lie in [exp(-1.5), exp(1.5)]."""

SIDE_NAMES = ("Chosen", "Rejected")
_SHORT_PROMPT = 600  # characters; a longer one is folded
_PROMPT_END = 150  # characters of a folded prompt that stay in sight


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
    """A pair as `pair_html` draws it: chosen first, rejected second. A notebook shows it as it is."""

    pair_id: str
    prompt: str
    sides: tuple[SidePicture, SidePicture]

    def _repr_html_(self) -> str:
        """What notebooks ask an object for."""
        return pair_html(self)


def pair_html(picture: TokenPicture, *, limit: float = LIMIT, alone: bool = True) -> str:
    """An `<article>` with both responses, side by side where there is room, under each other where not.

    `alone` puts the style sheet and the legend before it, as a notebook or a page with one picture needs;
    a page with several holds `style_sheet` and `legend_html` once.
    """
    prompt = picture.prompt
    end = " ".join(prompt[-_PROMPT_END:].split()) if len(prompt) > _SHORT_PROMPT else ""
    sides = [_side(name, side, limit) for name, side in zip(SIDE_NAMES, picture.sides, strict=True)]
    article = macro("pair", picture.pair_id, prompt, end, sides)
    if not alone:
        return str(article)
    return f"<style>{style_sheet()}</style>\n{legend_html(limit=limit)}\n{article}"


def legend_html(*, limit: float = LIMIT) -> str:
    """The scale: swatches of every level, and under it weights and their natural logarithms."""
    marks = [limit * part / 3 for part in range(-3, 4)]
    ticks = [(readable(math.exp(mark), 3), with_sign(mark, 2)) for mark in marks]
    return str(macro("legend", [_css(step) for step in _STEPS], ticks))


def style_sheet() -> str:
    """CSS of everything above; every class begins with `tw`, so that it can stand in any page."""
    themes = [
        (palette.ink(dark=dark), [(_css(step), palette.background(step, dark=dark)) for step in _STEPS])
        for dark in (False, True)
    ]
    return render_template("heatmap.css", light=themes[0], dark=themes[1])


def _side(name: str, side: SidePicture, limit: float) -> dict[str, Any]:
    """What the template shows of a response; `rows` are the numbers of every token."""
    spoken, rows = [], []
    for n, (token, weight) in enumerate(zip(side.tokens, side.weights, strict=True)):
        quoted = "“" + token.replace("\n", "↵").replace("\t", "⇥") + "”"
        spoken.append([f"token {quoted}", f"position {n}", f"weight {exact(weight)} (log {_log(weight)})"])
        rows.append([Shown(str(n)), Shown(quoted), Shown(exact(weight), repr(float(weight)))])
    facts, columns = [f"{len(side.tokens):,} tokens"], ["n", "token", "weight"]
    if len(side.tokens):
        facts.append(f"mean weight {readable(float(np.mean(side.weights)), 3)}")
    if side.logps_plus is not None and side.logps_minus is not None:
        ratios = [float(plus) - float(minus) for plus, minus in zip(side.logps_plus, side.logps_minus, strict=True)]
        facts.append(f"log π⁺/π⁻ {with_sign(sum(ratios), 2)} in all")
        columns += ["log π⁺", "log π⁻", "ratio", "sum"]
        words = ("log π⁺", "log π⁻", "log-ratio", "sum of log-ratios so far")
        values = zip(side.logps_plus, side.logps_minus, ratios, itertools.accumulate(ratios), strict=True)
        for title, row, four in zip(spoken, rows, values, strict=True):
            title += [f"{word} {with_sign(value)}" for word, value in zip(words, four, strict=True)]
            row += [Shown(with_sign(value), repr(float(value))) for value in four]
    tokens = [
        (_css(palette.level(float(weight), limit)) if weight >= 0 else "odd", "\n".join(title), _marked(token))
        for token, weight, title in zip(side.tokens, side.weights, spoken, strict=True)
    ]
    return {"name": name, "facts": facts, "tokens": tokens, "columns": columns, "rows": rows}


def with_sign(value: float, decimals: int = 4) -> str:
    """With a sign and a real minus; a zero has neither."""
    if not math.isfinite(value):
        return "undefined" if math.isnan(value) else ("+∞" if value > 0 else "−∞")
    text = f"{value:+.{decimals}f}".replace("-", "−")
    return text if float(f"{value:.{decimals}f}") else text[1:]


def exact(weight: float) -> str:
    """With the digits that give back the same float32."""
    if not math.isfinite(weight):
        return with_sign(weight)
    return np.format_float_positional(np.float32(weight), unique=True, trim="0").replace("-", "−")


def _marked(token: str) -> Markup:
    """The token with the white space that would not be seen marked: by elements, as the marks may stand in a token."""
    mark = Markup('<span class="tw-mark">{}</span>').format
    if not token:
        return mark("◦")
    text = escape(printable(token))
    if not token.strip(" "):
        text = text.replace(" ", mark("·"))
    return text.replace("\t", mark("⇥") + "\t").replace("\n", mark("↵") + "\n")


def _log(weight: float) -> str:
    if weight > 0:
        return with_sign(math.log(weight))
    return "−∞" if weight == 0 else "undefined"


def _css(step: int) -> str:
    return f"p{step}" if step >= 0 else f"n{-step}"


_STEPS = range(-palette.LEVELS, palette.LEVELS + 1)
