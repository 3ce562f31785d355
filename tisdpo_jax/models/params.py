"""The parameters of a decoder, in one table: what else is known of them follows from it. And adapters beside them.

A parameter is stored as its layers stacked, `[L, in, out]`. The size of an axis follows from its logical name; how it
is laid over a mesh does too (`partitioning.AxisRules`). Paths are public, and so are the names in checkpoints: those of
transformers, whose matrices are `[out, in]`, and those of llama.cpp.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Collection
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from tisdpo_jax.errors import ConfigError
from tisdpo_jax.models.config import TransformerConfig
from tisdpo_jax.models.leaves import dense
from tisdpo_jax.types import Params

Naming = Literal["huggingface", "gguf"]
When = tuple[str, bool] | None
"""Models have a parameter whose configuration has this flag so; None: all."""


class Parameter(NamedTuple):
    """A row of the table."""

    path: str  # as in layers/attention/q/kernel
    axes: tuple[str, ...]
    huggingface: str  # the tensor's name; of a stack those of its layers, whose number replaces {}
    gguf: str
    when: When = None

    @property
    def stacked(self) -> bool:
        return self.axes[0] == "layers"

    @property
    def adaptable(self) -> bool:
        """Whether it is a matrix of the layers, which an adapter can stand beside and int8 can hold."""
        return self.stacked and self.path.endswith("/kernel")

    def shape(self, config: TransformerConfig) -> tuple[int, ...]:
        sizes = {
            "layers": config.num_layers,
            "embed": config.hidden_size,
            "norm": config.hidden_size,
            "head_dim": config.head_dim,
            "heads": config.num_heads * config.head_dim,
            "kv_heads": config.num_kv_heads * config.head_dim,
            "mlp": config.intermediate_size,
            "vocab": config.vocab_size,
            "label": 1,
        }
        return tuple(sizes[axis] for axis in self.axes)

    def names(self, naming: Naming, layers: int) -> tuple[str, ...]:
        """The checkpoint's tensors that it is made of, in order."""
        name = self.huggingface if naming == "huggingface" else self.gguf
        return tuple(name.format(layer) for layer in range(layers)) if self.stacked else (name,)


def _of_layers(path: str, axes: tuple[str, ...], huggingface: str, gguf: str, when: When = None) -> Parameter:
    return Parameter(f"layers/{path}", ("layers", *axes), f"model.layers.{{}}.{huggingface}", f"blk.{{}}.{gguf}", when)


def _norm(path: str, huggingface: str, gguf: str, when: When = None, axis: str = "norm") -> Parameter:
    return _of_layers(f"{path}/scale", (axis,), f"{huggingface}.weight", f"{gguf}.weight", when)


def _projection(path: str, axes: tuple[str, str], huggingface: str, gguf: str, bias: str) -> tuple[Parameter, ...]:
    return (
        _of_layers(f"{path}/kernel", axes, f"{huggingface}.weight", f"{gguf}.weight"),
        _of_layers(f"{path}/bias", axes[1:], f"{huggingface}.bias", f"{gguf}.bias", (bias, True)),
    )


SCORE = "score/kernel"
"""The head of a reward model."""

_POST, _NO_POST, _QK = ("post_norms", True), ("post_norms", False), ("qk_norm", True)

