"""Token weights of a pair as PNG, for papers: both responses side by side, a cell of the grid for a character.

Characters that matplotlib's own font lacks are taken from whatever fonts are installed; those that none has are shown
by their code, as `[U+1F600]`. Emoji are so named too, as matplotlib draws no colour fonts. Right-to-left text stands in
logical order: the first token is the leftmost.
"""

from __future__ import annotations

import functools
import itertools
import math
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tisdpo_jax.reporting.charts import canvas, write_png
from tisdpo_jax.reporting.heatmap import LEVELS, LIMIT, SIDE_NAMES, TokenPicture, background, heading, level
from tisdpo_jax.reporting.html import marked, readable, with_sign

_FONT, _CELL = "DejaVu Sans Mono", 0.602  # comes with matplotlib; width of a character, in font sizes
_SIZE = 8.0  # of the font, in points
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


def pair_png(picture: TokenPicture, path: str | Path, *, width: float = 7.0) -> None:
    """Draws a pair: prompt, chosen and rejected side by side with a background by log-weight, and the scale.

    Args:
      path: of the .png, replaced if it is there.
      width: inches; the height follows from the text.
    """
    across = width * 72 / (_SIZE * _CELL)
    column = (int(across) - 3 * _GAP) // 2
    texts = [picture.prompt, *(token for side in picture.sides for token in side.tokens)]
    fonts, missing = _fonts(frozenset("".join(map(marked, texts))) - {"\n", "\t"})
    prompt: list[str] = []  # by lines
    for piece in wrap([f" {word}" for word in picture.prompt.split()], 2 * column + _GAP, missing):
        prompt += [""] * (piece.line + 1 - len(prompt))
        prompt[-1] = (prompt[-1] + piece.text).lstrip()
    if len(prompt) > _PROMPT_LINES:
        prompt = [f"… {prompt[-_PROMPT_LINES]}", *prompt[1 - _PROMPT_LINES :]]
    sides = [wrap(side.tokens, column, missing) for side in picture.sides]
    top, lines = len(prompt) + 2, 1 + max((piece.line for piece in itertools.chain(*sides)), default=0)
    rows = top + lines + 4.5  # headings, blank, and the scale below
    settings: dict[str, Any] = {"font.size": _SIZE, "font.family": list(fonts)}
    with canvas(width, rows * _SIZE * 1.75 / 72, **settings) as figure:
        axes = figure.add_axes((0, 0, 1, 1))
        axes.set(xlim=(0, across), ylim=(rows, 0))
        axes.axis("off")
        for n, line in enumerate(prompt):
            axes.text(_GAP, n + 1.2, line, color=_QUIET)
        for left, name, side, pieces in zip((_GAP, column + 2 * _GAP), SIDE_NAMES, picture.sides, sides, strict=True):
            axes.text(left, top, f"{name} ({', '.join(heading(side))})", family=_FONT, weight="bold")
            levels = [level(side.weights[piece.token]) for piece in pieces]
            _boxes(axes, [(left + p.cell, top + 0.62 + p.line, p.cells, 0.9) for p in pieces], levels)
            for piece in pieces:
                axes.text(left + piece.cell, top + 1.3 + piece.line, piece.text)
        _scale(axes, 0.2 * int(across), 0.6 * int(across), rows)
        write_png(figure, path)


def wrap(tokens: Sequence[str], column: int, missing: frozenset[str] = frozenset()) -> list[Piece]:
    """Places of tokens in a column of so many cells: lines break before words, within a word where it is too long.

    A token that begins with white space begins a word. `missing`: characters that are shown by their code.
    """
    shown = [[_named(character, missing) for character in marked(token) if character != "\t"] for token in tokens]
    begins = [token[:1].isspace() or before[-1:].isspace() for before, token in itertools.pairwise([" ", *tokens])]
    pieces: list[Piece] = []
    line = cell = 0
    for index, texts in enumerate(shown):
        if begins[index]:
            end = next((n for n in range(index + 1, len(tokens)) if begins[n]), len(tokens))
            word = "".join(itertools.chain(*shown[index:end])).partition("\n")[0]
            if cell and cell + _width(word) > column:
                line, cell = line + 1, 0
        for text in texts:
            wide = _width(text)
            if text == "\n" or cell + wide > column:
                line, cell = line + 1, 0
            if text == "\n":
                continue
            if pieces and (pieces[-1].token, pieces[-1].line) == (index, line):
                last = pieces.pop()
                pieces.append(last._replace(text=last.text + text, cells=last.cells + wide))
            else:
                pieces.append(Piece(index, text, line, cell, wide))
            cell += wide
    return pieces


def _boxes(axes: Any, boxes: Sequence[tuple[float, float, float, float]], levels: Sequence[int | None]) -> None:
    """Boxes (left, top, width, height) in the colours of their levels; dashed where there is none."""
    from matplotlib.collections import PolyCollection

    corners = [[(x, y), (x + w, y), (x + w, y + h), (x, y + h)] for x, y, w, h in boxes]
    style: dict[str, Any] = {"linewidths": 0.5, "linestyles": "--", "antialiaseds": False}
    style["facecolors"] = ["white" if level is None else background(level) for level in levels]
    style["edgecolors"] = [_QUIET if level is None else "none" for level in levels]
    axes.add_collection(PolyCollection(corners, **style), autolim=False)


def _scale(axes: Any, left: float, width: float, rows: float) -> None:
    levels = range(-LEVELS, LEVELS + 1)
    size = width / len(levels)
    _boxes(axes, [(left + n * size, rows - 3, size * 1.02, 0.7) for n in range(len(levels))], levels)
    columns = [(left - 3 * size, "right", "weight", "logarithm")]
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        mark = LIMIT * (2 * share - 1)
        columns.append((left + share * width, "center", readable(math.exp(mark), 3), with_sign(mark, 2)))
    for place, align, weight, logarithm in columns:
        axes.text(place, rows - 1.5, weight, ha=align)
        axes.text(place, rows - 0.6, logarithm, ha=align, color=_QUIET)


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
    fonts = font_manager.fontManager.ttflist
    for font in sorted(fonts, key=lambda f: (f.name != _FONT, "DejaVu" not in f.name, "Sans" not in f.name, f.fname)):
        # colour fonts cannot be drawn, and a last resort has a box for everything, which says less than the code
        plain = font.style == "normal" and str(font.weight) in ("400", "normal", "regular")
        if not plain or "Emoji" in font.name or "Last Resort" in font.name or (families and not missing):
            continue
        try:
            has = {chr(code) for code in font_manager.get_font(font.fname).get_charmap()}
        except (OSError, RuntimeError, ValueError):  # damaged fonts
            continue
        if not families or (missing & has and font.name not in families):
            families.append(font.name)
            missing -= has
    return tuple(families), frozenset(missing)
