"""Token weights of a pair as a picture for people: HTML that needs no script and nothing from outside.

The background of a token is its log-weight (`palette`); its `title` says the numbers on hover, and a table
below says them to touch screens, keyboards, screen readers and paper.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Sequence

import numpy as np

from tisdpo_jax.evaluation import palette
from tisdpo_jax.evaluation._html import data, escape, number, printable, table

LIMIT = 1.5
"""Log-weight at the ends of the scale; the paper's weights lie in [exp(-1.5), exp(1.5)]."""

_SHORT_PROMPT = 600  # characters; a longer one is folded
_PROMPT_END = 150  # characters of a folded prompt that stay in sight
_SIDES = ("Chosen", "Rejected")


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
    sides = "\n".join(_side(name, side, limit) for name, side in zip(_SIDES, picture.sides, strict=True))
    numbers = "\n".join(_numbers(name, side) for name, side in zip(_SIDES, picture.sides, strict=True))
    article = (
        f'<article class="tw" aria-label="{escape(f"Pair {picture.pair_id}")}">\n'
        f"<h3>Pair <bdi>{escape(picture.pair_id)}</bdi></h3>\n{_prompt(picture.prompt)}\n"
        f'<div class="tw-sides">\n{sides}\n</div>\n'
        f'<details class="tw-numbers"><summary>Numbers of every token</summary>\n'
        f'<div class="tw-sides">\n{numbers}\n</div></details>\n</article>'
    )
    return f"<style>{style_sheet()}</style>\n{legend_html(limit=limit)}\n{article}" if alone else article


def legend_html(*, limit: float = LIMIT) -> str:
    """The scale: swatches of every level, and under it weights and their natural logarithms."""
    steps = range(-palette.LEVELS, palette.LEVELS + 1)
    swatches = "".join(f'<i class="tw-{_level_name(step)}"></i>' for step in steps)
    marks = [limit * part / 3 for part in range(-3, 4)]
    ends = {0: "≤ ", len(marks) - 1: "≥ "}
    ticks = "".join(
        f"<span><b>{ends.get(i, '')}{number(math.exp(mark), 3)}</b><br>{_signed(mark, 2)}</span>"
        for i, mark in enumerate(marks)
    )
    return (
        '<div class="tw tw-legend" role="note">\n'
        "<p><b>Token weight</b> (upper numbers) and its natural logarithm (lower). Orange counts more than in DPO, "
        "blue less, no colour the same. Point at a token for its numbers, or open the table below it.</p>\n"
        f'<div class="tw-bar" aria-hidden="true">{swatches}</div>\n<div class="tw-ticks">{ticks}</div>\n'
        '<p class="tw-key"><span><span class="tw-t tw-odd">dashed</span> weight without a logarithm (below 0)</span> '
        '<span><span class="tw-mark">↵</span> new line</span> '
        '<span><span class="tw-mark">·</span> space that stands alone</span> '
        '<span><span class="tw-mark">◦</span> part of a character that a later token completes</span></p>\n</div>'
    )


def style_sheet() -> str:
    """CSS of everything above; every class begins with `tw`, so that it can stand in any page."""
    steps = range(-palette.LEVELS, palette.LEVELS + 1)

    def levels(dark: bool) -> str:
        return "".join(f".tw-{_level_name(step)}{{background:{palette.background(step, dark=dark)}}}" for step in steps)

    return (
        f".tw{{--tw-ink:{palette.ink()};{_LIGHT}}}{levels(False)}{_LAYOUT}"
        "@media screen and (prefers-color-scheme:dark){"
        f".tw{{--tw-ink:{palette.ink(dark=True)};{_DARK}}}{levels(True)}}}"
    )


def _prompt(prompt: str) -> str:
    text = f'<div class="tw-prompt" dir="auto">{escape(prompt)}</div>'
    if len(prompt) <= _SHORT_PROMPT:
        return f"<h4>Prompt</h4>\n{text}"
    end = " ".join(prompt[-_PROMPT_END:].split())
    return (
        f"<details><summary><b>Prompt</b>, {len(prompt):,} characters, ends: "
        f'<bdi class="tw-end">…{escape(end)}</bdi></summary>\n{text}</details>'
    )


