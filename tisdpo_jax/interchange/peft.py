"""LoRA adapters in the format of the `peft` library, in and out."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from tisdpo_jax.errors import CheckpointError, MissingKeyError, ShapeMismatchError, UnexpectedKeyError
from tisdpo_jax.interchange._adapter_config import CONFIG, AdapterConfig, read_adapter_config
from tisdpo_jax.interchange._assemble import Layout, Leaf, TensorSource, check_tree, layout, tensor_part, whole_matrix
from tisdpo_jax.interchange._export import write_export
from tisdpo_jax.interchange._fields import write_json
from tisdpo_jax.interchange._safetensors import open_files
from tisdpo_jax.interchange.generation import exported_generation
from tisdpo_jax.interchange.load import open_model
from tisdpo_jax.interchange.save import write_companions
from tisdpo_jax.models import TABLE, TransformerConfig, flatten, unflatten
from tisdpo_jax.types import Params

log = logging.getLogger(__name__)

WEIGHTS = "adapter_model.safetensors"


class Adapter(NamedTuple):
    """An adapter, and how it is applied."""

    lora: Params  # the adapter tree; zero where the file holds nothing
    scale: float  # the factor that it is applied with
    start: Params | None  # PiSSA, OLoRA: an adapter to be taken out of the base's kernels, `kernel - a @ b`


class _Module(NamedTuple):
    """A projection of one layer, which peft adapts apart from others."""

    name: str  # of transformers, as in model.layers.0.self_attn.q_proj
    path: str  # as in layers/attention/q
    layer: int
    kernel: Leaf

    @property
    def tensors(self) -> tuple[str, str]:
        """What an adapter's file calls a `[r, in]` and b `[out, r]`."""
        return f"base_model.model.{self.name}.lora_A.weight", f"base_model.model.{self.name}.lora_B.weight"


def _modules(config: TransformerConfig) -> list[_Module]:
    leaves = layout(config)
    return [
        _Module(name.removesuffix(".weight"), path, layer, leaves[f"{path}/kernel"])
        for path in projections()
        for layer, name in enumerate(leaves[f"{path}/kernel"].names)
    ]


def projections() -> dict[str, str]:
    """Paths of all projections that can carry an adapter -> the last part of their module's name (`q_proj`)."""
    return {row.path.removesuffix("/kernel"): row.huggingface.split(".")[-2] for row in TABLE if row.adaptable}


def adapter_layout(config: TransformerConfig, adapted: Iterable[str], rank: int) -> Layout:
    """What the leaves `a`, `b` of projections (as in `layers/attention/q`) are made of in peft's naming."""
    leaves = {}
    for path in adapted:
        own = [module for module in _modules(config) if module.path == path]
        layers, inputs, outputs = own[0].kernel.shape
        for at, (leaf, shape) in enumerate({"a": (layers, inputs, rank), "b": (layers, rank, outputs)}.items()):
            names = tuple(module.tensors[at] for module in own)
            leaves[f"{path}/{leaf}"] = Leaf(names, shape, stacked=True, transposed=True)
    return leaves


def save_peft(
    directory: str | os.PathLike[str],
    lora: Params,
    config: TransformerConfig,
    *,
    rank: int,
    alpha: float,
    base_model: str,
    tokenizer: Any = None,
    chat_template: str | None = None,
    stops: Sequence[int] = (),
) -> None:
    """Writes an adapter that `peft.PeftModel.from_pretrained(base, directory)` loads.

    Args:
      lora: the adapter tree; a sub-tree for every adapted projection, any of them.
      rank, alpha: the adapter is applied with the factor alpha / rank.
      base_model: path or hub name of the base model, which peft shows and AutoPeft loads.
      tokenizer, chat_template: written beside the adapter; see `write_companions`.
      stops: tokens that end an answer, for the generation_config.json that is the base's otherwise.

    The directory appears whole or not at all. Of several processes, all must call this.
    """
    flat = flatten(lora)
    adapted = [path for path in projections() if f"{path}/a" in flat]
    leaves = adapter_layout(config, adapted, rank)
    check_tree(leaves, flat, "lora")
    for path in adapted:
        if (shape := flat[f"{path}/a"].shape)[-1] != rank:
            raise ValueError(f"{path}/a has shape {shape}, which is not of rank {rank}")
    raw = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_model,
        "r": rank,
        "lora_alpha": int(alpha) if alpha == int(alpha) else alpha,  # peft declares a whole number
        "target_modules": [projections()[path] for path in adapted],
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
    }

    def companions(target: Path) -> None:
        write_json(target / CONFIG, raw)
        write_companions(target, tokenizer, chat_template, exported_generation(base_model, {}, stops))

    files = {WEIGHTS: [name for leaf in leaves.values() for name in leaf.names]}
    write_export(directory, leaves, lora, np.dtype(next(iter(flat.values())).dtype), files, companions)


