"""Templates, and how text and numbers become HTML: whatever a template prints is made printable and escaped."""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from markupsafe import Markup

# Characters that a page must not hold (controls, lone surrogates, noncharacters) or that change how the text around
# them is read without being seen (bidirectional controls, zero-width spaces, line separators). Joiners stay: scripts
# and emoji need them.
_UNSEEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\xad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f"
    "\ufdd0-\ufdef\ufeff\ufff9-\ufffb\ufffe\uffff\ud800-\udfff]"
)
_SYMBOLS = {code: chr(0x2400 + code) for code in range(0x20)} | {0x7F: "\u2421"}


def printable(text: str) -> str:
    """`text` with what cannot be shown or seen named instead: NUL as its symbol, others as `[U+202E]`.

    Spaces, tabs and newlines stay as they are.
    """
    return _UNSEEN.sub(lambda match: _SYMBOLS.get(ord(match[0]), f"[U+{ord(match[0]):04X}]"), text)


def marked(token: str, mark: Callable[[str], str] = str, text: Callable[[str], str] = str) -> str:
    """A token with the white space that would not be seen marked, and ◦ for part of a character.

    `mark` and `text` write a mark and all else; a token may hold the same characters as the marks.
    """
    if not token:
        return mark("◦")
    written = text(printable(token))
    if not token.strip(" "):
        written = written.replace(" ", mark("·"))
    return written.replace("\t", mark("⇥") + "\t").replace("\n", mark("↵") + "\n")


def readable(value: float | int | None, digits: int = 4) -> str:
    """A number for people: `digits` significant digits, no exponent for usual sizes, a dash where undefined."""
    if value is None or math.isnan(value):
        return "–"
    if isinstance(value, int | np.integer):
        return f"{value:,}"
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    if value == 0 or 1e-4 <= abs(value) < 10**6:
        decimals = digits - 1 - (math.floor(math.log10(abs(value))) if value else 0)
        return f"{value:,.{min(max(decimals, 0), 7)}f}"
    return f"{value:.{digits - 1}e}"


def with_sign(value: float, decimals: int = 4) -> str:
    """A number with a sign and a real minus; a zero has neither."""
    if not math.isfinite(value):
        return "undefined" if math.isnan(value) else ("+∞" if value > 0 else "−∞")
    text = f"{value:+.{decimals}f}".replace("-", "−")
    return text if float(f"{value:.{decimals}f}") else text[1:]


def render_template(template: str, **values: Any) -> Markup:
    """A template of the folder `templates`. HTML among the values is Markup, all else is text."""
    return Markup(_environment().get_template(template).render(values).strip())


@functools.cache
def _environment() -> jinja2.Environment:
    """Autoescape quotes markup; `finalize`, which every printed value passes first, names what cannot be seen."""
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        finalize=lambda value: value if isinstance(value, Markup) else printable(str(value)),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
