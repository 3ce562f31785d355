"""Sizes of released models, for plans and checks without their weights. A run reads its model's own config."""

from __future__ import annotations

from typing import Any

from tisdpo_jax.models.config import RopeConfig, TransformerConfig

_LLAMA31_ROPE = RopeConfig(500_000.0, "llama3", 8.0, 1.0, 4.0, 8192)
_GEMMA: dict[str, Any] = {
    **dict.fromkeys(("tied_head", "norm_offset", "post_norms", "embed_scale"), True),
    "activation": "gelu_tanh",
    "query_pre_attn_scalar": 256.0,
}

SIZES: dict[str, TransformerConfig] = {
    "llama2_7b": TransformerConfig(32_000, 4096, 11_008, 32, 32, 32, 128, 4096),
    "llama2_13b": TransformerConfig(32_000, 5120, 13_824, 40, 40, 40, 128, 4096),
    "llama31_8b": TransformerConfig(128_256, 4096, 14_336, 32, 32, 8, 128, 131_072, rope=_LLAMA31_ROPE),
    "llama32_1b": TransformerConfig(
        *(128_256, 2048, 8192, 16, 32, 8, 64, 131_072),
        rope=RopeConfig(500_000.0, "llama3", 32.0, 1.0, 4.0, 8192),
        tied_head=True,
    ),
    "mistral_7b": TransformerConfig(32_000, 4096, 14_336, 32, 32, 8, 128, 32_768, sliding_window=4096),
    "qwen2_7b": TransformerConfig(
        *(152_064, 3584, 18_944, 28, 28, 4, 128, 32_768), 1e-6, RopeConfig(1_000_000.0), qkv_bias=True
    ),
    "qwen3_8b": TransformerConfig(
        *(151_936, 4096, 12_288, 36, 32, 8, 128, 40_960), 1e-6, RopeConfig(1_000_000.0), qk_norm=True
    ),
    "gemma2_2b": TransformerConfig(
        *(256_000, 2304, 9216, 26, 8, 4, 256, 8192, 1e-6),
        **_GEMMA,
        sliding_window=4096,
        pattern=("sliding", "full"),
        attention_softcap=50.0,
        final_softcap=30.0,
    ),
    "gemma3_1b": TransformerConfig(
        *(262_144, 1152, 6912, 26, 4, 1, 256, 32_768, 1e-6, RopeConfig(1_000_000.0)),
        **_GEMMA,
        sliding_window=512,
        pattern=("sliding",) * 5 + ("full",),
        local_rope=RopeConfig(),
        qk_norm=True,
    ),
    "smollm2_135m": TransformerConfig(
        49_152, 576, 1536, 30, 9, 3, 64, 8192, 1e-5, RopeConfig(100_000.0), tied_head=True
    ),
}
"""Name -> architecture, as the released config.json files have it."""
