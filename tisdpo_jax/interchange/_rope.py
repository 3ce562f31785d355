"""Rotary embeddings in config.json: `rope_theta` and `rope_scaling` of transformers 4, `rope_parameters` of 5."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from tisdpo_jax.errors import CheckpointError
from tisdpo_jax.interchange._fields import check_known, flag_field, number_field, refuse, whole
from tisdpo_jax.models import RopeConfig

_ROPE_READ = {
    *("rope_type", "type", "rope_theta", "factor", "low_freq_factor", "high_freq_factor", "partial_rotary_factor"),
    *("original_max_position_embeddings", "attention_factor", "beta_fast", "beta_slow", "truncate"),
    *("mscale", "mscale_all_dim"),
}


def rope_fields(rope: RopeConfig) -> dict[str, Any]:
    """`rope_scaling` without theta."""
    fields: dict[str, Any] = {"rope_type": rope.kind}
    if rope.kind != "default":
        fields["factor"] = rope.factor
    if rope.kind == "llama3":
        fields |= {"low_freq_factor": rope.low_freq_factor, "high_freq_factor": rope.high_freq_factor}
    if rope.kind == "yarn":
        fields |= {"beta_fast": rope.beta_fast, "beta_slow": rope.beta_slow, "truncate": rope.truncate}
        fields |= {} if rope.attention_factor is None else {"attention_factor": rope.attention_factor}
    if rope.kind in ("llama3", "yarn"):
        fields["original_max_position_embeddings"] = rope.original_max_positions
    return fields


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
    check_known(file, f"{field}.", rope, _ROPE_READ)
    for where, place in (("", raw), (f"{field}.", rope)):
        if (value := place.get("partial_rotary_factor")) not in (None, 1.0):
            raise refuse(file, f"{where}partial_rotary_factor", value, "the decoder rotates whole heads")
    places = ((f"{field}.rope_theta", rope), (name, raw), ("rope_parameters.rope_theta", modern))
    thetas = [(where, place["rope_theta"]) for where, place in places if place.get("rope_theta") is not None]
    theta = number_field(file, *(thetas or [(name, theta)])[0])
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind == "default":
        return RopeConfig(theta=theta)
    if kind not in ("linear", "dynamic", "llama3", "yarn"):
        raise refuse(file, f"{field}.rope_type", kind, "known: default, linear, dynamic, llama3, yarn")

    def entry(key: str, default: float | None = None) -> float:
        return number_field(file, f"{field}.{key}", default if rope.get(key) is None else rope[key])

    factor = entry("factor")
    if kind == "linear":
        return RopeConfig(theta, "linear", factor)
    if kind == "dynamic":
        return RopeConfig(theta, "dynamic", factor, original_max_positions=max_positions)
    original = raw.get("original_max_position_embeddings") or rope.get("original_max_position_embeddings")
    if kind == "yarn":
        sharp = entry("attention_factor") if rope.get("attention_factor") is not None else None
        if sharp is None and rope.get("mscale") and rope.get("mscale_all_dim"):
            grow = 0.1 * math.log(max(factor, 1.0))
            sharp = (grow * entry("mscale") + 1.0) / (grow * entry("mscale_all_dim") + 1.0)
        return RopeConfig(
            *(theta, "yarn", factor),
            original_max_positions=whole(file, f"{field}.original_max_position_embeddings", original or max_positions),
            attention_factor=sharp,
            beta_fast=entry("beta_fast", 32.0),
            beta_slow=entry("beta_slow", 1.0),
            truncate=flag_field(file, rope, "truncate", default=True),
        )
    low, high = entry("low_freq_factor"), entry("high_freq_factor")
    if low >= high:
        raise CheckpointError(
            f"{file}: field {field}.low_freq_factor is {low:g}, but must be below high_freq_factor, {high:g}; mend or "
            f"fetch it"
        )
    original = whole(file, f"{field}.original_max_position_embeddings", original or max_positions)
    return RopeConfig(theta, "llama3", factor, low, high, original)
