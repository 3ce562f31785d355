"""LoRA adapters (arXiv 2106.09685) as a tree of their own beside the parameters."""

from __future__ import annotations

import re
from typing import Any

import jax
import jax.numpy as jnp

from tisdpo_jax.errors import ConfigError
from tisdpo_jax.models.leaves import dense
from tisdpo_jax.models.params import flatten, unflatten
from tisdpo_jax.types import Params


def init_adapters(key: jax.Array, params: Params, *, rank: int, targets: str, dtype: Any = "float32") -> Params:
    """An adapter `{a [L, in, r], b [L, r, out]}` for each projection whose path `targets` matches.

    `a` is uniform in +-1/sqrt(in) * sqrt(3), `b` is zero: at first the adapter changes nothing.
    Works on arrays and, under `jax.eval_shape`, on shapes.

    Raises: ConfigError when `targets` matches no projection, or is no regular expression.
    """
    try:
        pattern = re.compile(targets)
    except re.error as error:
        raise ConfigError(f"lora.targets {targets!r} is not a regular expression: {error}") from None
    kernels = {
        path.removesuffix("/kernel"): leaf
        for path, leaf in flatten(params).items()
        if path.startswith("layers/") and path.endswith("/kernel")
    }
    names = {path.removeprefix("layers/"): path for path in sorted(kernels)}
    chosen = [path for name, path in names.items() if pattern.fullmatch(name)]
    if not chosen:
        raise ConfigError(f"lora.targets {targets!r} matches no projection; there are: {', '.join(names)}")
    leaves: dict[str, jax.Array] = {}
    for subkey, path in zip(jax.random.split(key, len(chosen)), chosen, strict=True):
        layers, inputs, outputs = kernels[path].shape
        bound = (3.0 / inputs) ** 0.5
        leaves[f"{path}/a"] = jax.random.uniform(subkey, (layers, inputs, rank), jnp.float32, -bound, bound).astype(
            dtype
        )
        leaves[f"{path}/b"] = jnp.zeros((layers, rank, outputs), dtype)
    return unflatten(leaves)


def merge(params: Params, lora: Params, scale: float) -> Params:
    """Parameters with the adapter added into the kernels: `kernel + scale * a @ b`, in float32."""

    def into(node: Params, adapter: Params) -> Params:
        if "a" in adapter and not isinstance(adapter["a"], dict):
            delta = scale * jnp.matmul(adapter["a"].astype(jnp.float32), adapter["b"].astype(jnp.float32))
            kernel = dense(node["kernel"])
            return {**node, "kernel": (kernel.astype(jnp.float32) + delta).astype(kernel.dtype)}
        unknown = set(adapter) - set(node)
        if unknown:
            raise ValueError(f"adapter holds {sorted(unknown)}, which the parameters do not have")
        return {key: into(value, adapter[key]) if key in adapter else value for key, value in node.items()}

    return into(params, lora)
