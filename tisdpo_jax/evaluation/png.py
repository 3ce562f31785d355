"""Token weights as PNG, for papers: both responses side by side, and distributions. Needs the extra `pictures`.

Nothing here touches pyplot or any other state of matplotlib. Characters that its own font lacks are taken from
whatever fonts are installed; those that none has are shown by their code, as `[U+1F600]`. Emoji are so named too, as
matplotlib draws no colour fonts. Right-to-left text stands in logical order: the first token is the leftmost.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from tisdpo_jax.errors import ConfigError
from tisdpo_jax.evaluation import palette
from tisdpo_jax.evaluation._html import number, printable
from tisdpo_jax.evaluation.curves import COLOURS
from tisdpo_jax.evaluation.heatmap import LIMIT, SidePicture, TokenPicture

_BASE = "DejaVu Sans"  # comes with matplotlib
_POINTS = 72.0
_LEADING = 1.75  # height of a line in font sizes
_PROMPT_LINES = 4
_QUIET = "#5b6270"


class Piece(NamedTuple):
    """Text of one token on one line, `x` from the left of its column, in points."""

    text: str
    x: float
    width: float
    line: int
    weight: float | None


def pair_png(
    picture: TokenPicture,
    path: str | Path,
    *,
    limit: float = LIMIT,
    width: float = 7.0,
    font_size: float = 8.0,
    dpi: int = 200,
) -> None:
    """Draws a pair: prompt, chosen and rejected side by side with a background by log-weight, and the scale.

    Args:
      path: of the .png, replaced if it is there.
      limit: log-weight at the ends of the scale.
      width: inches; the height follows from the text.

    Raises: ConfigError without matplotlib.
    """
    figure_type, canvas_type, rectangle = _matplotlib()
    margin, gap = 10.0, 14.0
    column = (width * _POINTS - 2 * margin - gap) / 2
    measure = _Measure(font_size, [*(token for side in picture.sides for token in side.tokens), picture.prompt])
    prompt = _prompt_lines(picture.prompt, measure, 2 * column + gap)
    sides = [wrap(side.tokens, side.weights, measure.width, column) for side in picture.sides]
    leading = font_size * _LEADING
    lines = max(1, *(piece.line + 1 for pieces in sides for piece in pieces), 1)
    height = 2 * margin + leading * (len(prompt) + 1 + lines) + 4.2 * leading
    figure = figure_type(figsize=(width, height / _POINTS), dpi=dpi)
    canvas = canvas_type(figure)
    draw = _Pen(figure, rectangle, width * _POINTS, height, measure)
    y = height - margin
    for line in prompt:
        y -= leading
        draw.text(line, margin, y, colour=_QUIET)
    y -= leading
    for number_of, (name, pieces) in enumerate(zip(("Chosen", "Rejected"), sides, strict=True)):
        left = margin + number_of * (column + gap)
        draw.text(_heading(name, picture.sides[number_of]), left, y - 0.35 * leading, bold=True)
        for piece in pieces:
            base = y - leading * (piece.line + 1.5)
            if piece.weight is not None:
                known = piece.weight >= 0
                colour = palette.background(palette.level(piece.weight, limit)) if known else "#ffffff"
                edge = None if known else _QUIET
                draw.box(left + piece.x, base - 0.32 * leading, piece.width, 0.9 * leading, colour, edge)
            draw.text(piece.text, left + piece.x, base)
    _scale(draw, margin, 2 * column + gap, margin, leading, limit)
    _write(canvas, figure, Path(path))


def distribution_png(
    title: str, x_label: str, series: Mapping[str, ArrayLike], path: str | Path, *, bins: int = 40, dpi: int = 200
) -> None:
    """Shares of each named array over common bins. Raises: ConfigError without matplotlib."""
    figure_type, canvas_type, _ = _matplotlib()
    values = {name: np.asarray(array, np.float64).ravel() for name, array in series.items()}
    finite = {name: array[np.isfinite(array)] for name, array in values.items()}
    everything = np.concatenate([*finite.values(), np.zeros(0)])
    edges = np.histogram_bin_edges(everything, bins=bins) if everything.size else np.array([0.0, 1.0])
    figure = figure_type(figsize=(4.2, 2.8), dpi=dpi, layout="constrained")
    canvas = canvas_type(figure)
    axes = figure.add_subplot()
    for index, (name, array) in enumerate(finite.items()):
        share = np.histogram(array, edges)[0] / max(array.size, 1)
        style = {"color": COLOURS[index % len(COLOURS)], "linestyle": ("-", "--", ":", "-.")[index % 4]}
        axes.stairs(share, edges, label=f"{name} ({array.size:,})", **style)
    axes.set(xlabel=x_label, ylabel="share", title=title)
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    _write(canvas, figure, Path(path))


def wrap(
    tokens: Sequence[str], weights: Sequence[float], width_of: Callable[[str], float], column: float
) -> list[Piece]:
    """Places of the tokens of a response in a column: lines break before words, within a word where it is too long.

    Args:
      width_of: text -> its width, in the unit of `column`.
    """
    pieces: list[Piece] = []
    x, line = 0.0, 0
    for word in _words(tokens):
        shown = [(_visible(tokens[index]), float(weights[index])) for index in word]
        whole = sum(width_of(part) for text, _ in shown for part in text.split("\n"))
        if x > 0 and x + whole > column and "\n" not in "".join(text for text, _ in shown):
            x, line = 0.0, line + 1
        for text, weight in shown:
            parts = text.split("\n")
            for number_of, part in enumerate(parts):
                for bit in _cut(part, width_of, column):
                    size = width_of(bit)
                    if x > 0 and x + size > column:
                        x, line = 0.0, line + 1
                    if bit:
                        pieces.append(Piece(bit, x, size, line, weight))
                    x += size
                if number_of < len(parts) - 1:
                    x, line = 0.0, line + 1
    return pieces


def _words(tokens: Sequence[str]) -> list[list[int]]:
    """Indices of the tokens that belong together: a token that begins with white space begins a word."""
    words: list[list[int]] = []
    for index, token in enumerate(tokens):
        if not words or token[:1].isspace() or tokens[index - 1][-1:].isspace():
            words.append([])
        words[-1].append(index)
    return words


def _cut(text: str, width_of: Callable[[str], float], column: float) -> list[str]:
    """The text in bits that fit into the column."""
    if width_of(text) <= column:
        return [text]
    bits, bit = [], ""
    for character in text:
        if bit and width_of(bit + character) > column:
            bits.append(bit)
            bit = ""
        bit += character
    return [*bits, bit]


def _visible(token: str) -> str:
    if not token:
        return "◦"
    text = printable(token)
    if not text.strip(" "):
        text = text.replace(" ", "·")
    return text.replace("\t", "⇥").replace("\n", "↵\n")


def _heading(name: str, side: SidePicture) -> str:
    mean = f", mean weight {number(float(np.mean(side.weights)), 3)}" if len(side.weights) else ""
    return f"{name} ({len(side.tokens)} tokens{mean})"


def _prompt_lines(prompt: str, measure: _Measure, column: float) -> list[str]:
    """The end of the prompt on a few lines."""
    text = " ".join(printable(prompt).split())
    words = text.split(" ")
    pieces = wrap([words[0], *(f" {word}" for word in words[1:])], [1.0] * len(words), measure.width, column)
    lines: dict[int, str] = {}
    for piece in pieces:
        lines[piece.line] = lines.get(piece.line, "") + piece.text
    found = [line.strip() for line in lines.values()]
    if len(found) <= _PROMPT_LINES:
        return found
    return [f"… {found[-_PROMPT_LINES]}", *found[1 - _PROMPT_LINES :]]


def _scale(draw: _Pen, left: float, width: float, bottom: float, leading: float, limit: float) -> None:
    steps = range(-palette.LEVELS, palette.LEVELS + 1)
    size = width * 0.6 / len(steps)
    start = left + width * 0.2
    for index, step in enumerate(steps):
        draw.box(start + index * size, bottom + 1.9 * leading, size * 1.02, 0.7 * leading, palette.background(step))
    for part in range(-2, 3):
        mark = limit * part / 2
        at = start + (part / 2 + 1) / 2 * size * len(steps)
        draw.text(number(math.exp(mark), 3), at, bottom + 1.0 * leading, centred=True)
        signed = f"{mark:+.2f}".replace("-", "−") if mark else "0"
        draw.text(signed, at, bottom + 0.2 * leading, centred=True, colour=_QUIET)
    draw.text("weight", left + width * 0.17, bottom + 1.0 * leading, right=True)
    draw.text("logarithm", left + width * 0.17, bottom + 0.2 * leading, right=True, colour=_QUIET)


class _Measure:
    """Widths of text in points, in a font list that has every character that any installed font has."""

    def __init__(self, size: float, texts: Sequence[str]) -> None:
        from matplotlib.backends.backend_agg import RendererAgg
        from matplotlib.font_manager import FontProperties

        characters = {character for text in texts for character in _visible(printable(text))} - {"\n"}
        families, self._missing = _families(frozenset(characters))
        self.font = FontProperties(family=list(families), size=size)
        self.bold = FontProperties(family=_BASE, size=size, weight="bold")  # headings are ours
        self._renderer = RendererAgg(8, 8, _POINTS)
        self._known: dict[str, float] = {}

    def shown(self, text: str) -> str:
        """The text with characters that no font has named by their code; those that only join others are left out."""
        if not self._missing:
            return text
        return "".join(_code(character) if character in self._missing else character for character in text)

    def width(self, text: str) -> float:
        if text not in self._known:
            found = self._renderer.get_text_width_height_descent(self.shown(text), self.font, False)
            self._known[text] = float(found[0])
        return self._known[text]


class _Pen:
    """Draws on a figure in points from the lower left."""

    def __init__(self, figure: Any, rectangle: Any, width: float, height: float, measure: _Measure) -> None:
        self._figure, self._rectangle, self._measure = figure, rectangle, measure
        self._width, self._height = width, height

    def box(self, x: float, y: float, width: float, height: float, colour: str, edge: str | None = None) -> None:
        self._figure.add_artist(
            self._rectangle(
                (x / self._width, y / self._height),
                width / self._width,
                height / self._height,
                transform=self._figure.transFigure,
                facecolor=colour,
                edgecolor=edge or "none",
                linewidth=0.5 if edge else 0.0,
                linestyle="--",
            )
        )

    def text(
        self,
        text: str,
        x: float,
        y: float,
        *,
        colour: str = "#16181d",
        bold: bool = False,
        centred: bool = False,
        right: bool = False,
    ) -> None:
        self._figure.text(
            x / self._width,
            y / self._height,
            self._measure.shown(text),
            fontproperties=self._measure.bold if bold else self._measure.font,
            color=colour,
            ha="center" if centred else ("right" if right else "left"),
            va="baseline",
            parse_math=False,  # a dollar is a dollar
        )


@functools.lru_cache(maxsize=8)
def _families(characters: frozenset[str]) -> tuple[tuple[str, ...], frozenset[str]]:
    """Fonts that together have as many of the characters as can be, and the characters that none of them has."""
    from matplotlib import font_manager

    def has(path: str) -> frozenset[int]:
        try:
            return frozenset(font_manager.get_font(path).get_charmap())
        except (OSError, RuntimeError, ValueError):  # colour and damaged fonts
            return frozenset()

    base = font_manager.findfont(_BASE)
    missing = {character for character in characters if ord(character) not in has(base)}
    families = [_BASE]
    # colour fonts cannot be drawn, and a last resort has a box for everything, which says less than the code
    regular = [
        font
        for font in font_manager.fontManager.ttflist
        if font.style == "normal"
        and str(font.weight) in ("400", "normal", "regular")
        and not any(word in font.name for word in ("Emoji", "Last Resort"))
    ]
    # sans serif, as the base is, before others
    for font in sorted(regular, key=lambda font: ("Sans" not in font.name, font.name, font.fname)):
        if not missing:
            break
        if font.name in families:
            continue
        found = {character for character in missing if ord(character) in has(font.fname)}
        if found:
            families.append(font.name)
            missing -= found
    return tuple(families), frozenset(missing)


def _code(character: str) -> str:
    """The name of a character; nothing for those that only join or choose the look of others."""
    code = ord(character)
    if code in (0x200C, 0x200D) or 0xFE00 <= code <= 0xFE0F or 0x1F3FB <= code <= 0x1F3FF:
        return ""
    return f"[U+{code:04X}]"


def _write(canvas: Any, figure: Any, path: Path) -> None:
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("wb") as file:
        figure.set_canvas(canvas)
        figure.savefig(file, format="png", facecolor="white", metadata={"Software": None})
    temporary.replace(path)


def _matplotlib() -> tuple[Any, Any, Any]:
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
        from matplotlib.patches import Rectangle
    except ImportError:
        raise ConfigError("PNG pictures need the package matplotlib: pip install 'tisdpo_jax[pictures]'") from None
    return Figure, FigureCanvasAgg, Rectangle
