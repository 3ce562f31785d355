"""Line charts and histograms by matplotlib: SVG inside pages, PNG for papers. Nothing here touches pyplot.

Words stand in the page, around the drawing, and the drawing holds numbers alone. A chart takes its colours from the
page (`--c0`, `--c1`, ..., `--grid`) and has its own where the page sets none; series differ in dash and in colour.
"""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from markupsafe import Markup
from numpy.typing import ArrayLike, NDArray

from tisdpo_jax.artifacts import replacing
from tisdpo_jax.reporting.html import readable, render_template

_Floats = NDArray[np.float64]

COLOURS = ("#0072b2", "#d55e00", "#007a5a", "#a8437f", "#6b6b6b", "#8a6d00")
"""Told apart by every kind of colour vision (after Okabe and Ito), dark enough for lines on white."""

_GRID, _TEXT = "#dcdfe5", "#5b6271"  # what a page replaces by its own; not black, which matplotlib does not write
_DASHES = ((), (6, 3), (2, 3), (9, 3, 2, 3), (12, 4), (4, 2))
_WIDTH, _HEIGHT = 400, 215
_FEW = 40  # points that are drawn as dots too
_BINS = 40
_SETTINGS: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "",
    "text.parse_math": False,  # a dollar is a dollar
    "text.usetex": False,
    "font.family": "DejaVu Sans",  # comes with matplotlib
    "font.size": 11,
    "axes.formatter.useoffset": False,
    "axes.formatter.limits": (-4, 6),
    "lines.scale_dashes": False,
}


class Distribution(NamedTuple):
    """What a histogram shows."""

    title: str
    x_label: str
    series: Mapping[str, ArrayLike]


def line_chart(title: str, x_label: str, series: Mapping[str, tuple[ArrayLike, ArrayLike]]) -> Markup:
    """A `<figure>` with a line for each named (xs, ys). A y that is not finite is a gap, a lone point a dot."""
    lines = {name: (np.asarray(xs, np.float64), np.asarray(ys, np.float64)) for name, (xs, ys) in series.items()}
    words = {}
    for name, (_, ys) in lines.items():
        good = ys[np.isfinite(ys)]
        ends = f"{readable(good[0])} at first, {readable(good[-1])} at last{_missing(ys)}" if good.size else "no values"
        words[name] = ends
    return _figure(title, x_label, words, lambda axes: _draw_lines(axes, list(lines.values())))


def histogram(title: str, x_label: str, series: Mapping[str, ArrayLike]) -> Markup:
    """A `<figure>` with the distribution of each named array, as shares of it, over common bins.

    Values that are not finite are left out, and counted in the description.
    """
    values = _vectors(series)
    words = {name: f"{np.isfinite(array).sum():,} values{_missing(array)}" for name, array in values.items()}
    return _figure(title, x_label, words, lambda axes: _draw_shares(axes, values))


def distribution_png(distribution: Distribution, path: str | Path) -> None:
    """A histogram as PNG, with the words of its axes in it."""
    with canvas(4.2, 2.8, layout="constrained") as figure:
        axes = _axes(figure.add_subplot())
        _draw_shares(axes, _vectors(distribution.series))
        axes.set(xlabel=distribution.x_label, ylabel="share")
        figure.legend(*axes.get_legend_handles_labels(), loc="outside upper center", ncols=2, frameon=False)
        write_png(figure, path)


