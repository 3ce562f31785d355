"""Files of tensors: which of them make up a checkpoint, reading parts of them, writing them in shards."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from huggingface_hub import split_state_dict_into_shards_factory
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from tisdpo_jax.errors import CheckpointError, DuplicateKeyError, MissingKeyError
from tisdpo_jax.interchange._assemble import Index, TensorSource
from tisdpo_jax.interchange._fields import read_json

INDEX = "model.safetensors.index.json"
WEIGHTS = "model.safetensors"
PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt")
METADATA = {"format": "pt"}  # transformers 4 asks for it; a second entry would stand in random order
_DTYPES = ("F64", "F32", "F16", "BF16")


def refuse_pickle(path: Path) -> CheckpointError:
    """The error for a checkpoint that only holds pickles, which can run code when they are opened."""
    return CheckpointError(
        f"{path}: only safetensors and GGUF are read, not pickled weights. Convert them on a machine that trusts them: "
        f'python -c "from transformers import AutoModelForCausalLM as M; '
        f"M.from_pretrained('OLD').save_pretrained('NEW')\""
    )


def open_directory(directory: Path) -> TensorSource:
    """All tensors of the Hugging Face checkpoint in `directory`; reads headers only.

    The index names the files where there is one; else `model*.safetensors`; else every
    `*.safetensors` that is not an adapter.

    Raises: CheckpointError, DuplicateKeyError, MissingKeyError (a tensor that the index promises).
    """
    index = directory / INDEX
    if not index.is_file():
        return open_files(directory, _files_without_index(directory))
    promised = _read_index(index)
    files = sorted(set(promised.values()))
    if (single := directory / WEIGHTS).is_file() and single not in files:
        files.append(single)  # beside an index its tensors stand twice, and nobody can tell which are meant
    for file in files:
        if not file.is_file():
            raise CheckpointError(
                f"{index}: names {file.name}, which is not in the directory; fetch that file, or all, again"
            )
    source = open_files(directory, files)
    for name, file in promised.items():
        if source.files.get(name) != file:
            raise MissingKeyError(
                f"{file}: tensor {name!r}, which {INDEX} says is in it, is missing; fetch both files again"
            )
    return source


def open_files(path: Path, files: Sequence[Path]) -> TensorSource:
    """The tensors of `files` together; `path` is what errors call the checkpoint."""
    handles = {}
    for file in files:
        try:
            handles[file] = safe_open(file, framework="numpy")
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{file}: not a whole safetensors file ({error}); fetch it again") from None
    owner: dict[str, Path] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    for file, handle in handles.items():
        for name in handle.keys():  # noqa: SIM118 - not a dict
            if name in owner:
                raise DuplicateKeyError(
                    f"{file}: tensor {name!r} stands in {owner[name].name} too; remove the file that does not "
                    f"belong to the checkpoint"
                )
            tensor = handle.get_slice(name)
            if tensor.get_dtype() not in _DTYPES:
                raise CheckpointError(
                    f"{file}: tensor {name!r} is stored as {tensor.get_dtype()}; only {', '.join(_DTYPES)} are read. "
                    f"Use the model's unquantised release"
                )
            owner[name], shapes[name] = file, tuple(tensor.get_shape())

    def read(name: str, index: Index) -> np.ndarray:
        return np.asarray(handles[owner[name]].get_slice(name)[index])

    return TensorSource(path, owner, shapes, read)


def shards(sizes: dict[str, int], max_bytes: int) -> tuple[dict[str, list[str]], dict[str, Any] | None]:
    """(file -> its tensors, content of the index or None for one file) for tensors of these bytes, cut as the hub does.

    A tensor larger than `max_bytes` gets a shard of its own.
    """
    split = split_state_dict_into_shards_factory(
        sizes, get_storage_size=int, filename_pattern="model{suffix}.safetensors", max_shard_size=max_bytes
    )
    index = {"metadata": split.metadata, "weight_map": dict(sorted(split.tensor_to_filename.items()))}
    return split.filename_to_tensors, index if split.is_sharded else None


def write_file(file: Path, tensors: dict[str, np.ndarray]) -> None:
    """One safetensors file. Arrays are made contiguous first: of others the wrong bytes would be written."""
    save_file({name: np.ascontiguousarray(value) for name, value in tensors.items()}, file, metadata=METADATA)


def _files_without_index(directory: Path) -> list[Path]:
    files = sorted(directory.glob("model*.safetensors"))
    files = files or sorted(f for f in directory.glob("*.safetensors") if not f.name.startswith("adapter"))
    if files:
        return files
    names = sorted(entry.name for entry in directory.iterdir())
    if any(name.endswith(PICKLES) for name in names):
        raise refuse_pickle(directory)
    ggufs = [name for name in names if name.endswith(".gguf")]
    hint = f"name the file {directory / ggufs[0]} instead" if ggufs else f"put {WEIGHTS} (or shards with {INDEX}) there"
    if "adapter_model.safetensors" in names:
        hint = "this is a LoRA adapter: name the directory of its base model"
    raise CheckpointError(f"{directory}: no weights; {hint}")


def _read_index(index: Path) -> dict[str, Path]:
    """Tensor -> file, as the index says."""
    entries = read_json(index).get("weight_map")
    if not isinstance(entries, dict):
        raise CheckpointError(f"{index}: not an index of safetensors shards (no weight_map); fetch it again")
    names = {key: str(value) for key, value in entries.items()}
    for key, name in names.items():
        parts = PurePosixPath(name.replace("\\", "/"))
        if parts.is_absolute() or ".." in parts.parts or ":" in name:
            raise CheckpointError(
                f"{index}: tensor {key!r} is said to be in {name!r}, outside the directory; fetch it again"
            )
        if not name.endswith(".safetensors"):
            raise refuse_pickle(index.parent / name)
    return {key: index.parent / name for key, name in names.items()}
