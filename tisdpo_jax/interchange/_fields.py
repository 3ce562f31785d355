"""Fields of a JSON file that describes a model: read strictly, and refused by name."""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

from tisdpo_jax.errors import CheckpointError


def read_json(file: Path) -> dict[str, Any]:
    """The object in a JSON file. Raises: CheckpointError."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{file.parent}: no {file.name}; it belongs beside the weights: fetch it too") from None
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{file}: cannot be read ({error}); fetch it again") from None
    if not isinstance(content, dict):
        raise CheckpointError(f"{file}: holds no JSON object; fetch it again")
    return content


def check_known(file: Path, where: str, raw: dict[str, Any], known: Collection[str]) -> None:
    """Fields that are not known have to be off; those that begin with _ are notes of transformers to itself."""
    for field, value in raw.items():
        if field not in known and not field.startswith("_") and value not in (None, False, [], {}, "", 0):
            raise refuse(file, where + field, value, "it is not known here, and may change what the model computes")


def whole(file: Path, field: str, value: Any, *, least: int = 1) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value < 2**31:
        raise CheckpointError(
            f"{file}: field {field} is {value!r}, but must be a whole number from {least} on; mend or fetch it"
        )
    return value


def number_field(file: Path, field: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < float("inf"):
        raise CheckpointError(f"{file}: field {field} is {value!r}, but must be a number above 0; mend or fetch it")
    return float(value)


def flag_field(file: Path, raw: dict[str, Any], field: str, *, default: bool = False) -> bool:
    value = raw.get(field)
    if value not in (None, False, True):
        raise CheckpointError(f"{file}: field {field} is {value!r}, but must be true or false; mend or fetch it")
    return default if value is None else bool(value)


def refuse(file: Path, field: str, value: Any, why: str) -> CheckpointError:
    return CheckpointError(f"{file}: field {field} is {value!r}, which is not supported ({why}); use another model")
