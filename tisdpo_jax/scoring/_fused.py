"""Log-likelihoods and KL from hidden states and heads, without the logits."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from tisdpo_jax import arguments
from tisdpo_jax.scoring._axes import Axes, automatic, parts_of
from tisdpo_jax.scoring._logits import DIRECTIONS, Direction, check_targets, of_targets
from tisdpo_jax.scoring._split_head import How, Tokens, fused

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
    (logps,) = _fused("fused_logps", [(hidden, head)], targets, mask, axes, How(chunk, softcap=softcap))
    return logps


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
    function, how = "fused_logps_and_kl", How(chunk, direction, softcap, reference_softcap)
    arguments.choice(function, "direction", direction, DIRECTIONS)
    models = [(hidden, head), (reference_hidden, reference_head)]
    logps, reference_logps, kl = _fused(function, models, targets, mask, axes, how)
    return logps, reference_logps, kl


def _fused(
    function: str, models: list[tuple[Array, Array]], targets: Array, mask: Array | None, axes: Axes | None, how: How
) -> list[Array]:
    """Log-likelihoods under the first model, and under a second, to which no gradient flows, with their KL."""
    if isinstance(how.chunk, bool) or not isinstance(how.chunk, int | np.integer) or how.chunk < 1:
        raise ValueError(f"{function}: chunk is {how.chunk!r}; it must be a whole number of at least 1")
    for name in ("softcap", "reference_softcap"):
        if getattr(how, name) is not None:
            arguments.number(function, name, getattr(how, name), above=0.0)
    given, targets = targets, arguments.integers(function, "targets", targets)
    names = ("", "reference_")
    models = [_checked(function, name, *model, targets) for name, model in zip(names, models, strict=False)]
    (_, head), others = models[0], models[1:]
    if others and others[0][1].shape[1] != head.shape[1]:
        raise ValueError(
            f"{function}: reference_head has shape {others[0][1].shape} and head {head.shape}; the KL needs one "
            "vocabulary, the last axis of both"
        )
    mask = check_targets(function, given, targets.shape, head.shape[1], mask)
    if mask is not None:  # a NaN there would reach the gradient of the head
        models = [(jnp.where(mask[..., None] > 0, x, jnp.zeros((), x.dtype)), kernel) for x, kernel in models]
    reference = jax.lax.stop_gradient(models[1] if others else ())

    def run(hidden: Array, head: Array, *others: Array) -> tuple[Array, ...]:
        parts = parts_of(function, axes, (hidden, head, *others))
        hidden, head = _vary_together(hidden, head, *others)
        *reference, targets = others
        flat = [x.reshape(-1, x.shape[-1]) for x in (hidden, *reference[:1])]
        tokens = Tokens(flat[0], targets.reshape(-1), flat[1] if reference else None)
        out = fused(tokens, (head, reference[1] if reference else None), parts, how)
        return tuple(x.reshape(targets.shape) for x in out)

    out = automatic(run, 3 if others else 1)(*models[0], *reference, targets)
    logps = [of_targets(x, targets, head.shape[1], mask) for x in out[:2]]
    return logps + [x if mask is None else jnp.where(mask > 0, x, 0.0) for x in out[2:]]


def _checked(function: str, whose: str, hidden: Array, head: Array, targets: Array) -> tuple[Array, Array]:
    names = f"{whose}hidden", f"{whose}head"
    hidden, head = (arguments.floats(function, name, x) for name, x in zip(names, (hidden, head), strict=True))
    if head.ndim != 2 or not hidden.ndim or head.shape[0] != hidden.shape[-1]:
        turned = head.ndim == 2 and hidden.ndim and head.shape[1] == hidden.shape[-1]
        raise ValueError(
            f"{function}: {names[1]} has shape {head.shape} and {names[0]} {hidden.shape}; they must be [D, V] and "
            f"[..., D] of one D. {f'An embedding [V, D] becomes that by {names[1]}.T' if turned else ''}".rstrip()
        )
    if whose and hidden.shape[:-1] != targets.shape:
        raise ValueError(f"{function}: {names[0]} has shape {hidden.shape}; it must be {targets.shape} and its own D")
    arguments.same_shape(function, "targets", targets, "hidden without its last axis", hidden.shape[:-1])
    return hidden, head


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
