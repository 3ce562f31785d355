"""Arrays on disk with the key of all that they depend on, and a digest: whole and the right ones, or refused."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from tisdpo_jax.artifacts.key import differences
from tisdpo_jax.artifacts.store import replacing
from tisdpo_jax.errors import CheckpointError, DamagedError

NAME = "logps"  # of the array in its file


def save_array(path: Path, array: np.ndarray, key: Mapping[str, Any]) -> None:
    """Writes a .safetensors file, its key beside the array."""
    whole = np.ascontiguousarray(array)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        save_file({NAME: whole}, temporary, metadata={"key": json.dumps(key, sort_keys=True), "sha256": _digest(whole)})


def load_array(path: Path, key: Mapping[str, Any]) -> np.ndarray:
    """The array of a file.

    Raises: CheckpointError when it was made from something else; it names what differs. DamagedError when the file is
      not whole.
    """
    stored = key_of(path)
    try:
        with safe_open(path, framework="numpy") as file:
            label = file.metadata() or {}
            array = np.asarray(file.get_tensor(NAME))
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise DamagedError(f"{path}: not a whole score cache ({error})") from None
    check_same_key(path, stored, key)
    if label.get("sha256", "") != _digest(array):
        raise DamagedError(f"{path}: the scores do not match their digest")
    return array


def key_of(path: Path) -> dict[str, Any]:
    """What a file was made from. Raises: DamagedError when it cannot be read."""
    try:
        with safe_open(path, framework="numpy") as file:
            key: dict[str, Any] = json.loads((file.metadata() or {})["key"])
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise DamagedError(f"{path}: not a whole score cache ({error})") from None
    return key


def peek(path: Path, data: str) -> np.ndarray | None:
    """What a file holds, if it is there and for this data, whatever else it was made from: for showing only."""
    if not path.exists() or key_of(path)["data"] != data:
        return None
    with safe_open(path, framework="numpy") as file:
        return np.asarray(file.get_tensor(NAME))


def check_same_key(path: Path, stored: Mapping[str, Any], key: Mapping[str, Any]) -> None:
    """Raises: CheckpointError that names what differs."""
    if changed := differences(stored, key):
        raise CheckpointError(
            f"{path}: was made with another configuration: {'; '.join(changed)}. Nothing was changed: go back to "
            "those values, delete it to make it again, or use a new run_dir"
        )


def _digest(array: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()
