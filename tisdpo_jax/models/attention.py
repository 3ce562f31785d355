"""One attention function, several back ends. A back end that cannot honour its mask raises.

The mask is described, not drawn: causal always, a sliding window, segments (packed rows), and
explicit query and key positions (decoding against a cache). Only the `xla` back end can do all
of it; `splash` (TPU) and `cudnn` (GPU) do what their kernels do, and refuse the rest by name.
"""

from __future__ import annotations

import functools
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from tisdpo_jax import partitioning
from tisdpo_jax.models.leaves import capped
from tisdpo_jax.types import Tree

Array = jax.Array


class Mask(NamedTuple):
    """Which keys a query may see, beyond being causal. Fields that are None restrict nothing.

    With right-padded rows, causal alone is right: padding stands behind all real queries.
    """

    window: int | None = None  # static; keys a query sees, itself included
    segments: Array | None = None  # [R, T] int32; a query sees its own segment only
    tree: Tree | None = None  # packed pairs: a query sees its own branch and the trunk of its pair
    places: Array | None = None  # [R, T] int32, rotary positions, by which the window counts in a tree
    query_positions: Array | None = None  # [R, Tq]; with key_positions, replaces causality by index
    key_positions: Array | None = None  # [R, Tk]; a negative position is never seen


def dense_mask(mask: Mask, queries: int, keys: int) -> Array:
    """The mask as booleans, `[R or 1, 1, Tq, Tk]`. Made once a step, outside the layers."""
    if mask.query_positions is None or mask.key_positions is None:
        query = jnp.arange(queries)[None, :, None]
        key = jnp.arange(keys)[None, None, :]
    else:
        query, key = mask.query_positions[:, :, None], mask.key_positions[:, None, :]
    seen = (key <= query) & (key >= 0)
    if mask.window is not None and mask.places is not None:
        seen = seen & (mask.places[:, None, :] > mask.places[:, :, None] - mask.window)
    elif mask.window is not None:
        seen &= key > query - mask.window
    if mask.segments is not None:
        seen = seen & _same(mask.segments)
    if mask.tree is not None:
        trunk = (mask.tree.branch == 0)[:, None, :]
        seen = seen & _same(mask.tree.pair) & (trunk | _same(mask.tree.branch))
    return seen[:, None]


def _same(labels: Array) -> Array:
    return labels[:, :, None] == labels[:, None, :]


def prepare(mask: Mask, backend: str, queries: int, keys: int, heads: int, platform: str, softcap: float | None) -> Any:
    """What a back end derives from the mask, made once a call and shared by all layers, on `platform`."""
    if backend == "xla":
        return dense_mask(mask, queries, keys)
    if backend == "splash" and mask.query_positions is None:
        mesh = partitioning.active_mesh()
        heads //= 1 if mesh is None else mesh.shape["tensor"]
        return _splash_kernel(queries, heads, mask.window, softcap, platform != "tpu")
    return None


def attention(
    q: Array,
    k: Array,
    v: Array,
    *,
    mask: Mask,
    backend: str,
    prepared: Any = None,
    scale: float | None = None,
    softcap: float | None = None,
) -> Array:
    """Softmax attention with grouped queries; softmax in float32.

    Args:
      q: `[R, Tq, H, head_dim]`; k, v: `[R, Tk, Hkv, head_dim]`, `Hkv` divides `H`.
      mask: what a query may see.
      backend: "xla", "splash" or "cudnn".
      prepared: `prepare(mask, backend, ...)`, so that layers share it; made here when None.
      scale: of the scores; None is head_dim^-0.5.
      softcap: scores are softcap * tanh(scores / softcap) before the softmax.

    Returns: `[R, Tq, H, head_dim]` in the dtype of `q`.
    Raises: ValueError when the back end cannot honour the mask or is unknown, and when the mask does not fit.
    """
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    _check(mask, q.shape[:2], k.shape[:2])
    if backend not in ("xla", "splash", "cudnn"):
        raise ValueError(f"unknown attention back end {backend!r}; one of xla, splash, cudnn")
    positions = mask.query_positions is not None or mask.key_positions is not None
    for cannot, what, remedy in (
        (backend != "xla" and mask.tree is not None, "trees", "repeat the prompts, or use 'xla'"),
        (backend != "xla" and positions, "explicit positions (decoding)", "use 'xla'"),
        (backend == "cudnn" and mask.segments is not None, "segments (packed rows)", "use 'xla' or 'splash'"),
        (backend == "cudnn" and softcap is not None, "a soft cap (Gemma 2)", "use 'xla' or 'splash'"),
    ):
        if cannot:
            raise ValueError(f"attention back end {backend!r} cannot honour {what}; {remedy}")
    if backend == "cudnn" and q.dtype not in (jnp.bfloat16, jnp.float16):
        raise ValueError(f"attention back end 'cudnn' computes in bfloat16 or float16, not {q.dtype}; set model.dtype")
    if prepared is None:
        prepared = prepare(mask, backend, q.shape[1], k.shape[1], q.shape[2], jax.default_backend(), softcap)
    if backend == "xla":
        return _plain(q, k, v, prepared, scale, softcap)
    if backend == "splash":
        return _splash(q, k, v, mask.segments, prepared, scale)
    window = None if mask.window is None else (mask.window - 1, 0)
    return jax.nn.dot_product_attention(
        q, k, v, scale=scale, is_causal=True, local_window_size=window, implementation="cudnn"
    )


