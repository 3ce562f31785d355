"""PNGs of pairs: every token stands once in its column, nothing overlaps, no text of the world breaks it."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest

from tisdpo_jax.reporting import SidePicture, TokenPicture, pair_png
from tisdpo_jax.reporting.heatmap import LEVELS, background
from tisdpo_jax.reporting.paper import wrap

LONG = ["", "the", "quick", "brown", "fox", "jumps", "over", "the", "lazy", "dog\n", "and\tthe", "dog", "sleeps"]
TOKENS = [f" {word}" for word in LONG] + ["", "early", "bird", " " + "x" * 90, "y" * 30, "。早上好", " "]


def picture(tokens: list[str], prompt: str = "p") -> TokenPicture:
    weights = np.exp(np.linspace(-1.5, 1.5, len(tokens))).tolist()
    return TokenPicture("id", prompt, (SidePicture(tokens, weights), SidePicture(tokens[::-1], weights)))


def test_wrapped_pieces_are_the_text_in_order_within_the_column_and_apart() -> None:
    pieces = wrap(TOKENS, 40)
    for n, token in enumerate(TOKENS):
        own = "".join(piece.text for piece in pieces if piece.token == n)
        shown = token.replace("\t", "⇥").replace("\n", "↵") or "◦"
        assert own == (shown if token.strip(" ") else token.replace(" ", "·") or "◦")
    assert [piece.token for piece in pieces] == sorted(piece.token for piece in pieces)
    ends: dict[int, int] = {}
    for piece in pieces:
        assert piece.cell >= ends.get(piece.line, 0) and piece.cell + piece.cells <= 40
        ends[piece.line] = piece.cell + piece.cells
    assert sorted(ends) == list(range(max(ends) + 1))
    after = next(piece for piece in pieces if piece.text.startswith(" and"))
    assert after.line == next(piece.line for piece in pieces if "↵" in piece.text) + 1
    assert [piece.cells for piece in wrap(["早上好"], 40)] == [6] and wrap(["a\u0301"], 1)[0].cells == 1


def test_lines_break_before_words() -> None:
    """Two tokens of one word stay together where the word fits on a line."""
    pieces = wrap(["aaaa", " bb", "bb", " cccc"], 6)
    assert [(piece.text, piece.line) for piece in pieces] == [("aaaa", 0), (" bb", 1), ("bb", 1), (" cccc", 2)]


@pytest.fixture
def draw(tmp_path: Path):
    def drawn(found: TokenPicture, **options: float) -> np.ndarray:
        """Pixels [height, width, 3] in 0..255."""
        import matplotlib.image

        pair_png(found, tmp_path / "pair.png", **options)
        return np.rint(255 * matplotlib.image.imread(tmp_path / "pair.png")[..., :3]).astype(int)

    return drawn


def shows(pixels: np.ndarray, colour: str) -> int:
    """How many pixels have that colour."""
    wanted = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
    return int((np.abs(pixels - wanted).max(-1) <= 1).sum())


def test_colours_are_those_of_the_palette(draw) -> None:
    """Each side's background comes from its weights; both ends of the scale are in the legend anyhow."""
    ends = [background(step) for step in (-LEVELS, LEVELS)]
    plain = picture(["one"] * 3)
    none = draw(TokenPicture("i", "p", tuple(SidePicture(side.tokens, [1.0] * 3) for side in plain.sides)))
    high, low = (
        draw(TokenPicture("i", "p", tuple(SidePicture(side.tokens, [w] * 3) for side in plain.sides)))
        for w in (99, 0.01)
    )
    assert shows(high, ends[1]) > shows(none, ends[1]) + 2000 and shows(low, ends[0]) > shows(none, ends[0]) + 2000
    half = none.shape[1] // 2
    one_side = draw(TokenPicture("i", "p", (SidePicture(["one"] * 3, [99.0] * 3), SidePicture(["one"] * 3, [1.0] * 3))))
    top = slice(0, int(0.6 * one_side.shape[0]))  # above the scale
    assert shows(one_side[top, :half], ends[1]) > 2000 and shows(one_side[top, half:], ends[1]) == 0


def test_more_text_makes_a_taller_picture_of_the_same_width(draw) -> None:
    short, tall = draw(picture(["word"] * 3)), draw(picture([" word"] * 100))
    assert short.shape[1] == tall.shape[1] == 1400 and tall.shape[0] > short.shape[0] + 100
    assert draw(picture(["word"] * 3), width=3.5).shape[1] == 700


def test_hostile_and_foreign_text_is_drawn_without_a_warning(draw, hostile, caplog) -> None:
    """Warnings are errors here; characters that no font has are named."""
    texts = [
        *hostile,
        "$x^2$",
        "$\\nothing{1}$",
        "\U000f0000",
        "\u0378",
        "a\u0301",
        "\n\n",
        "\U0001f469\u200d\U0001f467",
    ]
    with caplog.at_level(logging.WARNING):
        pixels = draw(picture(texts, prompt=" ".join(texts) + " long prompt" * 200))
    assert pixels.shape[0] > 300 and not [r for r in caplog.records if "findfont" in r.message]
    assert draw(picture([])).shape[1] == 1400


def test_the_same_picture_gives_the_same_bytes(tmp_path) -> None:
    for name in ("a", "b"):
        pair_png(picture(TOKENS), tmp_path / f"{name}.png")
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.png", "b.png"]
