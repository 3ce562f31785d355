"""Fields of a JSON file that describes a model: read strictly, and refused by name."""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

from tisdpo_jax.errors import CheckpointError

_OFF: tuple[Any, ...] = (None, False, [], {}, "", 0)


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


def write_json(file: Path, content: dict[str, Any]) -> None:
    file.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def check_known(file: Path, where: str, raw: dict[str, Any], known: Collection[str]) -> None:
    """Fields that are not known have to be off; those that begin with _ are notes of transformers to itself."""
    for field, value in raw.items():
        if field not in known and not field.startswith("_") and value not in _OFF:
            raise refuse(file, where + field, value, "it is not known here, and may change what the model computes")


def is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def whole_field(file: Path, field: str, value: Any, *, least: int = 1) -> int:
    if not is_whole(value) or not least <= value < 2**31:
        raise _wrong(file, field, value, f"a whole number from {least} on")
    return int(value)


def number_field(file: Path, field: str, value: Any, *, above: float = 0.0) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not above < value < float("inf"):
        raise _wrong(file, field, value, "a number above 0" if above == 0.0 else "a number")
    return float(value)


def flag_field(file: Path, raw: dict[str, Any], field: str, *, default: bool = False) -> bool:
    value = raw.get(field)
    if value not in (None, False, True):
        raise _wrong(file, field, value, "true or false")
    return default if value is None else bool(value)


def refuse(file: Path, field: str, value: Any, why: str, remedy: str = "use another model") -> CheckpointError:
    return CheckpointError(f"{file}: field {field} is {value!r}, which is not supported ({why}); {remedy}")


def _wrong(file: Path, field: str, value: Any, kind: str) -> CheckpointError:
    return CheckpointError(f"{file}: field {field} is {value!r}, but must be {kind}; mend or fetch it")
