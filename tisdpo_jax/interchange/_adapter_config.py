"""adapter_config.json of peft: what its fields make of an adapter. A field that is not known here is refused.

peft adds fields with every release, and most of them change what is computed. So there is no list of what is refused,
but lists of what is understood: `_READ` below, `_NO_EFFECT` (they matter while peft trains, or to those who look for
the model); anything else has to be switched off.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from tisdpo_jax.errors import CheckpointError
from tisdpo_jax.interchange._fields import read_json

CONFIG = "adapter_config.json"

_READ = {
    *("peft_type", "task_type", "r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern", "init_lora_weights"),
    *("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern"),
}
_NO_EFFECT = {
    *("auto_mapping", "base_model_name_or_path", "revision", "peft_version", "inference_mode", "runtime_config"),
    "lora_dropout",
    "fan_in_fan_out",  # peft itself takes it for false where a layer is a linear map, as all of ours are
    "ensure_weight_tying",  # of embeddings and heads, whose tensors are refused
    *("megatron_core", "qalora_group_size"),  # say something only beside megatron_config, use_qalora
    *("loftq_config", "eva_config", "corda_config", "lora_ga_config"),  # beside init_lora_weights, which is read
}
_OFF: tuple[Any, ...] = (None, False, [])
_OFF_TOO: dict[str, tuple[Any, ...]] = {"bias": ("none",), "trainable_token_indices": ({},)}
_DEFAULT_TARGETS = ["q_proj", "v_proj"]  # of peft, for every family that is read
# ways to begin that leave the base alone: what is in the file is all there is
_PLAIN = ("gaussian", "eva", "orthogonal", "mica")
_UNKNOWN_START = {
    "pissa_niter": "it begins with random numbers that nobody has kept",
    "corda": "it begins with activations of the model on data that are not here",
    "lora_ga": "it begins with gradients of the model on data that are not here",
    "loftq": "it changes the base to a quantised one",
}


@dataclasses.dataclass(frozen=True)
class AdapterConfig:
    """What adapter_config.json says, as far as it changes what is computed. Modules have the names of transformers."""

    file: Path
    rank: int
    alpha: float
    rslora: bool
    rank_pattern: dict[str, int]
    alpha_pattern: dict[str, float]
    start: Literal["", "pissa", "olora"]  # what the base was relieved of when training began
    random: bool  # an adapted module without tensors would hold random numbers
    targets: str | Sequence[str]
    excluded: str | Sequence[str]
    layers: Sequence[int] | None
    layers_pattern: Sequence[str]

    def rank_of(self, module: str) -> int:
        return _by_pattern(self.rank_pattern, module, self.rank)

    def scale_of(self, module: str) -> float:
        """The factor that the module's adapter is applied with."""
        rank = self.rank_of(module)
        return _by_pattern(self.alpha_pattern, module, self.alpha) / (math.sqrt(rank) if self.rslora else rank)

    def adapts(self, module: str) -> bool:
        """Whether peft puts an adapter on `module` (`model.layers.0.self_attn.q_proj`)."""
        if self.excluded and _names(self.excluded, module):
            return False
        if isinstance(self.targets, str):
            return self.targets.lower() == "all-linear" or _names(self.targets, module)
        if not _names(self.targets, module):
            return False
        if self.layers is None or module in self.targets:
            return True
        for pattern in self.layers_pattern or [r"[^.]*"]:
            if found := re.match(rf"(?:^|.*?\.){pattern}\.(?P<layer>\d+)\.", module):
                return int(found["layer"]) in self.layers
        return False


