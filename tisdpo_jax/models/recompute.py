"""The loop over layers that keeps nothing but their inputs, with its backward pass written by hand.

The same numbers as `jax.checkpoint` around every layer of a `jax.lax.scan`. The difference is where gradients go: the
gradient of a layer's weights is written over the weights that it was computed with, which nothing reads again, so
the stack of gradients needs no memory of its own. (Where something does read them again, XLA makes a copy, and no
more is held than by the scan.)
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from tisdpo_jax.types import Variables

Array = jax.Array
Layer = Callable[[Variables, Array, Any], Array]


def through_layers(layers: Sequence[Layer], variables: Variables, x: Array, shared: Any, *, count: int) -> Array:
    """`x` after all layers, the first first.

    Args:
        layers: `(variables, x, shared) -> x` of one layer, for each of the pattern that repeats.
        variables: of all layers, stacked on a first axis `[L, ...]`. Only leaves that are differentiated by get a
            gradient; nothing is computed for the others.
        x: `[R, T, D]`.
        shared: arrays that all layers use alike; nothing is differentiated by them.
        count: L.

    Raises: ValueError for stacks of another depth, and where a gradient by `shared` is asked for.
    """
    depths = {leaf.shape[0] for leaf in jax.tree.leaves(variables)}
    if depths != {count}:
        raise ValueError(f"through_layers: stacks of {sorted(depths)} layers, not of {count}")
    leaves, structure = jax.tree.flatten(shared)

    def unpacked(layer: Layer) -> Layer:
        return lambda variables, x, leaves: layer(variables, x, jax.tree.unflatten(structure, leaves))

    return _loop(tuple(map(unpacked, layers)), count, variables, x, leaves)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _loop(layers: Sequence[Layer], count: int, variables: Variables, x: Array, shared: list[Any]) -> Array:
    return _each(lambda layer, at, x: layer(_at(variables, at), x, shared), layers, count, x)


def _forward(layers: Sequence[Layer], count: int, variables: Any, x: Any, shared: Any) -> tuple[Array, Any]:
    if any(leaf.perturbed for leaf in jax.tree.leaves(shared)):
        raise ValueError("through_layers: no gradient by what layers share; give it to each as a variable")
    wanted = jax.tree.map(lambda leaf: leaf.perturbed, variables)  # known while tracing
    variables, x, shared = jax.tree.map(lambda leaf: leaf.value, (variables, x, shared))
    trained = jax.tree.map(lambda leaf, wanted: leaf if wanted else None, variables, wanted)
    fixed = jax.tree.map(lambda leaf, wanted: None if wanted else leaf, variables, wanted)

    def keep(layer: Layer, at: Any, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        x, inputs = carry
        return layer(_at(variables, at), x, shared), _put(inputs, x, at)

    y, inputs = _each(keep, layers, count, (x, jnp.zeros((count, *x.shape), x.dtype)))
    return y, (trained, fixed, inputs, shared)


def _backward(layers: Sequence[Layer], count: int, kept: Any, gradient: Any) -> tuple[Any, Any, None]:
    trained, fixed, inputs, shared = kept
    if isinstance(gradient, jax.custom_derivatives.SymbolicZero):
        gradient = jnp.zeros(gradient.shape, gradient.dtype)

    def back(layer: Layer, at: Any, carry: tuple[Array, Any]) -> tuple[Array, Any]:
        gradient, stacks = carry
        own, other, x = _at((stacks, fixed, inputs), at)
        _, pull = jax.vjp(lambda own, x: layer(_merged(own, other), x, shared), own, x)
        own, gradient = pull(gradient)
        return gradient, jax.tree.map(functools.partial(_put, at=at), stacks, own)

    gradient, gradients = _each(back, layers, count, (gradient, trained), backwards=True)
    return gradients, gradient, None


def _each(step: Any, layers: Sequence[Layer], count: int, carry: Any, *, backwards: bool = False) -> Any:
    """`carry = step(layer, number, carry)` for all layers, of which `layers` is the pattern."""
    period, whole = len(layers), count // len(layers)

    def some(first: Any, few: Sequence[Layer], carry: Any) -> Any:
        for at in reversed(range(len(few))) if backwards else range(len(few)):
            carry = step(few[at], first + at, carry)
        return carry

    def turn(number: Array, carry: Any) -> Any:
        return some((whole - 1 - number if backwards else number) * period, layers, carry)

    rest = layers[: count - whole * period]
    if backwards:
        carry = some(whole * period, rest, carry)
    carry = jax.lax.fori_loop(0, whole, turn, carry)
    return carry if backwards else some(whole * period, rest, carry)


def _at(stacks: Any, at: Any) -> Any:
    return jax.tree.map(lambda stack: jax.lax.dynamic_index_in_dim(stack, at, 0, False), stacks)


def _put(stack: Array, own: Array, at: Any) -> Array:
    return jax.lax.dynamic_update_index_in_dim(stack, own, at, axis=0)


def _merged(some: Any, others: Any) -> Any:
    """One tree of two: where the first has None, the second has the leaf."""
    return jax.tree.map(lambda a, b: b if a is None else a, some, others, is_leaf=lambda leaf: leaf is None)


_loop.defvjp(_forward, _backward, symbolic_zeros=True)
