"""The head fused with what is wanted of it: log-likelihoods and KL from hidden states, without the logits.

On a mesh the vocabulary is split and the tokens travel: each device has its slice of the vocabulary, for every block of
tokens the hidden states of a group of devices are gathered, and what is summed over the vocabulary is summed over the
group. Neither the head nor its gradient is ever whole. On one device the slice is the vocabulary and nothing travels.

Tokens are taken in blocks, so `[block, slice]` is the largest float32 array over the vocabulary. The gradient is
written by hand: the backward pass makes each block of logits again, knows their log-sum-exp, and sums the gradient
of the head in float32, whatever dtype the head is stored in. A head that is not trained costs no gradient.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from tisdpo_jax.models import capped, product
from tisdpo_jax.scoring._axes import Parts, mapped_over
from tisdpo_jax.scoring._logits import Direction, kl_terms

Array = jax.Array


class Tokens(NamedTuple):
    """What belongs to each token, `[t, ...]`."""

    hidden: Array
    targets: Array
    reference: Array | None = None


class _Sums(NamedTuple):
    """What the backward pass knows of each token, `[t]`."""

    norm: Array  # log-sum-exp of the policy's logits
    reference_norm: Array | None = None
    kl: Array | None = None  # of the entries that both allow


class How(NamedTuple):
    """What is static."""

    chunk: int
    direction: Direction | None = None
    softcap: float | None = None
    reference_softcap: float | None = None


Heads = tuple[Array, Array | None]


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def fused(tokens: Tokens, heads: Heads, parts: Parts, how: How) -> tuple[Array, ...]:
    """Log-likelihoods of the targets `[t]`; with a reference, its own and the KL too."""
    return _run_forward(tokens, heads, parts, how)[0]


def _run_forward(tokens: Tokens, heads: Heads, parts: Parts, how: How) -> tuple[tuple[Array, ...], _Sums]:
    local = functools.partial(_local_forward, vocabulary=heads[0].shape[1], how=how)
    with jax.named_scope("head"):
        out = _on_mesh(local, (tokens,), heads, parts, heads_out=False)
    return jax.tree.map(lambda x: x[: tokens.targets.shape[0]], out)


def _forward(tokens, heads, parts, how):  # type: ignore[no-untyped-def]
    trained = () if heads[0].perturbed else None  # decided when traced: an empty container in what is saved, or none
    tokens, heads = jax.tree.map(lambda x: x.value, (tokens, heads), is_leaf=lambda x: hasattr(x, "perturbed"))
    out, sums = _run_forward(tokens, heads, parts, how)
    return out, (tokens, heads, sums, trained)


def _backward(parts, how, saved, cotangents):  # type: ignore[no-untyped-def]
    tokens, heads, sums, trained = saved
    zero = jax.custom_derivatives.SymbolicZero
    given = [jnp.zeros_like(tokens.targets, jnp.float32) if isinstance(x, zero) else x for x in cotangents]
    by_token = tokens, sums, given[0], None if how.direction is None else given[2]
    (width, vocabulary), dtype = heads[0].shape, heads[0].dtype
    local = functools.partial(_local_backward, vocabulary=vocabulary, how=how, trained=trained is not None)
    with jax.named_scope("head_gradient"):
        hidden_grad, head_grad = _on_mesh(local, by_token, heads, parts, heads_out=True)
    if head_grad is not None:
        head_grad = head_grad[:width, :vocabulary].astype(dtype)
    return Tokens(hidden_grad[: tokens.hidden.shape[0]], None, None), (head_grad, None)  # type: ignore[arg-type]


fused.defvjp(_forward, _backward, symbolic_zeros=True)


def _on_mesh(function: Any, by_token: Any, heads: Any, parts: Parts, *, heads_out: bool) -> Any:
    """`function(by_token, heads, parts)` on every device: tokens over data and fsdp, heads as parameters lie.

    That is `[D over fsdp, V over tensor]`. What does not divide is padded with zeros. `heads_out`: the second result is
    a head again.
    """
    if parts.mesh is None:
        return function(by_token, heads, parts)
    by_token = jax.tree.map(lambda x: _pad(x, (parts.size(parts.data + parts.fsdp),)), by_token)
    heads = jax.tree.map(lambda x: _pad(x, (parts.size(parts.fsdp), parts.size(parts.tensor))), heads)
    tokens, table = PartitionSpec(parts.data + parts.fsdp), PartitionSpec(parts.fsdp, parts.tensor)
    split = parts.split()
    mapped = jax.shard_map(
        lambda by_token, heads: function(by_token, heads, split),
        mesh=parts.mesh,
        in_specs=(tokens, table),
        out_specs=(tokens, table) if heads_out else tokens,
        check_vma=False,
        **mapped_over(parts.mesh),
    )
    return mapped(by_token, heads)


def _pad(x: Array, multiples: tuple[int, ...]) -> Array:
    pad = [(0, -size % multiple) for size, multiple in zip(x.shape, multiples, strict=False)]
    pad += [(0, 0)] * (x.ndim - len(pad))
    return jnp.pad(x, pad) if any(after for _, after in pad) else x


def _slices(tokens: Tokens, heads: Heads, vocabulary: int, parts: Parts, how: How) -> tuple[_Slice, _Slice | None]:
    table = _Slice(heads[0], tokens.hidden, vocabulary, parts, how.softcap)
    if heads[1] is None or tokens.reference is None:
        return table, None
    return table, _Slice(heads[1], tokens.reference, vocabulary, parts, how.reference_softcap)


def _local_forward(
    by_token: tuple[Tokens], heads: Heads, parts: Parts, *, vocabulary: int, how: How
) -> tuple[tuple[Array, ...], _Sums]:
    (tokens,) = by_token
    table, reference = _slices(tokens, heads, vocabulary, parts, how)

    def block(_: None, cut: Tokens) -> tuple[None, Any]:
        cut = jax.tree.map(functools.partial(_gather, group=parts.fsdp), cut)
        logps, norm = table.log_probs(cut.hidden)
        out: tuple[Array, ...] = (table.at(logps, cut.targets),)
        sums = _Sums(norm)
        if reference is not None and cut.reference is not None:
            others, reference_norm = reference.log_probs(cut.reference)
            pair = (logps, others) if how.direction == "policy||reference" else (others, logps)
            impossible = ((pair[0] != -jnp.inf) & (pair[1] == -jnp.inf) & (jnp.exp(pair[0]) > 0)).any(-1)
            kl, impossible = table.sum((kl_terms(*pair).sum(-1), impossible.astype(jnp.float32)))
            out += reference.at(others, cut.targets), jnp.where(impossible > 0, jnp.inf, kl)
            sums = _Sums(norm, reference_norm, kl)
        return None, jax.tree.map(functools.partial(_own, group=parts.fsdp), (out, sums))

    _, found = jax.lax.scan(block, None, _cut(tokens, how.chunk))
    return jax.tree.map(functools.partial(_join, length=tokens.targets.shape[0]), found)


def _local_backward(
    by_token: tuple[Tokens, _Sums, Array, Array | None],
    heads: Heads,
    parts: Parts,
    *,
    vocabulary: int,
    how: How,
    trained: bool,
) -> tuple[Array, Array | None]:
    tokens = by_token[0]
    table, reference = _slices(tokens, heads, vocabulary, parts, how)

    def block(head_grad: Array | None, inputs: Any) -> tuple[Array | None, Array]:
        cut, sums, g_logps, g_kl = jax.tree.map(functools.partial(_gather, group=parts.fsdp), inputs)
        z = table.logits(cut.hidden)
        logps = z - sums.norm[:, None]
        p = jnp.exp(logps)
        g = jnp.where(table.hit(cut.targets), g_logps[:, None], 0.0) - g_logps[:, None] * p
        if reference is not None:
            others = reference.logits(cut.reference) - sums.reference_norm[:, None]
            if how.direction == "policy||reference":  # d KL / d z = p (log p - log q - KL)
                d = jnp.where((p > 0) & (others != -jnp.inf), logps - others, 0.0)
                g += g_kl[:, None] * p * (d - sums.kl[:, None])
            else:  # of KL(q || p): p - q
                g += g_kl[:, None] * (p - jnp.exp(others))
        g = table.uncapped(g, z).astype(cut.hidden.dtype)
        if head_grad is not None:
            head_grad += product(cut.hidden.T, g)
        hidden_grad = product(g, table.kernel.T).astype(cut.hidden.dtype)
        return head_grad, _scatter_sum(hidden_grad, parts)

    zeros = jnp.zeros_like(table.kernel, jnp.float32) if trained else None
    head_grad, hidden_grad = jax.lax.scan(block, zeros, _cut(by_token, how.chunk))
    if head_grad is not None:
        if parts.data:
            head_grad = jax.lax.psum(head_grad, parts.data)
        head_grad = table.give_back(head_grad)
    return _join(hidden_grad, length=tokens.targets.shape[0]), head_grad


class _Slice:
    """The columns of a head that this device has: of its share `[D / fsdp, V / tensor]`, `[D, V / tensor / fsdp]`."""

    def __init__(
        self, share: Array, hidden: Array, vocabulary: int, parts: Parts, softcap: float | None = None
    ) -> None:
        depth, dtype = hidden.shape[-1], hidden.dtype
        self._share, self._parts, self._softcap = share.shape, parts, softcap
        kernel = share.astype(dtype)
        group = parts.size(parts.fsdp)
        width = -(-share.shape[1] // group)
        if group > 1:
            kernel = jnp.pad(kernel, ((0, 0), (0, width * group - share.shape[1])))
            kernel = jax.lax.all_to_all(kernel, parts.fsdp, split_axis=1, concat_axis=0, tiled=True)
        self._rows = kernel.shape[0]
        self.kernel = kernel[:depth]  # what was padded so that it divides
        inside = jnp.arange(width) + (jax.lax.axis_index(parts.fsdp) * width if group > 1 else 0)
        begin = jax.lax.axis_index(parts.tensor) * share.shape[1] if parts.tensor else 0
        # padding stands for no token: its number is one that no target has
        real = (inside < share.shape[1]) & (begin + inside < vocabulary)
        self._ids = jnp.where(real, begin + inside, -1)
        self._padded = width * group != share.shape[1] or bool(parts.tensor)

    def logits(self, hidden: Array) -> Array:
        z = capped(product(hidden, self.kernel), self._softcap)
        return jnp.where(self._ids >= 0, z, -jnp.inf) if self._padded else z

    def uncapped(self, g: Array, z: Array) -> Array:
        """The gradient by what was capped, of that by `z`, the logits; 0 stays 0 where they are -inf."""
        if self._softcap is None:
            return g
        return jnp.where(z == -jnp.inf, 0.0, g * (1.0 - jnp.square(z / self._softcap)))

    def log_probs(self, hidden: Array) -> tuple[Array, Array]:
        """This device's columns of the log-softmax, and the log-sum-exp over all of them."""
        z = self.logits(hidden)
        peak = jnp.max(z, axis=-1)
        for axis in self._over():
            peak = jax.lax.pmax(peak, axis)
        peak = jnp.where(peak == -jnp.inf, 0.0, peak)  # a row without any possible token stays one, not NaN
        (total,) = self.sum((jnp.exp(z - peak[:, None]).sum(-1),))
        norm = peak + jnp.log(jnp.where(total == 0, 1.0, total))
        return z - norm[:, None], norm

    def hit(self, targets: Array) -> Array:
        return self._ids == targets[:, None]

    def at(self, logps: Array, targets: Array) -> Array:
        return self.sum((jnp.where(self.hit(targets), logps, 0.0).sum(-1),))[0]

    def sum(self, values: tuple[Array, ...]) -> tuple[Array, ...]:
        over = self._over()
        return jax.lax.psum(values, over) if over else values

    def give_back(self, gradient: Array) -> Array:
        """A gradient of the kernel, as the share that the device was given."""
        if self._parts.fsdp:
            gradient = jnp.pad(gradient, ((0, self._rows - gradient.shape[0]), (0, 0)))
            gradient = jax.lax.all_to_all(gradient, self._parts.fsdp, split_axis=0, concat_axis=1, tiled=True)
        return gradient[:, : self._share[1]]

    def _over(self) -> tuple[str, ...]:
        return self._parts.tensor + self._parts.fsdp