def _plain(q: Array, k: Array, v: Array, seen: Array, scale: float, softcap: float | None) -> Array:
    """Scores of all queries against all keys, in the dtype of the computation; their softmax in float32."""
    rows, length, heads, size = q.shape
    group = heads // k.shape[2]
    if group > 1:  # a group of query heads shares its keys without a copy of them
        q = q.reshape(rows, length, k.shape[2], group, size)
        scores, out = "rqhgd,rkhd->rhgqk", "rhgqk,rkhd->rqhgd"
        seen = seen[:, :, None]
    else:
        scores, out = "rqhd,rkhd->rhqk", "rhqk,rkhd->rqhd"
    if softcap is None:
        weights = _softmax_of_scores(q, k, seen, scores, scale)
    else:  # what the cap's gradient needs is not in the softmax, so the scores are made again
        weights = jax.checkpoint(_softmax, static_argnums=(3, 4, 5))(q, k, seen, scores, scale, softcap)
    return jnp.einsum(out, weights, v).reshape(rows, length, heads, size)


def _softmax(q: Array, k: Array, seen: Array, product: str, scale: float, softcap: float | None) -> Array:
    """Scores and their softmax in float32, given in the dtype of `q`."""
    z = capped(jnp.einsum(product, q, k, preferred_element_type=jnp.float32) * scale, softcap)
    # a query that sees nothing sees everything alike: its row is padding, which nobody reads
    return jax.nn.softmax(jnp.where(seen, z, jnp.finfo(jnp.float32).min), axis=-1).astype(q.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def _softmax_of_scores(q: Array, k: Array, seen: Array, product: str, scale: float) -> Array:
    """`_softmax`; what it gives is all that the backward pass keeps and reads."""
    return _softmax(q, k, seen, product, scale, None)


def _softmax_forward(q: Array, k: Array, seen: Array, product: str, scale: float) -> tuple[Array, Any]:
    p = _softmax_of_scores(q, k, seen, product, scale)
    return p, (q, k, p)


def _softmax_backward(
    product: str, scale: float, saved: tuple[Array, Array, Array], g: Array
) -> tuple[Array, Array, None]:
    q, k, p = saved
    wide, g = p.astype(jnp.float32), g.astype(jnp.float32)
    z = wide * (g - jnp.sum(wide * g, axis=-1, keepdims=True)) * scale  # 0 where nothing is seen, as p
    z = z.astype(p.dtype)
    inputs, scores = product.split("->")
    first, second = inputs.split(",")
    return jnp.einsum(f"{scores},{second}->{first}", z, k), jnp.einsum(f"{scores},{first}->{second}", z, q), None


_softmax_of_scores.defvjp(_softmax_forward, _softmax_backward)


def _check(mask: Mask, queries: tuple[int, ...], keys: tuple[int, ...]) -> None:
    """Refuses what broadcasting, or a kernel, would make something else of in silence. Shapes `[R, Tq]`, `[R, Tk]`."""
    if (mask.query_positions is None) != (mask.key_positions is None):
        raise ValueError("attention: query_positions and key_positions go together; give both or neither")
    if mask.query_positions is None and queries != keys:
        raise ValueError(f"attention: {queries[1]} queries against {keys[1]} keys need explicit positions in the mask")
    if mask.segments is not None and not (mask.segments.shape == queries == keys):
        raise ValueError(
            f"attention: segments have shape {mask.segments.shape}, queries {queries}, keys {keys}; all must agree"
        )
    if mask.window is not None and mask.window < 1:
        raise ValueError(f"attention: the window is {mask.window}; it holds the query itself, so it is at least 1")


def _splash(q: Array, k: Array, v: Array, segments: Array | None, kernel: Any, scale: float) -> Array:
    """Blocked attention on TPU (Pallas); elsewhere the same kernel, interpreted.

    XLA cannot split a kernel call, so on a mesh each device calls it on its own rows and heads.
    """
    from jax.experimental.pallas.ops.tpu import splash_attention as splash

    def local(q: Array, k: Array, v: Array, segments: Array | None, kernel: Any) -> Array:
        scaled = q * jnp.asarray(scale, q.dtype)
        heads_first = [jnp.swapaxes(x, 1, 2) for x in (scaled, k, v)]
        if segments is None:
            out = jax.vmap(kernel)(*heads_first)
        else:
            out = jax.vmap(kernel)(*heads_first, splash.SegmentIds(q=segments, kv=segments))
        return jnp.swapaxes(out, 1, 2).astype(q.dtype)

    mesh = partitioning.active_mesh()
    if mesh is None:
        return local(q, k, v, segments, kernel)
    heads, rows = partitioning.spec(("batch", None, "heads", None)), partitioning.spec(("batch", None))
    specs = (heads, heads, heads, None if segments is None else rows, jax.sharding.PartitionSpec())
    mapped = jax.shard_map(local, mesh=mesh, in_specs=specs, out_specs=heads, check_vma=False)
    return mapped(q, k, v, segments, kernel)


@functools.lru_cache(maxsize=16)
def _splash_kernel(length: int, heads: int, window: int | None, softcap: float | None, interpret: bool) -> Any:
    from jax.experimental.pallas.ops.tpu import splash_attention as splash

    if length % 128:
        raise ValueError(
            f"attention back end 'splash' needs rows of a multiple of 128 tokens, not {length}; "
            "pad them, or use 'xla' (model.attention)"
        )
    full = (length, length)
    one = splash.CausalMask(full) if window is None else splash.LocalMask(full, (window - 1, 0), 0)

    def make() -> Any:
        kernel = splash.make_splash_mha_single_device(
            splash.MultiHeadMask([one] * heads), attn_logits_soft_cap=softcap, interpret=interpret
        )
        # numpy leaves: device arrays of one host could not be closed over by a program of several
        return jax.tree.map(np.asarray, kernel)

    # Its tables are arrays of this host, whatever is being traced, and for devices that need not be here: contexts of
    # JAX do not reach into another thread.
    with ThreadPoolExecutor(1) as outside:
        return outside.submit(make).result()
