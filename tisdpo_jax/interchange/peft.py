"""LoRA adapters in the format of the `peft` library, in and out."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from tisdpo_jax.errors import CheckpointError, MissingKeyError, ShapeMismatchError, UnexpectedKeyError
from tisdpo_jax.interchange import _export
from tisdpo_jax.interchange._adapter_config import CONFIG, AdapterConfig, read_adapter_config
from tisdpo_jax.interchange._assemble import Layout, Leaf, TensorSource, layout, tensor_part
from tisdpo_jax.interchange._safetensors import open_files, write_file
from tisdpo_jax.interchange.generation import exported_generation
from tisdpo_jax.interchange.load import open_model
from tisdpo_jax.interchange.save import on_first_process, write_companions, write_json
from tisdpo_jax.models import TABLE, TransformerConfig, abstract_params, flatten, unflatten
from tisdpo_jax.types import Params

log = logging.getLogger(__name__)

WEIGHTS = "adapter_model.safetensors"


class Adapter(NamedTuple):
    """An adapter, and how it is applied."""

    lora: Params  # the adapter tree; zero where the file holds nothing
    scale: float  # the factor that it is applied with
    start: Params | None  # PiSSA, OLoRA: an adapter to be taken out of the base's kernels, `kernel - a @ b`


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
    adapted = _adapted(lora)
    leaves = adapter_layout(config, adapted)
    _export.check_tree(leaves, lora, "lora")
    for path, leaf in flatten(lora).items():
        if path.endswith("/a") and leaf.shape[-1] != rank:
            raise ValueError(f"{path} has shape {leaf.shape}, which is not of rank {rank}")
    stored = np.dtype(next(iter(flatten(lora).values())).dtype)
    config_json = {
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

    def write(target: Path) -> None:
        write_file(target / WEIGHTS, dict(_export.host_tensors(leaves, lora, stored)))
        write_json(target / CONFIG, config_json)
        generation = exported_generation(base_model, {}, stops)
        write_companions(target, tokenizer, chat_template, generation)

    def attend() -> None:
        _export.drain(_export.host_tensors(leaves, lora, stored))

    on_first_process(Path(directory).expanduser(), write, attend)


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
    adapted = _adapted_layers(adapter, config, source)
    paths = [path for path in projections() if any(of == path for of, _ in adapted)]
    scale = max((adapter.scale_of(module) for module in adapted.values()), key=abs)
    rank = max(adapter.rank_of(module) for module in adapted.values())
    host = _zeros(config, paths, rank)
    for (path, layer), module in adapted.items():
        a, b = (_tensor(source, name) for name in _names(module))
        own = adapter.scale_of(module) / scale if scale else 1.0
        host[f"{path}/a"][layer, :, : a.shape[0]] = a.T
        host[f"{path}/b"][layer, : a.shape[0]] = b.T if own == 1.0 else b.T * own
    start = None
    if adapter.start:
        if base is None:
            raise CheckpointError(
                f"{adapter.file}: field init_lora_weights is {adapter.start!r}, so the adapter stands on a changed "
                f"base; name the base model"
            )
        start = _start(adapter, config, adapted, base, _zeros(config, paths, rank))
    placed = flatten(shardings) if shardings is not None else {}

    def tree(arrays: dict[str, np.ndarray], kind: Any) -> Params:
        return unflatten(
            {path: _place(value.astype(jnp.dtype(kind)), placed.get(path)) for path, value in arrays.items()}
        )

    return Adapter(tree(host, dtype), scale, None if start is None else tree(start, jnp.float32))


def _adapted_layers(
    adapter: AdapterConfig, config: TransformerConfig, source: TensorSource
) -> dict[tuple[str, int], str]:
    """(projection, layer) -> name of the module, for every pair of tensors in the file.

    Raises: CheckpointError, and its subclasses, unless all tensors are there in full pairs of the right shapes, are
      read by peft too, and nothing is left over.
    """
    kernels = flatten(abstract_params(config))
    leaves = layout(config)
    adapted: dict[tuple[str, int], str] = {}
    known: set[str] = set()
    bare: list[str] = []
    for path in projections():
        _, inputs, outputs = kernels[f"{path}/kernel"].shape
        for layer, weight in enumerate(leaves[f"{path}/kernel"].names):
            module = weight.removesuffix(".weight")
            names, wanted = _names(module), adapter.adapts(module)
            there = [name for name in names if name in source.shapes]
            if not there:
                bare += [module] if wanted else []
                continue
            if not wanted:
                raise UnexpectedKeyError(
                    f"{source.files[there[0]]}: tensor {there[0]!r} belongs to a module that target_modules, "
                    f"exclude_modules or layers_to_transform of {adapter.file.name} leaves out, and peft would not "
                    f"read it; save the adapter again with peft"
                )
            if len(there) < 2:
                (missing,) = set(names) - set(there)
                raise MissingKeyError(
                    f"{source.path}: tensor {missing!r} is missing, while {there[0]!r} is there; fetch it again"
                )
            rank = adapter.rank_of(module)
            for name, shape in zip(names, ((rank, inputs), (outputs, rank)), strict=True):
                if source.shapes[name] != shape:
                    raise ShapeMismatchError(
                        f"{source.files[name]}: tensor {name!r} has shape {list(source.shapes[name])}, but the base "
                        f"model and rank {rank} of {adapter.file.name} need {list(shape)}; it is an adapter of another "
                        f"model, or fetch it again"
                    )
            adapted[path, layer] = module
            known.update(names)
    spare = [name for name in source.shapes if name not in known]
    if spare:
        raise UnexpectedKeyError(
            f"{source.files[spare[0]]}: tensor {spare[0]!r} is none that is read ({len(spare)} such in all): adapters "
            f"stand on the projections of the base's {config.num_layers} layers; merge it into its base with peft and "
            f"load the merged model"
        )
    if not adapted:
        raise MissingKeyError(f"{source.path}: {WEIGHTS} holds no tensors; fetch it again")
    if bare:
        if adapter.random:
            raise MissingKeyError(
                f"{source.path}: no tensors for {bare[0]} ({len(bare)} such in all), where init_lora_weights false "
                f"leaves random numbers; name in target_modules of {adapter.file.name} what the file holds"
            )
        log.warning(
            "%s: no tensors for %s (%d such in all); the base stays as it is there", source.path, bare[0], len(bare)
        )
    return adapted


def _start(
    adapter: AdapterConfig,
    config: TransformerConfig,
    adapted: dict[tuple[str, int], str],
    base: str | os.PathLike[str],
    host: dict[str, np.ndarray],
) -> dict[str, np.ndarray]:
    """What training began with, per module: the base's leading singular parts (PiSSA), or rows of its QR (OLoRA).

    PiSSA (arXiv 2404.02948): U S V over the largest r singular values. OLoRA (arXiv 2406.01775): Q[:, :r] R[:r] times
    the adapter's factor, as peft has it. Both of the weight as it is stored, in float32. Process 0 computes for all, so
    that signs, which are free, agree.
    """
    kernels = flatten(abstract_params(config))
    source, leaves, _ = open_model(base, config)
    if jax.process_index() == 0:
        for (path, layer), module in adapted.items():
            leaf, shape, rank = leaves[f"{path}/kernel"], kernels[f"{path}/kernel"].shape, adapter.rank_of(module)
            index = (slice(layer, layer + 1), slice(None), slice(None))
            weight = tensor_part(leaf, source, shape, index, np.dtype(np.float32))[0].T  # [out, in], as peft sees it
            if not np.isfinite(weight).all():
                raise CheckpointError(
                    f"{source.path}: tensor {leaf.names[layer]!r} holds NaN or infinity; fetch it again"
                )
            if adapter.start == "pissa":
                left, values, right = np.linalg.svd(weight, full_matrices=False)
                root = np.sqrt(values[:rank])
                left, right = left[:, :rank] * root, right[:rank] * root[:, None]
            else:
                left, right = np.linalg.qr(weight)
                left, right = left[:, :rank] * np.float32(adapter.scale_of(module)), right[:rank]
            host[f"{path}/a"][layer, :, : len(right)] = right.T
            host[f"{path}/b"][layer, : len(right)] = left.T
    if jax.process_count() > 1:
        host = {path: np.asarray(value) for path, value in multihost_utils.broadcast_one_to_all(host).items()}
    return host


def _zeros(config: TransformerConfig, paths: list[str], rank: int) -> dict[str, np.ndarray]:
    kernels, arrays = flatten(abstract_params(config)), {}
    for path in paths:
        layers, inputs, outputs = kernels[f"{path}/kernel"].shape
        arrays[f"{path}/a"] = np.zeros((layers, inputs, rank), np.float32)
        arrays[f"{path}/b"] = np.zeros((layers, rank, outputs), np.float32)
    return arrays


def _names(module: str) -> tuple[str, str]:
    return f"base_model.model.{module}.lora_A.weight", f"base_model.model.{module}.lora_B.weight"


def _tensor(source: TensorSource, name: str) -> np.ndarray:
    value = np.asarray(source.read(name, (slice(None), slice(None))), np.float32)
    if not np.isfinite(value).all():
        raise CheckpointError(f"{source.files[name]}: tensor {name!r} holds NaN or infinity; fetch the file again")
    return value


def _place(value: np.ndarray, sharding: Any) -> jax.Array:
    if sharding is None:
        return jnp.asarray(value)
    return jax.make_array_from_callback(value.shape, sharding, lambda index: value[index])


def adapter_layout(config: TransformerConfig, adapted: Sequence[str]) -> Layout:
    """What the leaves `a`, `b` of projections (as in `layers/attention/q`) are made of in peft's naming."""
    base = layout(config)
    return {
        f"{path}/{leaf}": Leaf(
            tuple(_names(name.removesuffix(".weight"))[at] for name in base[f"{path}/kernel"].names),
            stacked=True,
            transposed=True,
        )
        for path in adapted
        for at, leaf in enumerate("ab")
    }


def projections() -> dict[str, str]:
    """Paths of all projections that can carry an adapter -> the last part of their module's name (`q_proj`)."""
    return {row.path.removesuffix("/kernel"): row.huggingface.split(".")[-2] for row in TABLE if row.adaptable}


def _adapted(lora: Params) -> list[str]:
    return [path for path in projections() if f"{path}/a" in flatten(lora)]
