"""The colour scale: readable at every weight, symmetric about 1, and not for some eyes only."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tisdpo_jax.reporting import palette

STEPS = range(-palette.LEVELS, palette.LEVELS + 1)

# Simulation of complete colour blindness of each kind in linear RGB: Machado, Oliveira and Fernandes, 2009.
BLIND = {
    "protan": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deutan": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritan": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}


def rgb(colour: str) -> np.ndarray:
    return np.array(palette.rgb(colour)) / 255


def seen_by(matrix: list[list[float]], colour: str) -> np.ndarray:
    encoded = rgb(colour)
    linear = np.where(encoded <= 0.04045, encoded / 12.92, ((encoded + 0.055) / 1.055) ** 2.4)
    return np.clip(np.array(matrix) @ linear, 0, 1) ** (1 / 2.4)


@pytest.mark.parametrize("dark", [False, True])
def test_text_has_aa_contrast_on_every_level(contrast, dark: bool) -> None:
    for step in STEPS:
        assert contrast(palette.ink(dark=dark), palette.background(step, dark=dark)) >= 4.5


@given(st.floats(1e-6, 1e6), st.floats(0.1, 5))
def test_the_scale_is_symmetric_about_weight_one(weight: float, limit: float) -> None:
    assert abs(palette.level(weight, limit) + palette.level(1 / weight, limit)) <= (1 if weight != 1 else 0)
    assert abs(palette.level(weight, limit)) <= palette.LEVELS
    assert palette.level(1.0, limit) == 0


@given(st.floats(1e-3, 1e3), st.floats(1e-3, 1e3))
def test_a_larger_weight_never_has_a_lower_level(one: float, other: float) -> None:
    low, high = sorted((one, other))
    assert palette.level(low, 1.5) <= palette.level(high, 1.5)


def test_levels_at_known_weights() -> None:
    exact = [math.exp(1.5 * step / palette.LEVELS) for step in STEPS]
    assert [palette.level(weight, 1.5) for weight in exact] == list(STEPS)
    assert palette.level(0.0, 1.5) == -palette.LEVELS


@pytest.mark.parametrize("dark", [False, True])
def test_colours_leave_the_middle_evenly_to_both_sides(contrast, dark: bool) -> None:
    middle = rgb(palette.background(0, dark=dark))
    assert np.ptp(middle) < 0.01, "weight 1 has no colour"
    white = "#000000" if dark else "#ffffff"
    sides = [[contrast(white, palette.background(s * step, dark=dark)) for step in STEPS if step >= 0] for s in (1, -1)]
    for side in sides:
        assert side == sorted(side) and len(set(side)) == len(side), "every level is told from the one before"
    assert np.allclose(*sides, rtol=0.17), "equal distance from 1 is about equally strong"
    low, high = (rgb(palette.background(step, dark=dark)) for step in (-palette.LEVELS, palette.LEVELS))
    assert low[2] > low[1] > low[0] and high[0] > high[1] > high[2], "blue below, orange above"


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("kind", BLIND)
def test_the_ends_differ_for_colour_blind_eyes(kind: str, dark: bool) -> None:
    low, middle, high = (
        seen_by(BLIND[kind], palette.background(step, dark=dark)) for step in (-palette.LEVELS, 0, palette.LEVELS)
    )
    assert np.linalg.norm(low - high) > 0.3
    assert min(np.linalg.norm(low - middle), np.linalg.norm(high - middle)) > 0.2
