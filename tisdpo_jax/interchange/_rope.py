"""Rotary embeddings in config.json: `rope_theta` and `rope_scaling` of transformers 4, `rope_parameters` of 5."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from tisdpo_jax.errors import CheckpointError
from tisdpo_jax.interchange._fields import check_known, flag_field, number_field, refuse, whole_field
from tisdpo_jax.models import RopeConfig

_ORIGINAL = "original_max_position_embeddings"
# what each kind reads, by the names of config.json, in the order in which they are written
_FIELDS: dict[str, tuple[str, ...]] = {
    "default": (),
    "linear": ("factor",),
    "dynamic": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", _ORIGINAL),
    "yarn": ("factor", "beta_fast", "beta_slow", "truncate", "attention_factor", _ORIGINAL),
}
_OPTIONAL = ("beta_fast", "beta_slow", "attention_factor")  # RopeConfig has what they are otherwise
_KNOWN = {field for fields in _FIELDS.values() for field in fields} | {
    *("rope_type", "type", "rope_theta", "partial_rotary_factor", "mscale", "mscale_all_dim")
}


def rope_fields(rope: RopeConfig) -> dict[str, Any]:
    """`rope_scaling` without theta."""
    ours = {field: "original_max_positions" if field == _ORIGINAL else field for field in _FIELDS[rope.kind]}
    fields = {field: getattr(rope, name) for field, name in ours.items()}
    return {"rope_type": rope.kind} | {field: value for field, value in fields.items() if value is not None}


def read_ropes(
    file: Path, raw: dict[str, Any], family: str, max_positions: int
) -> tuple[RopeConfig, RopeConfig | None]:
    """The rotary embedding, and that of sliding layers where it is another one (Gemma 3)."""
    modern = raw.get("rope_parameters") or {}
    if family != "gemma3_text":
        return _read_rope(file, raw, modern, max_positions), None
    kinds = ("full_attention", "sliding_attention")
    if not isinstance(modern, dict) or not set(modern) <= set(kinds):
        raise refuse(file, "rope_parameters", modern, f"Gemma 3 has one for {' and one for '.join(kinds)}")
    full, sliding = (modern.get(kind) or {} for kind in kinds)
    local = {"rope_theta": raw.get("rope_local_base_freq")}
    return (
        _read_rope(file, raw, full, max_positions, theta=1e6),
        _read_rope(file, local, sliding, max_positions, name="rope_local_base_freq"),
    )


def _read_rope(
    file: Path, raw: dict[str, Any], modern: Any, max_positions: int, *, theta: float = 1e4, name: str = "rope_theta"
) -> RopeConfig:
    """Both spellings: `rope_scaling` wins where both hold something, as it does in transformers 5.

    Args:
      modern: `rope_parameters`; theta: where it is left out; name: of the old spelling's field for it.
    """
    rope = raw.get("rope_scaling") or modern
    field = "rope_scaling" if raw.get("rope_scaling") else "rope_parameters"
    if not (isinstance(rope, dict) and isinstance(modern, dict)) or any(isinstance(one, dict) for one in rope.values()):
        raise refuse(file, field, "one a layer type", "this family has one rotary embedding for all layers")
    check_known(file, f"{field}.", rope, _KNOWN)
    for where, place in (("", raw), (f"{field}.", rope)):
        if (value := place.get("partial_rotary_factor")) not in (None, 1.0):
            raise refuse(file, f"{where}partial_rotary_factor", value, "the decoder rotates whole heads")
    places = ((f"{field}.rope_theta", rope), (name, raw), ("rope_parameters.rope_theta", modern))
    thetas = [(where, place["rope_theta"]) for where, place in places if place.get("rope_theta") is not None]
    theta = number_field(file, *(thetas or [(name, theta)])[0])
    kind = rope.get("rope_type", rope.get("type", "default"))
    if not isinstance(kind, str) or kind not in _FIELDS:
        raise refuse(file, f"{field}.rope_type", kind, f"known: {', '.join(_FIELDS)}")
    values: dict[str, Any] = {"original_max_positions": max_positions} if kind == "dynamic" else {}
    for key in _FIELDS[kind]:
        value = rope.get(key)
        if key == "truncate":
            values[key] = flag_field(file, rope, key, default=True)
        elif key == _ORIGINAL:
            positions = raw.get(key) or value or max_positions
            values["original_max_positions"] = whole_field(file, f"{field}.{key}", positions)
        elif value is not None or key not in _OPTIONAL:
            values[key] = number_field(file, f"{field}.{key}", value)
    if kind == "yarn" and "attention_factor" not in values and rope.get("mscale") and rope.get("mscale_all_dim"):
        grow = 0.1 * math.log(max(values["factor"], 1.0))
        sharp, flat = (number_field(file, f"{field}.{key}", rope[key]) for key in ("mscale", "mscale_all_dim"))
        values["attention_factor"] = (grow * sharp + 1.0) / (grow * flat + 1.0)
    config = RopeConfig(theta, kind, **values)  # type: ignore[arg-type]  # one of its names
    if kind == "llama3" and config.low_freq_factor >= config.high_freq_factor:
        raise CheckpointError(
            f"{file}: field {field}.low_freq_factor is {config.low_freq_factor:g}, but must be below high_freq_factor, "
            f"{config.high_freq_factor:g}; mend or fetch it"
        )
    return config
