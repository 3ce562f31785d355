"""The loop over layers that keeps nothing but their inputs, with its backward pass written by hand.

The same numbers as `jax.checkpoint` around every layer of a `jax.lax.scan`. The difference is where gradients go: the
gradient of a layer's weights is written over the weights that it was computed with, which nothing reads again, so
the stack of gradients needs no memory of its own. (Where something does read them again, XLA makes a copy, and no
more is held than by the scan.)
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from tisdpo_jax.types import Variables

Array = jax.Array
Layer = Callable[[Variables, Array, Any], Array]


def through_layers(layer: Layer, variables: Variables, x: Array, shared: Any, *, count: int) -> Array:
    """`x` after all layers, the first first.

    Args:
        layer: `(variables, x, shared) -> x` of one layer.
        variables: of all layers, stacked on a first axis `[L, ...]`. Only leaves that are differentiated by get a
            gradient; nothing is computed for the others.
        x: `[R, T, D]`.
        shared: arrays that all layers use alike; nothing is differentiated by them.
        count: L.

    Raises: ValueError for stacks of another depth, and where a gradient by `shared` is asked for.
    """
    leaves, structure = jax.tree.flatten(shared)

    def unpacked(variables: Variables, x: Array, leaves: list[Any]) -> Array:
        return layer(variables, x, jax.tree.unflatten(structure, leaves))

    return _loop(unpacked, count, variables, x, leaves)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _loop(layer: Layer, count: int, variables: Variables, x: Array, shared: list[Any]) -> Array:
    return jax.lax.scan(lambda x, own: (layer(own, x, shared), None), x, variables, length=count)[0]


def _forward(layer: Layer, count: int, variables: Any, x: Any, shared: Any) -> tuple[Array, Any]:
    if any(leaf.perturbed for leaf in jax.tree.leaves(shared)):
        raise ValueError("through_layers: no gradient by what layers share; give it to each as a variable")
    wanted = jax.tree.map(lambda leaf: leaf.perturbed, variables)  # known while tracing
    variables, x, shared = jax.tree.map(lambda leaf: leaf.value, (variables, x, shared))
    trained = jax.tree.map(lambda leaf, wanted: leaf if wanted else None, variables, wanted)
    fixed = jax.tree.map(lambda leaf, wanted: None if wanted else leaf, variables, wanted)
    y, inputs = jax.lax.scan(lambda x, own: (layer(own, x, shared), x), x, variables, length=count)
    return y, (trained, fixed, inputs, shared)


def _backward(layer: Layer, count: int, kept: Any, gradient: Any) -> tuple[Any, Any, None]:
    trained, fixed, inputs, shared = kept
    if isinstance(gradient, jax.custom_derivatives.SymbolicZero):
        gradient = jnp.zeros(gradient.shape, gradient.dtype)

    def back(step: Array, carry: tuple[Array, Any]) -> tuple[Array, Any]:
        gradient, stacks = carry
        at = count - 1 - step
        own, other, x = jax.tree.map(
            lambda stack: jax.lax.dynamic_index_in_dim(stack, at, 0, False), (stacks, fixed, inputs)
        )
        _, pull = jax.vjp(lambda own, x: layer(_merged(own, other), x, shared), own, x)
        found, gradient = pull(gradient)
        write = functools.partial(jax.lax.dynamic_update_index_in_dim, index=at, axis=0)
        return gradient, jax.tree.map(write, stacks, found)

    gradient, gradients = jax.lax.fori_loop(0, count, back, (gradient, trained))
    return gradients, gradient, None


def _merged(some: Any, others: Any) -> Any:
    """One tree of two: where the first has None, the second has the leaf."""
    return jax.tree.map(lambda a, b: b if a is None else a, some, others, is_leaf=lambda leaf: leaf is None)


_loop.defvjp(_forward, _backward, symbolic_zeros=True)
