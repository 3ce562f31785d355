"""Colours for log-weights: blue below weight 1, neutral at 1, orange above; the same for every kind of colour vision.

The two ends have equal lightness and chroma in OKLCH (B. Ottosson, "A perceptual color space for image processing",
2020; hues 250 and 60 degrees) and differ in hue alone, along the blue-yellow axis that red-green colour blindness
leaves intact; between them and the middle colours are mixed. A weight is drawn as one of 2 * LEVELS + 1 levels, so that
a style sheet can hold them all, once for light and once for dark screens.
"""

from __future__ import annotations

import math

LEVELS = 20

# at the smallest weight, at weight 1, at the largest weight, and the ink on top
LIGHT = ("#5daaf5", "#fafafa", "#e18e43", "#16181d")
DARK = ("#20609b", "#242424", "#8b4b00", "#f4f5f7")


def level(weight: float, limit: float) -> int:
    """Level of a weight, -LEVELS to LEVELS: its natural logarithm over `limit`, rounded and clipped."""
    if weight <= 0:
        return -LEVELS
    return round(LEVELS * max(-1.0, min(1.0, math.log(weight) / limit)))


def background(step: int, *, dark: bool = False) -> str:
    """`#rrggbb` of a level: from the neutral middle towards one of the ends."""
    low, middle, high, _ = DARK if dark else LIGHT
    end, share = high if step > 0 else low, abs(step) / LEVELS
    mixed = ((1 - share) * one + share * other for one, other in zip(rgb(middle), rgb(end), strict=True))
    return "#" + bytes(map(round, mixed)).hex()


def ink(*, dark: bool = False) -> str:
    """`#rrggbb` of text on any level."""
    return (DARK if dark else LIGHT)[-1]


def rgb(colour: str) -> tuple[int, ...]:
    """Red, green and blue of `#rrggbb`, 0 to 255."""
    return tuple(bytes.fromhex(colour[1:]))
