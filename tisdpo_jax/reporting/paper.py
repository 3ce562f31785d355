"""Token weights of a pair as PNG, for papers: both responses side by side, a cell of the grid for a character.

Characters that matplotlib's own font lacks are taken from whatever fonts are installed; those that none has are shown
by their code, as `[U+1F600]`. Emoji are so named too, as matplotlib draws no colour fonts. Right-to-left text stands in
logical order: the first token is the leftmost.
"""

from __future__ import annotations

import functools
import math
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tisdpo_jax.reporting import palette
from tisdpo_jax.reporting.charts import canvas, write_png
from tisdpo_jax.reporting.heatmap import LIMIT, SIDE_NAMES, SidePicture, TokenPicture, with_sign
from tisdpo_jax.reporting.html import printable, readable

_FONT, _CELL = "DejaVu Sans Mono", 0.602  # comes with matplotlib; width of a character, in font sizes
_QUIET = "#5b6270"
_GAP = 3  # cells between the responses, and around the picture
_PROMPT_LINES = 4


class Piece(NamedTuple):
    """Text of one token on one line of the grid, from a cell on, over so many cells."""

    token: int
    text: str
    line: int
    cell: int
    cells: int


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
    """
    cells = int(width * 72 / (font_size * _CELL))
    column = (cells - 3 * _GAP) // 2
    texts = [picture.prompt, *(token for side in picture.sides for token in side.tokens)]
    fonts, missing = _fonts(frozenset("".join(map(_visible, texts))) - {"\n"})
    prompt = _lines(picture.prompt, 2 * column + _GAP, missing)
    sides = [wrap(side.tokens, column, missing) for side in picture.sides]
    lines = 1 + max((piece.line for pieces in sides for piece in pieces), default=0)
    rows = len(prompt) + lines + 6.5  # blank, headings, and the scale below
    settings: dict[str, Any] = {"font.size": font_size, "font.family": list(fonts)}
    with canvas(width, rows * font_size * 1.75 / 72, **settings) as figure:
        axes = figure.add_axes((0, 0, 1, 1))
        axes.set(xlim=(0, width * 72 / (font_size * _CELL)), ylim=(rows, 0))
        axes.axis("off")
        for n, line in enumerate(prompt):
            axes.text(_GAP, n + 1.2, line, color=_QUIET)
        top = len(prompt) + 2
        for number_of, (side, pieces) in enumerate(zip(picture.sides, sides, strict=True)):
            left = _GAP + number_of * (column + _GAP)
            axes.text(left, top, _heading(SIDE_NAMES[number_of], side), family=_FONT, weight="bold")
            weights = [side.weights[piece.token] for piece in pieces]
            levels = [palette.level(weight, limit) if weight >= 0 else None for weight in weights]
            _boxes(axes, [(left + p.cell, top + 0.62 + p.line, p.cells, 0.9) for p in pieces], levels)
            for piece in pieces:
                axes.text(left + piece.cell, top + 1.3 + piece.line, piece.text)
        _scale(axes, 0.2 * cells, 0.6 * cells, rows, limit)
        write_png(figure, path, dpi)


def wrap(tokens: Sequence[str], column: int, missing: frozenset[str] = frozenset()) -> list[Piece]:
    """Places of tokens in a column of so many cells: lines break before words, within a word where it is too long.

    A token that begins with white space begins a word. `missing`: characters that are shown by their code.
    """
    pieces: list[Piece] = []
    line = cell = 0
    for word in _words(tokens):
        shown = [[_named(character, missing) for character in _visible(tokens[index])] for index in word]
        first = "".join(text for texts in shown for text in texts).split("\n")[0]
        if cell and cell + _width(first) > column:
            line, cell = line + 1, 0
        for index, texts in zip(word, shown, strict=True):
            begun = False
            for text in texts:
                wide = _width(text)
                if text == "\n" or cell + wide > column:
                    line, cell, begun = line + 1, 0, False
                if text == "\n":
                    continue
                if begun:
                    last = pieces.pop()
                    pieces.append(last._replace(text=last.text + text, cells=last.cells + wide))
                else:
                    pieces.append(Piece(index, text, line, cell, wide))
                cell, begun = cell + wide, True
    return pieces


def _words(tokens: Sequence[str]) -> Iterator[list[int]]:
    word: list[int] = []
    for index, token in enumerate(tokens):
        if word and (token[:1].isspace() or tokens[index - 1][-1:].isspace()):
            yield word
            word = []
        word.append(index)
    yield word


def _lines(prompt: str, column: int, missing: frozenset[str]) -> list[str]:
    """The end of the prompt on a few lines."""
    lines: dict[int, str] = {}
    for piece in wrap([f" {word}" for word in prompt.split()], column, missing):
        lines[piece.line] = lines.get(piece.line, "") + piece.text
    texts = [line.strip() for line in lines.values()]
    return texts if len(texts) <= _PROMPT_LINES else [f"… {texts[-_PROMPT_LINES]}", *texts[1 - _PROMPT_LINES :]]


def _heading(name: str, side: SidePicture) -> str:
    mean = f", mean weight {readable(float(np.mean(side.weights)), 3)}" if len(side.weights) else ""
    return f"{name} ({len(side.tokens)} tokens{mean})"


def _boxes(axes: Any, boxes: Sequence[tuple[float, float, float, float]], levels: Sequence[int | None]) -> None:
    """Boxes (left, top, width, height) in the colours of their levels; dashed where there is none."""
    from matplotlib.collections import PolyCollection

    corners = [[(x, y), (x + w, y), (x + w, y + h), (x, y + h)] for x, y, w, h in boxes]
    style: dict[str, Any] = {"linewidths": 0.5, "linestyles": "--", "antialiaseds": False}
    style["facecolors"] = ["white" if level is None else palette.background(level) for level in levels]
    style["edgecolors"] = [_QUIET if level is None else "none" for level in levels]
    axes.add_collection(PolyCollection(corners, **style), autolim=False)


def _scale(axes: Any, left: float, width: float, rows: float, limit: float) -> None:
    levels = range(-palette.LEVELS, palette.LEVELS + 1)
    size = width / len(levels)
    _boxes(axes, [(left + n * size, rows - 3, size * 1.02, 0.7) for n in range(len(levels))], levels)
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        mark = limit * (2 * share - 1)
        axes.text(left + share * width, rows - 1.5, readable(math.exp(mark), 3), ha="center")
        axes.text(left + share * width, rows - 0.6, with_sign(mark, 2), ha="center", color=_QUIET)
    axes.text(left - 3 * size, rows - 1.5, "weight", ha="right")
    axes.text(left - 3 * size, rows - 0.6, "logarithm", ha="right", color=_QUIET)


def _visible(token: str) -> str:
    """The token with marks for white space that would not be seen, and ◦ for part of a character."""
    text = printable(token) or "◦"
    if not text.strip(" "):
        text = text.replace(" ", "·")
    return text.replace("\t", "⇥").replace("\n", "↵\n")


def _named(character: str, missing: frozenset[str]) -> str:
    """The name of a character that no font has; nothing for those that only join or choose the look of others."""
    if character not in missing:
        return character
    code = ord(character)
    joins = code in (0x200C, 0x200D) or 0xFE00 <= code <= 0xFE0F or 0x1F3FB <= code <= 0x1F3FF
    return "" if joins else f"[U+{code:04X}]"


def _width(text: str) -> int:
    """Cells of a text: none for marks on other characters, two for wide ones."""
    shown = (c for c in text if unicodedata.category(c) not in ("Mn", "Me", "Cf"))
    return sum(2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in shown)


@functools.lru_cache(maxsize=8)
def _fonts(characters: frozenset[str]) -> tuple[tuple[str, ...], frozenset[str]]:
    """Fonts that together have as many of the characters as can be, and the characters that none of them has."""
    from matplotlib import font_manager

    missing = set(characters)
    families: list[str] = []
    # colour fonts cannot be drawn, and a last resort has a box for everything, which says less than the code
    others = [
        font
        for font in font_manager.fontManager.ttflist
        if font.style == "normal" and str(font.weight) in ("400", "normal", "regular")
        if not any(word in font.name for word in ("Emoji", "Last Resort"))
    ]
    for font in sorted(others, key=lambda f: (f.name != _FONT, "DejaVu" not in f.name, "Sans" not in f.name, f.fname)):
        if families and not missing:
            break
        try:
            has = {chr(code) for code in font_manager.get_font(font.fname).get_charmap()}
        except (OSError, RuntimeError, ValueError):  # damaged fonts
            continue
        if not families or (missing & has and font.name not in families):
            families.append(font.name)
            missing -= has
    return tuple(families), frozenset(missing)