TABLE = (
    Parameter("embed/embedding", ("vocab", "embed"), "model.embed_tokens.weight", "token_embd.weight"),
    _norm("attention_norm", "input_layernorm", "attn_norm"),
    _norm("post_attention_norm", "post_attention_layernorm", "post_attention_norm", _POST),
    # transformers has one name for two things: the norm behind attention, or that before the MLP
    _norm("mlp_norm", "post_attention_layernorm", "ffn_norm", _NO_POST),
    _norm("mlp_norm", "pre_feedforward_layernorm", "ffn_norm", _POST),
    _norm("post_mlp_norm", "post_feedforward_layernorm", "post_ffw_norm", _POST),
    _norm("attention/q_norm", "self_attn.q_norm", "attn_q_norm", _QK, "head_dim"),
    _norm("attention/k_norm", "self_attn.k_norm", "attn_k_norm", _QK, "head_dim"),
    *_projection("attention/q", ("embed", "heads"), "self_attn.q_proj", "attn_q", "qkv_bias"),
    *_projection("attention/k", ("embed", "kv_heads"), "self_attn.k_proj", "attn_k", "qkv_bias"),
    *_projection("attention/v", ("embed", "kv_heads"), "self_attn.v_proj", "attn_v", "qkv_bias"),
    *_projection("attention/o", ("heads", "embed"), "self_attn.o_proj", "attn_output", "output_bias"),
    *_projection("mlp/gate", ("embed", "mlp"), "mlp.gate_proj", "ffn_gate", "mlp_bias"),
    *_projection("mlp/up", ("embed", "mlp"), "mlp.up_proj", "ffn_up", "mlp_bias"),
    *_projection("mlp/down", ("mlp", "embed"), "mlp.down_proj", "ffn_down", "mlp_bias"),
    Parameter("final_norm/scale", ("norm",), "model.norm.weight", "output_norm.weight"),
    Parameter("head/kernel", ("embed", "vocab"), "lm_head.weight", "output.weight", ("tied_head", False)),
    Parameter(SCORE, ("embed", "label"), "score.weight", "cls.output.weight", ("score_head", True)),
)
"""In the order in which an export writes them."""


def _axes() -> dict[str, tuple[str, ...]]:
    axes = {row.path: row.axes for row in TABLE}
    for row in filter(lambda row: row.adaptable, TABLE):
        path = row.path.removesuffix("/kernel")
        inputs, outputs = (axis if axis == "embed" else f"adapter_{axis}" for axis in row.axes[1:])
        axes |= {f"{path}/a": ("layers", inputs, "rank"), f"{path}/b": ("layers", "rank", outputs)}
    return axes


PARAM_AXES = _axes()
"""Logical axes of every parameter and adapter leaf, by its path."""


def parameters(config: TransformerConfig) -> list[Parameter]:
    """Those that the model has."""
    return [row for row in TABLE if row.when is None or getattr(config, row.when[0]) == row.when[1]]


def tensor_name(path: str, naming: Naming = "huggingface") -> str:
    """The tensor of a parameter that is no stack, in a checkpoint."""
    return next(name for row in TABLE if row.path == path for name in row.names(naming, 0))


def flags_of_tensors(names: Collection[str], naming: Naming) -> dict[str, bool]:
    """The configuration's flags as the tensors of a checkpoint tell them: which biases, norms and head there are."""
    flags: dict[str, bool] = {}
    for row in TABLE:
        if row.when is not None:
            flag, value = row.when
            flags.setdefault(flag, value == (row.names(naming, 1)[0] in names))
    return flags


def abstract_params(config: TransformerConfig, dtype: Any = "float32") -> Params:
    """Shapes and dtypes of the parameters, without making them."""
    return unflatten(
        {row.path: jax.ShapeDtypeStruct(row.shape(config), jnp.dtype(dtype)) for row in parameters(config)}
    )


def init_params(key: jax.Array, config: TransformerConfig, dtype: Any = "float32", *, only: str = "") -> Params:
    """Random parameters as a plain nested dict: matrices normal with 0.02, norms that do nothing, biases 0.

    The head of a reward model is 0, so at first it tells nothing apart.

    Args:
      only: a part at the top, such as "layers"; empty makes all.
    """
    rows = [row for row in parameters(config) if only in ("", row.path.partition("/")[0])]
    return unflatten({row.path: _initial(key, row, config, jnp.dtype(dtype)) for row in rows})


def _initial(key: jax.Array, row: Parameter, config: TransformerConfig, dtype: Any) -> jax.Array:
    shape, kind = row.shape(config), row.path.rpartition("/")[2]
    if row.path == SCORE:
        return jnp.zeros(shape, dtype)
    if kind in ("scale", "bias"):
        return jnp.full(shape, 1.0 if kind == "scale" and not config.norm_offset else 0.0, dtype)
    draw = jax.nn.initializers.normal(0.02)
    if not row.stacked:
        return draw(_key(key, *row.path.split("/")[:-1]), shape, dtype)
    keys = jax.random.split(_key(key, "layers", last=b""), shape[0])
    names = row.path.split("/")[1:-1]
    return jax.vmap(lambda key: draw(_key(key, *names), shape[1:], dtype))(keys)