def _gather(x: Array, group: tuple[str, ...]) -> Array:
    return jax.lax.all_gather(x, group, tiled=True) if group else x


def _own(x: Array, group: tuple[str, ...]) -> Array:
    """Of values that all devices of a group have, for the tokens of all: this device's."""
    if not group:
        return x
    size = x.shape[0] // jax.lax.axis_size(group)
    return jax.lax.dynamic_slice_in_dim(x, jax.lax.axis_index(group) * size, size)


def _scatter_sum(x: Array, parts: Parts) -> Array:
    """Sums what each slice of the vocabulary says, and keeps this device's tokens."""
    if parts.tensor:
        x = jax.lax.psum(x, parts.tensor)
    return jax.lax.psum_scatter(x, parts.fsdp, scatter_dimension=0, tiled=True) if parts.fsdp else x


def _cut(by_token: Any, chunk: int) -> Any:
    """`[t, ...]` -> `[blocks, block, ...]`: as many blocks as `chunk` asks for, of the least padding."""
    count = jax.tree.leaves(by_token)[0].shape[0]
    blocks = max(-(-count // chunk), 1)
    size = max(-(-count // blocks), 1)

    def cut(x: Array) -> Array:
        x = jnp.pad(x, [(0, blocks * size - count)] + [(0, 0)] * (x.ndim - 1))
        return x.reshape(blocks, size, *x.shape[1:])

    return jax.tree.map(cut, by_token)


def _join(x: Array, *, length: int) -> Array:
    """The inverse of `_cut`, padding cut off."""
    return x.reshape(-1, *x.shape[2:])[:length]
