"""What a program makes: equations and arrays before XLA has seen it, shapes after."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from typing import Any

import jax


def equations(jaxpr: Any) -> Iterator[Any]:
    """Everything that a program computes, sub-programs included."""
    for equation in jaxpr.eqns:
        yield equation
        for value in jax.tree.leaves(equation.params, is_leaf=lambda x: hasattr(x, "eqns") or hasattr(x, "jaxpr")):
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from equations(inner)


def arrays(jaxpr: Any) -> Iterator[Any]:
    """Abstract values of everything that a program makes."""
    for equation in equations(jaxpr):
        yield from (variable.aval for variable in equation.outvars)


def compiled_shapes(text: str) -> set[tuple[int, ...]]:
    """Shapes of all arrays of numbers with a point in a compiled program: those of one device."""
    found = re.findall(r"\b(?:f64|f32|bf16|f16)\[([0-9,]+)\]", text)
    return {tuple(map(int, shape.split(","))) for shape in found}


def largest(shapes: set[tuple[int, ...]]) -> int:
    return max(map(math.prod, shapes))