def read_adapter_config(directory: Path) -> AdapterConfig:
    """Raises: CheckpointError that names the first field that cannot be honoured, and its value."""
    file = directory / CONFIG
    raw = read_json(file)
    if raw.get("peft_type") != "LORA":
        raise _refuse(file, "peft_type", raw.get("peft_type"), "only LORA is read")
    if raw.get("task_type") not in (None, "CAUSAL_LM"):
        raise _refuse(file, "task_type", raw["task_type"], "only CAUSAL_LM is read")
    for field, value in raw.items():
        if field in _READ or field in _NO_EFFECT or value in (*_OFF, *_OFF_TOO.get(field, ())):
            continue
        raise _refuse(file, field, value, "it may change what the adapter computes, and is not computed here")
    start, random = _start(file, raw.get("init_lora_weights", True))
    targets = _strings(file, "target_modules", raw.get("target_modules"))
    layers = raw.get("layers_to_transform")
    layers = [layers] if _whole(layers) else layers or None
    if not (layers is None or (isinstance(layers, list) and all(map(_whole, layers)))):
        raise _refuse(file, "layers_to_transform", layers, "a layer's number, or a list of them")
    patterns = _strings(file, "layers_pattern", raw.get("layers_pattern"))
    if isinstance(targets, str) and (layers or patterns):
        raise _refuse(file, "layers_to_transform", layers, "peft allows it only where target_modules is a list")
    config = AdapterConfig(
        file=file,
        rank=_rank(file, "r", raw.get("r", 8)),
        alpha=_number(file, "lora_alpha", raw.get("lora_alpha", 8)),
        rslora=bool(raw.get("use_rslora")),
        rank_pattern={
            key: _rank(file, f"rank_pattern {key}", value) for key, value in _pairs(file, raw, "rank_pattern")
        },
        alpha_pattern={
            key: _number(file, f"alpha_pattern {key}", value) for key, value in _pairs(file, raw, "alpha_pattern")
        },
        start=start,
        random=random,
        targets=_DEFAULT_TARGETS if raw.get("target_modules") is None else targets,
        excluded=_strings(file, "exclude_modules", raw.get("exclude_modules")),
        layers=layers,
        layers_pattern=[patterns] if isinstance(patterns, str) else patterns,
    )
    try:
        config.adapts("model.layers.0.self_attn.q_proj")
        config.scale_of("model.layers.0.self_attn.q_proj")
    except re.error as error:
        raise CheckpointError(
            f"{file}: one of target_modules, exclude_modules, layers_pattern, rank_pattern, alpha_pattern is no "
            f"regular expression ({error}); mend it, or fetch the adapter again"
        ) from None
    return config


def _start(file: Path, how: Any) -> tuple[Literal["", "pissa", "olora"], bool]:
    if how is True or (isinstance(how, str) and how.lower() in _PLAIN):
        return "", False
    if how in (False, None):
        return "", True
    if how == "pissa":
        return "pissa", False
    if isinstance(how, str) and how.lower() == "olora":
        return "olora", False
    why = next((why for name, why in _UNKNOWN_START.items() if str(how).startswith(name)), "it is not known")
    remedy = (
        "save the adapter again from the model in memory, with path_initial_model_for_weight_conversion of peft's "
        "save_pretrained, or merged"
    )
    raise _refuse(file, "init_lora_weights", how, why, remedy)


def _by_pattern(pattern: dict[str, Any], module: str, default: Any) -> Any:
    """As peft chooses: the first key that matches the end of the module's name."""
    return next((value for key, value in pattern.items() if re.match(rf"(.*\.)?({key})$", module)), default)


def _names(said: str | Sequence[str], module: str) -> bool:
    """A string is a regular expression for the whole name, a list has names or their ends."""
    if isinstance(said, str):
        return re.fullmatch(said, module) is not None
    return any(module == name or module.endswith(f".{name}") for name in said)


def _strings(file: Path, field: str, value: Any) -> str | list[str]:
    if value is None:
        return []
    if isinstance(value, str) or (isinstance(value, list) and all(isinstance(one, str) for one in value)):
        return value
    raise _refuse(file, field, value, "text, or a list of it")


def _pairs(file: Path, raw: dict[str, Any], field: str) -> list[tuple[str, Any]]:
    value = raw.get(field) or {}
    if not isinstance(value, dict):
        raise _refuse(file, field, value, "an object from names to numbers")
    return list(value.items())


def _rank(file: Path, field: str, value: Any) -> int:
    if not _whole(value) or value < 1:
        raise _refuse(file, field, value, "a whole number above 0")
    return int(value)


def _number(file: Path, field: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise _refuse(file, field, value, "a number")
    return value


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _refuse(
    file: Path,
    field: str,
    value: Any,
    why: str,
    remedy: str = "merge the adapter into its base with peft and load the merged model",
) -> CheckpointError:
    return CheckpointError(f"{file}: field {field} is {value!r}, which is not supported ({why}); {remedy}")
