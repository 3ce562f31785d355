"""Where a model's answers end and how they are drawn: generation_config.json, and the ids that config.json names."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tisdpo_jax.errors import CheckpointError
from tisdpo_jax.interchange._adapter_config import CONFIG as ADAPTER
from tisdpo_jax.interchange._fields import is_whole, read_json
from tisdpo_jax.interchange.gguf import read_metadata
from tisdpo_jax.interchange.huggingface import CONFIG

GENERATION = "generation_config.json"
_SPECIAL = ("bos_token_id", "eos_token_id", "pad_token_id")
_GGUF = ("tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id")


def stop_ids(path: str | os.PathLike[str], tokenizer: Any = None) -> list[int]:
    """Every token that ends an answer of the model at `path`, without repetitions.

    These are all that its generation_config.json and its config.json call end of sequence (of a .gguf file, its end of
    sequence, of turn and of message), and the EOS of `tokenizer`. An adapter has those of its base too, where that is
    on this machine.

    Raises: CheckpointError for an id that is no whole number.
    """
    path = Path(path).expanduser()
    ids: list[int] = []
    if path.is_file():
        values = read_metadata(path)
        ids += [values[key] for key in _GGUF if isinstance(values.get(key), int)]
    else:
        ids += [end for name in (GENERATION, CONFIG) for end in _ends(path, name)]
    if not (path / CONFIG).is_file() and (path / ADAPTER).is_file():
        base = Path(str(read_json(path / ADAPTER).get("base_model_name_or_path") or "nowhere")).expanduser()
        ids += stop_ids(base) if base.exists() and base.resolve() != path.resolve() else []
    ids += [end for end in (getattr(tokenizer, "eos_token_id", None),) if end is not None]
    return list(dict.fromkeys(ids))


def special_ids(base: str | os.PathLike[str] | None, tokenizer: Any) -> dict[str, Any]:
    """bos, eos and pad for the config.json of an export: as the base's config.json has them, else the tokenizer's."""
    raw = _read(base, CONFIG) or {}
    return {name: raw[name] if name in raw else getattr(tokenizer, name, None) for name in _SPECIAL}


def exported_generation(
    base: str | os.PathLike[str] | None, special: dict[str, Any], stops: Sequence[int]
) -> dict[str, Any] | None:
    """The generation_config.json of an export: the base's, with `stops` among its ends.

    None where the base has none, and `special["eos_token_id"]` of config.json says all of `stops`: that is what
    transformers goes by then.
    """
    raw = _read(base, GENERATION)
    if raw is None and set(stops) <= set(_whole_numbers(special.get("eos_token_id")) or ()):
        return None
    if raw is None:
        raw = {name: special[name] for name in _SPECIAL if special.get(name) is not None}
    before = _whole_numbers(raw.get("eos_token_id")) or []
    if (ends := list(dict.fromkeys([*before, *stops]))) != before:
        raw["eos_token_id"] = ends if len(ends) > 1 else ends[0]
        raw.pop("_from_model_config", None)  # which would let config.json overrule it
    return raw


def _read(base: str | os.PathLike[str] | None, name: str) -> dict[str, Any] | None:
    """A JSON file of a model's directory, where it is there."""
    file = None if base is None else Path(base).expanduser() / name
    return read_json(file) if file is not None and file.is_file() else None


def _ends(path: Path, name: str) -> list[int]:
    """What a JSON file calls end of sequence; -1 and the like, which some write for none, are none."""
    value = (_read(path, name) or {}).get("eos_token_id")
    if (ends := _whole_numbers(value)) is None:
        raise CheckpointError(
            f"{path / name}: field eos_token_id is {value!r}, but must be a whole number or a list of them; mend or "
            f"fetch it"
        )
    return [end for end in ends if end >= 0]


def _whole_numbers(value: Any) -> list[int] | None:
    values = [] if value is None else value if isinstance(value, list) else [value]
    return values if all(map(is_whole, values)) else None
