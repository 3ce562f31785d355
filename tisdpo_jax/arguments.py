"""What losses, weights and scoring say of arguments that they cannot take: ValueErrors that name argument and remedy.

Shapes and dtypes are known when a function is traced, so they are checked under jit, vmap, grad and shard_map too, and
cost nothing when the program runs. Nothing is broadcast. Values are checked where they can be seen: a number that is
traced, as beta by a schedule is, passes.

What shapes cannot tell: `[2, N]` is one pair, though it may have been the rows of one chosen and one rejected response;
`[B, N, 2]` with N = 2, `[2, B, N]` with B = 2 and sums `[B, 2]` with B = 2 look like `[..., 2, N]`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

Array = jax.Array


def floats(function: str, name: str, x: Any) -> Array:
    """`x` as an array of any float dtype; int and bool are refused, lists and None too."""
    return _of_kind(
        function, name, x, (jnp.floating,), "floats", "cast what is meant as numbers: x.astype(jnp.float32)"
    )


def integers(function: str, name: str, x: Any) -> Array:
    """`x` as an array of any integer dtype."""
    return _of_kind(function, name, x, (jnp.integer,), "integers", "token ids are wanted")


def mask_like(function: str, mask: Any, name: str, shape: tuple[int, ...]) -> Array:
    """A mask of bool, integers or floats, of `shape`, which is that of the argument `name`."""
    kinds = (jnp.bool_, jnp.integer, jnp.floating)
    mask = _of_kind(function, "mask", mask, kinds, "bool, integers or floats", "1 is a real element, 0 is none")
    same_shape(function, "mask", mask, name, shape)
    return mask


def elements(function: str, mask: Any, **arrays: Any) -> tuple[Array, ...]:
    """Float arrays `[..., N]` and their mask, all of one shape: the arrays in order, then the mask."""
    return _checked(function, mask, arrays, _elements)


def pair_arrays(function: str, mask: Any, **arrays: Any) -> tuple[Array, ...]:
    """Float arrays `[..., 2, N]` and their mask, all of one shape: the arrays in order, then the mask."""
    return _checked(function, mask, arrays, _pairs)


def group_arrays(function: str, mask: Any, **arrays: Any) -> tuple[Array, ...]:
    """Float arrays `[..., K, N]` and their mask, all of one shape: the arrays in order, then the mask."""
    return _checked(function, mask, arrays, _groups)


def same_shape(function: str, name: str, x: Array, other: str, shape: tuple[int, ...]) -> None:
    """Raises when `x` has another shape than `shape`, that of the argument `other`."""
    if x.shape != shape:
        raise ValueError(
            f"{function}: {name} has shape {x.shape}; it must be {shape}, the shape of {other}. Nothing is broadcast"
        )


def number(
    function: str,
    name: str,
    value: Any,
    *,
    above: float | None = None,
    at_least: float | None = None,
    at_most: float | None = None,
    infinite: bool = False,
) -> None:
    """Raises when a hyper-parameter is no finite scalar in its range; of one that is traced only shape and dtype.

    With `infinite`, +inf is in the range, for a bound that is none.
    """
    expected = _range(above, at_least, at_most, infinite)
    real = isinstance(value, int | float) and not isinstance(value, bool)
    if not real:
        shape, dtype = getattr(value, "shape", None), getattr(value, "dtype", None)
        if (
            shape is None
            or dtype is None
            or not any(jnp.issubdtype(dtype, kind) for kind in (jnp.floating, jnp.integer))
        ):
            raise ValueError(f"{function}: {name} is {value!r}; it must be {expected}")
        if shape != ():
            raise ValueError(f"{function}: {name} has shape {shape}; it must be one number (vmap takes one for each)")
        if not visible(value):
            return
    x = float(value)
    wrong = (
        not (math.isfinite(x) or (infinite and x == math.inf))
        or (above is not None and x <= above)
        or (at_least is not None and x < at_least)
        or (at_most is not None and x > at_most)
    )
    if wrong:
        raise ValueError(f"{function}: {name} is {value}; it must be {expected}")


def number_or_array(
    function: str,
    name: str,
    value: Any,
    shape: tuple[int, ...],
    *,
    at_least: float | None = None,
    at_most: float | None = None,
) -> Array:
    """A number, or an array of `shape`, as float32; both in the range, where it can be seen."""
    if getattr(value, "shape", ()) == ():
        number(function, name, value, at_least=at_least, at_most=at_most)
        return jnp.asarray(value, jnp.float32)
    array = floats(function, name, value)
    if array.shape != shape:
        raise ValueError(f"{function}: {name} has shape {array.shape}; it must be one number or {shape}")
    within(function, name, value, at_least, at_most)
    return array.astype(jnp.float32)


def within(function: str, name: str, array: Any, at_least: float | None, at_most: float | None) -> None:
    """Raises when an element is outside of a range, or NaN where there is one; of an array that is traced nothing.

    The array as the caller gave it: once it is one of jax, a constant of a traced function is not seen.
    """
    if not visible(array) or not array.size:
        return
    with jax.ensure_compile_time_eval():
        low, high = float(array.min()), float(array.max())
    if (at_least is not None and not low >= at_least) or (at_most is not None and not high <= at_most):
        raise ValueError(
            f"{function}: {name} has values from {low:g} to {high:g}; they must be {_range(None, at_least, at_most)}"
        )


def clamp(function: str, lower: Any, upper: Any) -> None:
    """Raises unless `lower` and `upper` are finite numbers in this order."""
    number(function, "lower", lower)
    number(function, "upper", upper)
    if visible(lower) and visible(upper) and float(lower) > float(upper):
        raise ValueError(f"{function}: lower is {lower} and upper is {upper}; lower must not be above upper")


def choice(function: str, name: str, value: Any, choices: Sequence[Any]) -> None:
    """Raises unless a static argument is one of `choices`."""
    if isinstance(value, bool) or not visible(value) or value not in choices:
        raise ValueError(f"{function}: {name} is {value!r}; it must be {' or '.join(map(repr, choices))}")


def flag(function: str, name: str, value: Any) -> None:
    """Raises unless a static argument is True or False."""
    if not visible(value) or not (isinstance(value, bool) or getattr(value, "dtype", None) == jnp.bool_):
        raise ValueError(f"{function}: {name} is {value!r}; it must be True or False")


def visible(x: Any) -> bool:
    """Whether the values of `x` can be looked at: not while it is traced, nor where other processes have a part."""
    if isinstance(x, jax.core.Tracer):
        return False
    return not isinstance(x, jax.Array) or x.is_fully_addressable


def _of_kind(function: str, name: str, x: Any, kinds: Sequence[Any], what: str, remedy: str) -> Array:
    if not isinstance(x, float) and (not hasattr(x, "shape") or not hasattr(x, "dtype")):
        raise ValueError(f"{function}: {name} is {_short(x)}; it must be an array of {what}")
    try:
        array: Any = x if isinstance(x, jax.ShapeDtypeStruct) else jnp.asarray(x)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{function}: {name} has dtype {x.dtype}; it must be an array of {what}") from error
    if not any(jnp.issubdtype(array.dtype, kind) for kind in kinds):
        raise ValueError(f"{function}: {name} has dtype {array.dtype}; it must be an array of {what} ({remedy})")
    out: Array = array
    return out


def _short(x: Any) -> str:
    return f"a {type(x).__name__}" if isinstance(x, list | tuple | dict) else repr(x)


def _checked(function: str, mask: Any, arrays: dict[str, Any], check: Any) -> tuple[Array, ...]:
    out: list[Array] = []
    first = next(iter(arrays))
    for name, x in arrays.items():
        array = floats(function, name, x)
        if out:
            same_shape(function, name, array, first, out[0].shape)
        else:
            check(function, name, array.shape)
        out.append(array)
    return *out, mask_like(function, mask, first, out[0].shape)


def _elements(function: str, name: str, shape: tuple[int, ...]) -> None:
    if not shape:
        raise ValueError(f"{function}: {name} has shape (); it must be [..., N], one log-likelihood for each token")


def _groups(function: str, name: str, shape: tuple[int, ...]) -> None:
    if len(shape) < 2:
        raise ValueError(
            f"{function}: {name} has shape {shape}; it must be [..., K, N], axis -2 the responses to a prompt, axis -1 "
            "tokens: one value for each token, before they are summed"
        )


def _pairs(function: str, name: str, shape: tuple[int, ...]) -> None:
    if len(shape) >= 2 and shape[-2] == 2:
        return
    if len(shape) < 2:
        hint = "One value for each token of both responses is wanted"
    elif shape[-1] == 2 and len(shape) > 2:
        hint = "Its last axis looks like the sides: jnp.swapaxes(x, -1, -2) puts them where they belong"
    elif shape[-1] == 2:
        hint = "Sums by response are not enough: values by token are wanted, before they are summed"
    elif shape[0] == 2:
        hint = "Its first axis looks like the sides: jnp.moveaxis(x, 0, -2) puts them where they belong"
    else:
        hint = "Chosen rows and then rejected rows, [2B, N], become [B, 2, N] with tisdpo_jax.scoring.pairs"
    raise ValueError(
        f"{function}: {name} has shape {shape}; it must be [..., 2, N], axis -2 chosen and rejected, axis -1 tokens. "
        + hint
    )


def _range(above: float | None, at_least: float | None, at_most: float | None, infinite: bool = False) -> str:
    if at_least is not None and at_most is not None:
        return f"a number between {at_least:g} and {at_most:g}"
    low = f" above {above:g}" if above is not None else f" of at least {at_least:g}" if at_least is not None else ""
    high = f", at most {at_most:g}" if at_most is not None else ""
    return f"a number{low}, or infinite" if infinite else f"a finite number{low}{high}"