@contextlib.contextmanager
def canvas(width: float, height: float, *, layout: Any = None, **settings: Any) -> Iterator[Any]:
    """A figure of that many inches, outside of pyplot; how text is drawn does not depend on a user's own settings."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(_SETTINGS | settings):
        yield Figure(figsize=(width, height), layout=layout)


def write_png(figure: Any, path: str | Path, dpi: int = 200) -> None:
    """The same figure gives the same bytes."""
    with replacing(Path(path)) as temporary:
        figure.savefig(temporary, format="png", dpi=dpi, facecolor="white", metadata={"Software": None})


def _vectors(series: Mapping[str, ArrayLike]) -> dict[str, _Floats]:
    return {name: np.asarray(array, np.float64).ravel() for name, array in series.items()}


def _axes(axes: Any) -> Any:
    axes.grid(axis="y", color=_GRID, linewidth=1)
    axes.set_axisbelow(True)
    axes.tick_params(length=0, labelcolor=_TEXT, pad=5)
    axes.spines[["left", "right", "top"]].set_visible(False)
    axes.spines["bottom"].set_color(_TEXT)
    return axes


def _style(index: int) -> dict[str, Any]:
    dash = _DASHES[index % len(_DASHES)]
    return {"color": COLOURS[index % len(COLOURS)], "linestyle": (0, dash) if dash else "-"}


def _draw_lines(axes: Any, lines: list[tuple[_Floats, _Floats]]) -> None:
    finite = [np.isfinite(xs) & np.isfinite(ys) for xs, ys in lines]
    for index, ((xs, ys), good) in enumerate(zip(lines, finite, strict=True)):
        few = xs.size <= _FEW
        axes.plot(xs, np.where(good, ys, np.nan), linewidth=2 if few else 1.3, **_style(index))
        beside = np.concatenate([[False], good, [False]])
        dots = good if few else good & ~beside[:-2] & ~beside[2:]
        # lines of no length with round ends: markers of matplotlib would need names within the page
        gaps = np.full(dots.sum(), np.nan)
        ends = [np.stack([values[dots], values[dots], gaps], -1).ravel() for values in (xs, ys)]
        axes.plot(*ends, linewidth=5 if few else 3, color=_style(index)["color"], solid_capstyle="round")
    if not any(good.any() for good in finite):
        _say_nothing(axes)


def _draw_shares(axes: Any, values: Mapping[str, _Floats]) -> None:
    from matplotlib.ticker import PercentFormatter

    finite = {name: array[np.isfinite(array)] for name, array in values.items()}
    everything = np.concatenate([*finite.values(), np.zeros(0)])
    if not everything.size:
        return _say_nothing(axes)
    edges = np.histogram_bin_edges(everything, bins=_BINS)
    shares = [np.histogram(array, edges)[0] / max(array.size, 1) for array in finite.values()]
    for index, ((name, array), share) in enumerate(zip(finite.items(), shares, strict=True)):
        axes.stairs(share, edges, linewidth=1.5, label=f"{name} ({array.size:,})", **_style(index))
        axes.stairs(share, edges, fill=True, color=_style(index)["color"], alpha=0.16)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    axes.set_ylim(0, 1.04 * max(share.max() for share in shares))


def _say_nothing(axes: Any) -> None:
    axes.set(xticks=[], yticks=[])
    axes.text(0.5, 0.5, "no data", transform=axes.transAxes, ha="center", color=_TEXT)


def _figure(title: str, x_label: str, words: Mapping[str, str], draw: Callable[[Any], None]) -> Markup:
    """The drawing as SVG of the page: short, without names, with the page's font and colours; `words` by series."""
    file = io.StringIO()
    with canvas(_WIDTH / 72, _HEIGHT / 72) as figure:
        axes = _axes(figure.add_axes((0.135, 0.12, 0.845, 0.84)))
        draw(axes)
        axes.locator_params(nbins=5)
        for paper in (figure.patch, axes.patch):
            paper.set_visible(False)
        for artist in axes.findobj():
            artist.set_clip_on(False)  # nothing lies outside
        figure.savefig(file, format="svg", metadata=dict.fromkeys(("Date", "Format", "Type", "Creator")))
    svg = re.sub(r"<defs>\s*<style.*?</defs>", "", file.getvalue(), flags=re.DOTALL)
    svg = svg[svg.index(">", svg.index("<svg")) + 1 : svg.rindex("</svg>")]
    svg = re.sub(r' (id|transform)="[^"]*"|<g ?/>', "", svg)  # nothing is turned
    svg = re.sub(r' (d|x|y)="[^"]*"', lambda place: re.sub(r"\d+\.\d+", _rounded, place[0]), svg)
    svg = re.sub(r"font-family: [^;\"]*", "font-family: inherit", re.sub(r"\s+", " ", svg))
    own = [f"var(--c{index},{colour})" for index, colour in enumerate(COLOURS)]
    for colour, variable in zip((*COLOURS, _GRID, _TEXT), (*own, f"var(--grid,{_GRID})", "currentColor"), strict=True):
        svg = svg.replace(colour, variable)
    dashes = [" ".join(map(str, dash)) or "none" for dash in _DASHES]
    keys = [(name, own[index % len(own)], dashes[index % len(dashes)]) for index, name in enumerate(words)]
    return render_template(
        "figure.html",
        title=title,
        x_label=x_label,
        words="; ".join(f"{name}: {text}" for name, text in words.items()),
        keys=keys,
        drawing=Markup(svg),
        width=_WIDTH,
        height=_HEIGHT,
    )


def _rounded(number: re.Match[str]) -> str:
    return f"{float(number[0]):.1f}"


def _missing(values: _Floats) -> str:
    bad = int((~np.isfinite(values)).sum())
    return f", {bad:,} not finite" if bad else ""