def _side(name: str, side: SidePicture, limit: float) -> str:
    facts = [f"{len(side.tokens):,} tokens"]
    if len(side.tokens):
        facts.append(f"mean weight {number(float(np.mean(side.weights)), 3)}")
    ratios = _log_ratios(side)
    if ratios is not None:
        facts.append(f"log π⁺/π⁻ {_signed(sum(ratios), 2)} in all")
    spans = "".join(
        f'<span class="tw-t tw-{_css_level(weight, limit)}" title="{escape(title)}">{_shown(token)}</span>'
        for token, weight, title in zip(side.tokens, side.weights, _titles(side), strict=True)
    )
    text = spans or '<em class="tw-none">empty response</em>'
    return (
        f'<section class="tw-side" aria-label="{name}">\n<h4>{name} <small>{" · ".join(facts)}</small></h4>\n'
        f'<div class="tw-text" dir="auto">{text}</div>\n</section>'
    )


def _titles(side: SidePicture) -> list[str]:
    """What hovering over each token says. Weights are written with the digits that give back the same float32."""
    lines = [
        [f"token {_quoted(token)}", f"position {n}", f"weight {_exact(weight)} (log {_log(weight)})"]
        for n, (token, weight) in enumerate(zip(side.tokens, side.weights, strict=True))
    ]
    ratios = _log_ratios(side)
    if ratios is not None and side.logps_plus is not None and side.logps_minus is not None:
        columns = zip(side.logps_plus, side.logps_minus, ratios, itertools.accumulate(ratios), strict=True)
        for line, (plus, minus, ratio, total) in zip(lines, columns, strict=True):
            line += [f"log π⁺ {_signed(plus)}", f"log π⁻ {_signed(minus)}"]
            line += [f"log-ratio {_signed(ratio)}", f"sum of log-ratios so far {_signed(total)}"]
    return ["\n".join(line) for line in lines]


def _numbers(name: str, side: SidePicture) -> str:
    """The titles again, as a table."""
    columns = ["n", "token", "weight"]
    cells = [
        [str(n), f"<bdi>{escape(_quoted(token))}</bdi>", data(float(weight), _exact(weight))]
        for n, (token, weight) in enumerate(zip(side.tokens, side.weights, strict=True))
    ]
    ratios = _log_ratios(side)
    if ratios is not None and side.logps_plus is not None and side.logps_minus is not None:
        columns += ["log π⁺", "log π⁻", "ratio", "sum"]
        for cell, *values in zip(
            cells, side.logps_plus, side.logps_minus, ratios, itertools.accumulate(ratios), strict=True
        ):
            cell += [data(float(value), _signed(value)) for value in values]
    return table(name, columns, cells, css="tw-table")


def _log_ratios(side: SidePicture) -> list[float] | None:
    if side.logps_plus is None or side.logps_minus is None:
        return None
    return [float(plus) - float(minus) for plus, minus in zip(side.logps_plus, side.logps_minus, strict=True)]


def _shown(token: str) -> str:
    """The token as it stands in the text, with the white space that would not be seen marked."""
    if not token:
        return '<span class="tw-mark">◦</span>'
    text = escape(token)
    if not token.strip(" "):
        text = text.replace(" ", '<span class="tw-mark">·</span>')
    return text.replace("\t", '<span class="tw-mark">⇥</span>\t').replace("\n", '<span class="tw-mark">↵</span>\n')


def _quoted(token: str) -> str:
    return "“" + printable(token).replace("\n", "↵").replace("\t", "⇥") + "”"


def _css_level(weight: float, limit: float) -> str:
    return _level_name(palette.level(float(weight), limit)) if weight >= 0 else "odd"


def _level_name(step: int) -> str:
    return f"p{step}" if step >= 0 else f"n{-step}"


def _exact(weight: float) -> str:
    if not math.isfinite(weight):
        return _signed(weight)
    return np.format_float_positional(np.float32(weight), unique=True, trim="0").replace("-", "−")


def _log(weight: float) -> str:
    if weight > 0:
        return _signed(math.log(weight))
    return "−∞" if weight == 0 else "undefined"