def _key(key: jax.Array, *names: str, last: bytes = b"\x01") -> jax.Array:
    """A key for each place, as Flax Linen derives it, whose modules these once were: models begin as they did."""
    digest = hashlib.sha1("".join(names).encode() + last, usedforsecurity=False).digest()
    return jax.random.fold_in(key, jnp.uint32(int.from_bytes(digest[:4], "big")))


def layer_size(config: TransformerConfig) -> int:
    """Parameters of the matrices of one layer."""
    return sum(math.prod(row.shape(config)[1:]) for row in TABLE if row.adaptable)


def init_adapters(key: jax.Array, params: Params, *, rank: int, targets: str, dtype: Any = "float32") -> Params:
    """LoRA (arXiv 2106.09685): `{a [L, in, r], b [L, r, out]}` for each projection whose path `targets` matches.

    `a` is uniform in +-1/sqrt(in) * sqrt(3), `b` is zero: at first the adapter changes nothing. The head of a reward
    model is trained whole, as it is in `params`: it stands beside the adapters, and goes before that of the parameters.
    Works on arrays and, under `jax.eval_shape`, on shapes.

    Raises: ConfigError when `targets` matches no projection, or is no regular expression.
    """
    try:
        pattern = re.compile(targets)
    except re.error as error:
        raise ConfigError(f"lora.targets {targets!r} is not a regular expression: {error}") from None
    kernels = {
        path.removeprefix("layers/").removesuffix("/kernel"): leaf
        for path, leaf in sorted(flatten(params).items())
        if path.startswith("layers/") and path.endswith("/kernel")
    }
    chosen = [name for name in kernels if pattern.fullmatch(name)]
    if not chosen:
        raise ConfigError(f"lora.targets {targets!r} matches no projection; there are: {', '.join(kernels)}")
    leaves: dict[str, jax.Array] = {}
    for own, name in zip(jax.random.split(key, len(chosen)), chosen, strict=True):
        layers, inputs, outputs = kernels[name].shape
        bound = (3.0 / inputs) ** 0.5
        a = jax.random.uniform(own, (layers, inputs, rank), jnp.float32, -bound, bound)
        leaves |= {f"layers/{name}/a": a.astype(dtype), f"layers/{name}/b": jnp.zeros((layers, rank, outputs), dtype)}
    head = {path: leaf.astype(dtype) + 0 for path, leaf in flatten(params).items() if path == SCORE}  # a new buffer
    return unflatten(leaves | head)


def merge(params: Params, lora: Params, scale: float) -> Params:
    """Parameters with the adapter added into the kernels: `kernel + scale * a @ b`, in float32.

    The head of a reward model is that of the adapter.
    """
    flat, adapter = flatten(params), flatten(lora)
    if SCORE in adapter:
        flat[SCORE] = adapter.pop(SCORE).astype(flat[SCORE].dtype)
    adapted = dict.fromkeys(path.rpartition("/")[0] for path in adapter)
    if unknown := [path for path in adapted if f"{path}/kernel" not in flat]:
        raise ValueError(f"adapter holds {unknown}, which the parameters do not have")
    for path in adapted:
        a, b = (adapter[f"{path}/{name}"].astype(jnp.float32) for name in "ab")
        kernel = dense(flat[f"{path}/kernel"])
        flat[f"{path}/kernel"] = (kernel.astype(jnp.float32) + scale * jnp.matmul(a, b)).astype(kernel.dtype)
    return unflatten(flat)


def flatten(tree: Params, prefix: str = "") -> dict[str, Any]:
    """Nested dict -> `{"layers/attention/q/kernel": leaf}`."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= flatten(value, f"{prefix}{key}/") if isinstance(value, dict) else {prefix + key: value}
    return flat


def unflatten(flat: dict[str, Any]) -> Params:
    """The inverse of `flatten`."""
    tree: Params = {}
    for path, value in flat.items():
        *parents, last = path.split("/")
        node = tree
        for part in parents:
            node = node.setdefault(part, {})
        node[last] = value
    return tree
