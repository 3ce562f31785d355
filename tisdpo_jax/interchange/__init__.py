"""Models in and out: Hugging Face directories, GGUF files, PEFT adapters, tokenizers."""

from tisdpo_jax.interchange._adapter_config import CONFIG as ADAPTER_CONFIG
from tisdpo_jax.interchange._fields import read_json
from tisdpo_jax.interchange.fetch import CONFIGS as HUB_CONFIGS
from tisdpo_jax.interchange.fetch import demo_model_path, is_hub_name, local_model, model_name
from tisdpo_jax.interchange.generation import stop_ids
from tisdpo_jax.interchange.load import (
    check_params,
    is_reward_model,
    load_params,
    load_reward_model,
    load_tokenizer,
    read_config,
)
from tisdpo_jax.interchange.peft import Adapter, load_peft, save_peft
from tisdpo_jax.interchange.reward import REWARD, ended, save_reward_model, with_padding
from tisdpo_jax.interchange.save import save_huggingface

__all__ = [
    "ADAPTER_CONFIG",
    "HUB_CONFIGS",
    "REWARD",
    "Adapter",
    "check_params",
    "demo_model_path",
    "ended",
    "is_hub_name",
    "is_reward_model",
    "load_params",
    "load_peft",
    "load_reward_model",
    "load_tokenizer",
    "local_model",
    "model_name",
    "read_config",
    "read_json",
    "save_huggingface",
    "save_peft",
    "save_reward_model",
    "stop_ids",
    "with_padding",
]