def _signed(value: float, decimals: int = 4) -> str:
    """With a sign and a real minus; a zero has neither."""
    if not math.isfinite(value):
        return "undefined" if math.isnan(value) else ("+∞" if value > 0 else "−∞")
    text = f"{value:+.{decimals}f}".replace("-", "−")
    return text if float(f"{value:.{decimals}f}") else text[1:]


_LIGHT = "--tw-paper:#fff;--tw-quiet:#5b6270;--tw-line:#d9dce3;--tw-soft:#f5f6f8;--tw-seam:rgb(22 24 29/.13)"
_DARK = "--tw-paper:#191b20;--tw-quiet:#a4abb8;--tw-line:#3a3e47;--tw-soft:#22252b;--tw-seam:rgb(255 255 255/.17)"

_LAYOUT = """
.tw{box-sizing:border-box;background:var(--tw-paper);color:var(--tw-ink);border:1px solid var(--tw-line);
border-radius:10px;padding:1rem 1.25rem;margin:0 0 1.25rem;
font:15px/1.5 system-ui,"Segoe UI",Roboto,"Noto Sans",sans-serif}
.tw *{box-sizing:border-box}
.tw h3{font-size:1.05rem;margin:0 0 .5rem}
.tw h4{font-size:.95rem;margin:.5rem 0 .35rem;color:inherit}
.tw small{font-size:.82rem;font-weight:400;color:var(--tw-quiet);margin-inline-start:.4rem}
.tw summary{cursor:pointer;color:var(--tw-quiet);padding:.2rem 0}
.tw-sides{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,25rem),1fr));gap:.75rem 1.5rem}
.tw-side{min-width:0}
.tw-prompt,.tw-text{white-space:pre-wrap;overflow-wrap:anywhere;unicode-bidi:plaintext;text-align:start}
.tw-prompt{background:var(--tw-soft);border-radius:6px;padding:.6rem .8rem;color:var(--tw-quiet)}
.tw-text{font-size:1rem;line-height:1.85}
.tw-t{padding:.17em 0;border-radius:3px;box-shadow:inset -1px 0 var(--tw-seam);color:var(--tw-ink);
-webkit-box-decoration-break:clone;box-decoration-break:clone}
.tw-t:hover{outline:2px solid var(--tw-ink);outline-offset:-1px}
.tw-odd{outline:1px dashed var(--tw-quiet);outline-offset:-1px}
.tw-key .tw-odd{margin-inline-end:.35em;padding:.05em .25em}
.tw-mark{font-weight:300;user-select:none}
.tw-none,.tw-end{color:var(--tw-quiet)}
.tw-legend p{margin:0 0 .6rem}
.tw-bar{display:flex;height:1.1rem;margin:0 calc(100%/14);
border:1px solid var(--tw-line);border-radius:4px;overflow:hidden}
.tw-bar i{flex:1}
.tw-ticks{display:grid;grid-template-columns:repeat(7,1fr);margin:.25rem 0 .6rem;font-size:.8rem;line-height:1.35;
font-variant-numeric:tabular-nums;color:var(--tw-quiet);text-align:center}
.tw-ticks b{color:var(--tw-ink);font-weight:600}
.tw-legend .tw-key{display:flex;flex-wrap:wrap;align-items:baseline;gap:.2rem 1.2rem;margin:0;
font-size:.82rem;color:var(--tw-quiet)}
.tw-numbers{margin-top:.6rem}
.tw-table{border-collapse:collapse;width:100%;font-size:.8rem;font-variant-numeric:tabular-nums}
.tw-table caption{text-align:start;font-weight:600;padding:.3rem 0}
.tw-table th,.tw-table td{padding:.1rem .4rem;text-align:end;font-weight:400;white-space:pre;
border-bottom:1px solid var(--tw-line)}
.tw-table th:nth-child(2),.tw-table td:nth-child(2){text-align:start}
.tw-table thead th{color:var(--tw-quiet);position:sticky;top:0;background:var(--tw-paper)}
.tw .scroll{max-height:24rem;overflow:auto}
@media (max-width:40rem){.tw{padding:.8rem .9rem}}
@media print{.tw{break-inside:avoid-page}.tw-t,.tw-bar i{-webkit-print-color-adjust:exact;print-color-adjust:exact}
.tw .scroll{max-height:none}.tw-sides{grid-template-columns:1fr 1fr}.tw-text{font-size:.9rem}}
"""
