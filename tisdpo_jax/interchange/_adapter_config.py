"""adapter_config.json of peft: what its fields make of an adapter. A field that is not known here is refused.

peft adds fields with every release, and most of them change what is computed. So there is no list of what is refused,
but lists of what is understood: `_READ` below, `_NO_EFFECT` (they matter while peft trains, or to those who look for
the model); anything else has to be switched off.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

from tisdpo_jax.errors import CheckpointError
from tisdpo_jax.interchange._fields import is_whole, number_field, read_json, refuse, whole_field

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
_MERGE = "merge the adapter into its base with peft and load the merged model"
_SAVE = (
    "save the adapter again from the model in memory, with path_initial_model_for_weight_conversion of peft's "
    "save_pretrained, or merged"
)

_number = functools.partial(number_field, above=-math.inf)
Start = Literal["", "pissa", "olora"]
_PLAIN = ("gaussian", "eva", "orthogonal", "mica")  # beginnings that leave the base alone: all there is is in the file
_UNKNOWN_STARTS = {
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
    start: Start  # what the base was relieved of when training began
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
            if match := re.match(rf"(?:^|.*?\.){pattern}\.(?P<layer>\d+)\.", module):
                return int(match["layer"]) in self.layers
        return False


def read_adapter_config(directory: Path) -> AdapterConfig:
    """Raises: CheckpointError that names the first field that cannot be honoured, and its value."""
    file = directory / CONFIG
    raw = read_json(file)

    def refused(field: str, why: str, value: Any = None) -> CheckpointError:
        return refuse(file, field, raw.get(field) if value is None else value, why, _MERGE)

    def names(field: str) -> str | list[str]:
        value = raw.get(field)
        if value is None or isinstance(value, str):
            return value or []
        if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
            raise refused(field, "text, or a list of it")
        return value

    def pattern(field: str, number: Callable[[Path, str, Any], Any]) -> dict[str, Any]:
        value = raw.get(field) or {}
        if not isinstance(value, dict):
            raise refused(field, "an object from names to numbers")
        return {key: number(file, f"{field} {key}", one) for key, one in value.items()}

    if raw.get("peft_type") != "LORA":
        raise refused("peft_type", "only LORA is read")
    if raw.get("task_type") not in (None, "CAUSAL_LM"):
        raise refused("task_type", "only CAUSAL_LM is read")
    for field, value in raw.items():
        if field not in _READ | _NO_EFFECT and value not in (*_OFF, *_OFF_TOO.get(field, ())):
            raise refused(field, "it may change what the adapter computes, and is not computed here", value)
    begins = raw.get("init_lora_weights", True)
    named = begins.lower() if isinstance(begins, str) else ""
    start: Start = "pissa" if begins == "pissa" else "olora" if named == "olora" else ""
    if not start and begins not in (True, False, None) and named not in _PLAIN:
        why = next((why for name, why in _UNKNOWN_STARTS.items() if str(begins).startswith(name)), "it is not known")
        raise refuse(file, "init_lora_weights", begins, why, _SAVE)
    layers = raw.get("layers_to_transform")
    layers = [layers] if is_whole(layers) else layers or None
    if not (layers is None or (isinstance(layers, list) and all(map(is_whole, layers)))):
        raise refused("layers_to_transform", "a layer's number, or a list of them")
    targets, patterns = names("target_modules"), names("layers_pattern")
    if isinstance(targets, str) and (layers or patterns):
        raise refused("layers_to_transform", "peft allows it only where target_modules is a list")
    config = AdapterConfig(
        file=file,
        rank=whole_field(file, "r", raw.get("r", 8)),
        alpha=_number(file, "lora_alpha", raw.get("lora_alpha", 8)),
        rslora=bool(raw.get("use_rslora")),
        rank_pattern=pattern("rank_pattern", whole_field),
        alpha_pattern=pattern("alpha_pattern", _number),
        start=start,
        random=begins in (False, None),
        targets=_DEFAULT_TARGETS if raw.get("target_modules") is None else targets,
        excluded=names("exclude_modules"),
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


def _by_pattern(pattern: dict[str, Any], module: str, default: Any) -> Any:
    """As peft chooses: the first key that matches the end of the module's name."""
    return next((value for key, value in pattern.items() if re.match(rf"(.*\.)?({key})$", module)), default)


def _names(said: str | Sequence[str], module: str) -> bool:
    """A string is a regular expression for the whole name, a list has names or their ends."""
    if isinstance(said, str):
        return re.fullmatch(said, module) is not None
    return any(module == name or module.endswith(f".{name}") for name in said)
