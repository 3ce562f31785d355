"""Templates, and how text and numbers become HTML: whatever a template prints is made printable and escaped."""

from __future__ import annotations

import functools
import math
import re
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from markupsafe import Markup

TEMPLATES = Path(__file__).parent / "templates"

# Characters that a page must not hold (controls, lone surrogates, noncharacters) or that change how the text around
# them is read without being seen (bidirectional controls, zero-width spaces, line separators). Joiners stay: scripts
# and emoji need them.
_UNSEEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\xad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f"
    "\ufdd0-\ufdef\ufeff\ufff9-\ufffb\ufffe\uffff\ud800-\udfff]"
)


def printable(text: str) -> str:
    """`text` with what cannot be shown or seen named instead: NUL as its symbol, others as `[U+202E]`.

    Spaces, tabs and newlines stay as they are.
    """
    return _UNSEEN.sub(lambda match: _name(ord(match[0])), text)


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


@functools.cache
def _environment() -> jinja2.Environment:
    """Autoescape quotes markup; `finalize`, which every printed value passes first, names what cannot be seen."""
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        finalize=lambda value: value if isinstance(value, Markup) else printable(str(value)),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def macro(name: str, *values: Any) -> Markup:
    """What the macro `name` of parts.html makes of the values; HTML among them is Markup, all else is text."""
    written: Any = getattr(_environment().get_template("parts.html").module, name)
    return Markup(written(*values))


def render_template(name: str, **values: Any) -> str:
    """A whole template."""
    return _environment().get_template(name).render(values)


def _name(code: int) -> str:
    if code < 0x20:
        return chr(0x2400 + code)
    return "\u2421" if code == 0x7F else f"[U+{code:04X}]"