def load_peft(
    directory: str | os.PathLike[str],
    config: TransformerConfig,
    *,
    base: str | os.PathLike[str] | None = None,
    dtype: Any = "float32",
    shardings: Params | None = None,
) -> Adapter:
    """An adapter written by `peft` or by `save_peft`.

    Ranks and factors of single modules (`rank_pattern`, `alpha_pattern`) are expressed in one tree of the largest rank;
    an adapter on some layers is zero on the others, as in peft.

    Args:
      config: of the base model.
      base: the base model's directory or .gguf file, of which PiSSA and OLoRA are computed again.
      dtype: of the adapter. What has to be taken out of the base is float32.
      shardings: nested dict of `jax.sharding.Sharding` with the structure of the adapter tree; None puts all on the
        default device.

    Raises: CheckpointError for fields of adapter_config.json that are not known, or cannot be computed; its subclasses
      where tensors do not fit.
    """
    directory = Path(directory).expanduser()
    adapter = read_adapter_config(directory)
    if not (file := directory / WEIGHTS).is_file():
        raise CheckpointError(f"{directory}: no {WEIGHTS}; only safetensors adapters are read: save it again with peft")
    source = open_files(directory, [file])
    adapted = _adapted(adapter, config, source)
    scale = max((adapter.scale_of(module.name) for module in adapted), key=abs)
    rank = max(adapter.rank_of(module.name) for module in adapted)
    leaves = adapter_layout(config, dict.fromkeys(module.path for module in adapted), rank)

    def zeros() -> dict[str, np.ndarray]:
        return {path: np.zeros(leaf.shape, np.float32) for path, leaf in leaves.items()}

    def tree(arrays: dict[str, np.ndarray], dtype: np.dtype) -> Params:
        placed = {} if shardings is None else flatten(shardings)
        return unflatten({path: _put(value.astype(dtype), placed.get(path)) for path, value in arrays.items()})

    host, start = zeros(), None
    for module in adapted:
        a, b = (whole_matrix(source, name) for name in module.tensors)
        own = adapter.scale_of(module.name) / scale if scale else 1.0
        _fill(host, module, a, b if own == 1.0 else b * own)
    if adapter.start:
        if base is None:
            raise CheckpointError(
                f"{adapter.file}: field init_lora_weights is {adapter.start!r}, so the adapter stands on a changed "
                f"base; name the base model"
            )
        start = tree(_began(adapter, config, adapted, base, zeros()), np.dtype(np.float32))
    return Adapter(tree(host, jnp.dtype(dtype)), scale, start)


def _fill(host: dict[str, np.ndarray], module: _Module, a: np.ndarray, b: np.ndarray) -> None:
    """a `[r, in]` and b `[out, r]` of one module, as peft has them, into trees of a rank that is as large or larger."""
    host[f"{module.path}/a"][module.layer, :, : len(a)] = a.T
    host[f"{module.path}/b"][module.layer, : len(a)] = b.T


def _put(value: np.ndarray, sharding: Any) -> jax.Array:
    if sharding is None:
        return jnp.asarray(value)
    return jax.make_array_from_callback(value.shape, sharding, lambda index: value[index])


