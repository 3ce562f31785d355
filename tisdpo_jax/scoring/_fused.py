"""Log-likelihoods and KL from hidden states and heads, without the logits."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from tisdpo_jax import arguments
from tisdpo_jax.scoring._axes import Axes, automatic, parts_of
from tisdpo_jax.scoring._logits import DIRECTIONS, Direction
from tisdpo_jax.scoring._split_head import How, fused
from tisdpo_jax.scoring._targets import check_targets, of_targets

Array = jax.Array


def fused_logps(
    hidden: Array,
    head: Array,
    targets: Array,
    *,
    mask: Array | None = None,
    axes: Axes | None = None,
    softcap: float | None = None,
    chunk: int = 256,
) -> Array:
    """`logps_from_logits(hidden @ head, targets, mask=mask)`, without the logits.

    On a mesh the logits do not travel: each device has columns of the head, and hidden states are gathered. The mesh is
    the one that is set, or that on which the arrays lie. Axes named data, fsdp and tensor have the part of that name;
    for a mesh with other names `axes` says the parts, as in `axes={"data": "dp", "tensor": ("tp", "sp")}`:

        data    tokens lie along it
        fsdp    tokens lie along it, and the rows (D) of the head
        tensor  columns (V) of the head lie along it

    What lies otherwise is moved there, and an axis that has no part is warned of. Values do not depend on `axes`.

    Args:
      hidden: `[..., D]`; the product with the head is taken in its dtype, summed in float32.
      head: `[D, V]`, any float dtype; its gradient comes back in that dtype, summed in float32.
      targets: `[...]` integers in [0, V); for others see `logps_from_logits`.
      mask: `[...]`, 1 on tokens that count, as in `logps_from_logits`.
      axes: the parts of the caller's mesh axes, names or tuples of names.
      softcap: logits are `softcap * tanh(logits / softcap)`, as those of Gemma 2.
      chunk: tokens of each device that reach the vocabulary at a time, at most.

    Returns: `[...]` float32.
    Raises: ValueError for shapes, dtypes and targets that cannot be, and for axes that the mesh has not.
    """
    function = "fused_logps"
    given = targets
    hidden, head, targets = _checked(function, hidden, head, targets)
    _at_least_1(function, chunk)
    _above_0(function, softcap=softcap)
    mask = check_targets(function, given, targets.shape, head.shape[1], mask)
    hidden = _silent(hidden, mask)

    def run(hidden: Array, head: Array, targets: Array) -> tuple[Array, ...]:
        parts = parts_of(function, axes, (hidden, head, targets))
        hidden, head = _vary_together(hidden, head, targets)
        flat = hidden.reshape(-1, hidden.shape[-1])
        (logps,) = fused(flat, head, None, None, targets.reshape(-1), parts, How(chunk, softcap=softcap))
        return (logps.reshape(targets.shape),)

    (logps,) = automatic(run, 1)(hidden, head, targets)
    return of_targets(logps, targets, head.shape[1], mask)


def fused_logps_and_kl(
    hidden: Array,
    head: Array,
    reference_hidden: Array,
    reference_head: Array,
    targets: Array,
    *,
    direction: Direction = "policy||reference",
    mask: Array | None = None,
    axes: Axes | None = None,
    softcap: float | None = None,
    reference_softcap: float | None = None,
    chunk: int = 256,
) -> tuple[Array, Array, Array]:
    """Log-likelihoods under policy and reference, and the KL between them, without either's logits.

    Args:
      hidden, head: `[..., D]` and `[D, V]` of the policy.
      reference_hidden, reference_head: `[..., D']` and `[D', V]`; no gradient flows to them.
      targets: `[...]`.
      direction: as in `kl_from_logits`.
      softcap, reference_softcap: of the policy's logits and the reference's.
      mask, axes, chunk: as in `fused_logps`; where the mask is 0 the KL is 0 too.

    Returns: policy log-likelihoods, reference log-likelihoods, KL: each `[...]` float32.
    Raises: as `fused_logps`.
    """
    function = "fused_logps_and_kl"
    arguments.choice(function, "direction", direction, DIRECTIONS)
    _at_least_1(function, chunk)
    _above_0(function, softcap=softcap, reference_softcap=reference_softcap)
    given = targets
    hidden, head, targets = _checked(function, hidden, head, targets)
    reference_hidden, reference_head, _ = _checked(
        function, reference_hidden, reference_head, targets, whose="reference_"
    )
    if reference_head.shape[1] != head.shape[1]:
        raise ValueError(
            f"{function}: reference_head has shape {reference_head.shape} and head {head.shape}; the KL needs one "
            "vocabulary, the last axis of both"
        )
    mask = check_targets(function, given, targets.shape, head.shape[1], mask)
    hidden, reference_hidden = (_silent(x, mask) for x in (hidden, reference_hidden))
    reference_hidden, reference_head = jax.lax.stop_gradient((reference_hidden, reference_head))

    def run(hidden: Array, head: Array, *others: Array) -> tuple[Array, ...]:
        parts = parts_of(function, axes, (hidden, head, *others))
        reference_hidden, reference_head, targets = others
        hidden, head = _vary_together(hidden, head, *others)
        flat, reference = (x.reshape(-1, x.shape[-1]) for x in (hidden, reference_hidden))
        how = How(chunk, direction, softcap, reference_softcap)
        out = fused(flat, head, reference, reference_head, targets.reshape(-1), parts, how)
        return tuple(x.reshape(targets.shape) for x in out)

    logps, reference_logps, kl = automatic(run, 3)(hidden, head, reference_hidden, reference_head, targets)
    if mask is not None:
        kl = jnp.where(mask > 0, kl, 0.0)
    logps, reference_logps = (of_targets(x, targets, head.shape[1], mask) for x in (logps, reference_logps))
    return logps, reference_logps, kl


def _checked(function: str, hidden: Array, head: Array, targets: Array, whose: str = "") -> tuple[Array, Array, Array]:
    hidden_name, head_name = f"{whose}hidden", f"{whose}head"
    hidden, head = arguments.floats(function, hidden_name, hidden), arguments.floats(function, head_name, head)
    targets = arguments.integers(function, "targets", targets)
    if head.ndim != 2 or not hidden.ndim or head.shape[0] != hidden.shape[-1]:
        turned = head.ndim == 2 and hidden.ndim and head.shape[1] == hidden.shape[-1]
        raise ValueError(
            f"{function}: {head_name} has shape {head.shape} and {hidden_name} {hidden.shape}; they must be [D, V] and "
            f"[..., D] of one D. {f'An embedding [V, D] becomes that by {head_name}.T' if turned else ''}".rstrip()
        )
    if whose and hidden.shape[:-1] != targets.shape:
        raise ValueError(
            f"{function}: {hidden_name} has shape {hidden.shape}; it must be {targets.shape} and its own D"
        )
    arguments.same_shape(function, "targets", targets, "hidden without its last axis", hidden.shape[:-1])
    return hidden, head, targets


def _silent(hidden: Array, mask: Array | None) -> Array:
    """Hidden states of 0 where the mask is 0: a NaN there would reach the gradient of the head."""
    return hidden if mask is None else jnp.where(mask[..., None] > 0, hidden, jnp.zeros((), hidden.dtype))


def _at_least_1(function: str, chunk: int) -> None:
    if isinstance(chunk, bool) or not isinstance(chunk, int | np.integer) or chunk < 1:
        raise ValueError(f"{function}: chunk is {chunk!r}; it must be a whole number of at least 1")


def _above_0(function: str, **softcaps: float | None) -> None:
    for name, value in softcaps.items():
        if value is not None:
            arguments.number(function, name, value, above=0.0)


def _vary_together(hidden: Array, head: Array, *others: Array) -> tuple[Array, Array]:
    """Inside a shard_map: the first two, marked as different on every device on which any of the arrays is.

    Ordinary operations do that by themselves (and so sum the gradient of a head that all devices share); a gradient
    written by hand and the carry of a scan have to start from it. Adding a zero of the right kind says it in every
    version of JAX.
    """
    if jax.sharding.AxisType.Manual not in jax.sharding.get_abstract_mesh().axis_types:
        return hidden, head
    zero = sum(jnp.zeros_like(x, jnp.float32, shape=()) for x in (hidden, head, *others))
    return hidden + jnp.asarray(zero, hidden.dtype), head + jnp.asarray(zero, head.dtype)