def _adapted(adapter: AdapterConfig, config: TransformerConfig, source: TensorSource) -> list[_Module]:
    """The modules that have a pair of tensors in the file.

    Raises: CheckpointError, and its subclasses, unless all tensors are there in full pairs of the right shapes, are
      read by peft too, and nothing is left over.
    """
    adapted: list[_Module] = []
    bare: list[str] = []
    for module in _modules(config):
        wanted, there = adapter.adapts(module.name), [name for name in module.tensors if name in source.shapes]
        if not there:
            bare += [module.name] if wanted else []
            continue
        if not wanted:
            raise UnexpectedKeyError(
                f"{source.files[there[0]]}: tensor {there[0]!r} belongs to a module that target_modules, "
                f"exclude_modules or layers_to_transform of {adapter.file.name} leaves out, and peft would not "
                f"read it; save the adapter again with peft"
            )
        if len(there) < 2:
            (missing,) = {*module.tensors} - {*there}
            raise MissingKeyError(
                f"{source.path}: tensor {missing!r} is missing, while {there[0]!r} is there; fetch it again"
            )
        rank, (_, inputs, outputs) = adapter.rank_of(module.name), module.kernel.shape
        for name, shape in zip(module.tensors, ((rank, inputs), (outputs, rank)), strict=True):
            if source.shapes[name] != shape:
                raise ShapeMismatchError(
                    f"{source.files[name]}: tensor {name!r} has shape {list(source.shapes[name])}, but the base "
                    f"model and rank {rank} of {adapter.file.name} need {list(shape)}; it is an adapter of another "
                    f"model, or fetch it again"
                )
        adapted.append(module)
    known = {name for module in adapted for name in module.tensors}
    if spare := [name for name in source.shapes if name not in known]:
        raise UnexpectedKeyError(
            f"{source.files[spare[0]]}: tensor {spare[0]!r} is none that is read ({len(spare)} such in all): adapters "
            f"stand on the projections of the base's {config.num_layers} layers; merge it into its base with peft and "
            f"load the merged model"
        )
    if not adapted:
        raise MissingKeyError(f"{source.path}: {WEIGHTS} holds no tensors; fetch it again")
    if bare and adapter.random:
        raise MissingKeyError(
            f"{source.path}: no tensors for {bare[0]} ({len(bare)} such in all), where init_lora_weights false "
            f"leaves random numbers; name in target_modules of {adapter.file.name} what the file holds"
        )
    if bare:
        kept = "%s: no tensors for %s (%d such in all); the base stays as it is there"
        log.warning(kept, source.path, bare[0], len(bare))
    return adapted


def _began(
    adapter: AdapterConfig,
    config: TransformerConfig,
    adapted: list[_Module],
    base: str | os.PathLike[str],
    host: dict[str, np.ndarray],
) -> dict[str, np.ndarray]:
    """What training began with, per module: the base's leading singular parts (PiSSA), or rows of its QR (OLoRA).

    PiSSA (arXiv 2404.02948): U S V over the largest r singular values. OLoRA (arXiv 2406.01775): Q[:, :r] R[:r] times
    the adapter's factor, as peft has it. Both of the weight as it is stored, in float32. Process 0 computes for all, so
    that signs, which are free, agree.
    """
    source, leaves, _ = open_model(base, config)
    for module in adapted if jax.process_index() == 0 else ():
        leaf, rank = leaves[f"{module.path}/kernel"], adapter.rank_of(module.name)
        index = (slice(module.layer, module.layer + 1), slice(None), slice(None))
        weight = tensor_part(leaf, source, index, np.dtype(np.float32))[0].T  # [out, in], as peft sees it
        if not np.isfinite(weight).all():
            raise CheckpointError(
                f"{source.path}: tensor {leaf.names[module.layer]!r} holds NaN or infinity; fetch it again"
            )
        if adapter.start == "pissa":
            left, values, right = np.linalg.svd(weight, full_matrices=False)
            root = np.sqrt(values[:rank])
            left, right = left[:, :rank] * root, right[:rank] * root[:, None]
        else:
            left, right = np.linalg.qr(weight)
            left, right = left[:, :rank] * np.float32(adapter.scale_of(module.name)), right[:rank]
        _fill(host, module, right, left)
    if jax.process_count() > 1:
        host = {path: np.asarray(value) for path, value in multihost_utils.broadcast_one_to_all(host).items()}
    return host
