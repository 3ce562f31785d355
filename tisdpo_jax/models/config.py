"""What a decoder is (`TransformerConfig`, released ones in `SIZES`) and how it is computed (`ComputeConfig`)."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal, get_args, get_type_hints

# above all that there are: shapes and names are made of these numbers before any file is compared with them
MAX_LAYERS = 10_000
MAX_SIZE = 100_000_000
Kind = Literal["sliding", "full"]
"""Of a layer: whether its queries see a window of keys, or all before them."""
_ABOVE_ZERO = ("query_pre_attn_scalar", "attention_softcap", "final_softcap")


def _check_names(config: Any) -> None:
    """A field of a closed set of names holds one of them; another name would be taken for one in silence."""
    for field, kind in get_type_hints(type(config)).items():
        names = get_args(kind)
        if isinstance(names[0] if names else None, str) and getattr(config, field) not in names:
            value = getattr(config, field)
            raise ValueError(f"{type(config).__name__}.{field} is {value!r}; one of {', '.join(names)}")


@dataclasses.dataclass(frozen=True)
class RopeConfig:
    """Rotary position embedding, and how it is stretched over more positions than a model was trained with."""

    theta: float = 10_000.0
    kind: Literal["default", "linear", "dynamic", "llama3", "yarn"] = "default"
    factor: float = 1.0
    low_freq_factor: float = 1.0  # llama3
    high_freq_factor: float = 4.0
    original_max_positions: int = 8192  # before stretching: dynamic, llama3, yarn
    attention_factor: float | None = None  # yarn: of cos and sin; None is 0.1 ln(factor) + 1
    beta_fast: float = 32.0  # yarn: turns over the original positions from which on nothing is stretched
    beta_slow: float = 1.0  # and below which all is
    truncate: bool = True  # yarn: between the two in whole dimensions

    def __post_init__(self) -> None:
        _check_names(self)
        if self.factor <= 0:
            raise ValueError(f"RopeConfig.factor is {self.factor}; it must be above 0")


@dataclasses.dataclass(frozen=True)
class TransformerConfig:
    """A decoder, described by data: Llama, Mistral, Qwen 2 and 3, Gemma 2 and 3."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    max_positions: int = 4096
    norm_eps: float = 1e-5
    rope: RopeConfig = RopeConfig()
    sliding_window: int | None = None  # keys a query sees, itself included (Mistral)
    qkv_bias: bool = False  # Qwen2; Llama's `attention_bias` sets this and `output_bias`
    output_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False  # Qwen3, Gemma 3
    tied_head: bool = False
    score_head: bool = False  # a reward model: one number where a response ends, in place of a vocabulary
    # What Gemma 2 and 3 need:
    pattern: tuple[Kind, ...] = ("sliding",)  # kinds of layers, again and again; full ones have no window
    local_rope: RopeConfig | None = None  # of sliding layers, where it is another one
    activation: Literal["silu", "gelu_tanh"] = "silu"  # of the MLP's gate
    norm_offset: bool = False  # norms multiply by 1 + scale
    post_norms: bool = False  # norms behind attention and MLP too, before they are added
    embed_scale: bool = False  # embeddings times sqrt(hidden_size)
    query_pre_attn_scalar: float | None = None  # scores are divided by its root; None: by that of head_dim
    attention_softcap: float | None = None  # scores are softcap * tanh(scores / softcap)
    final_softcap: float | None = None  # logits likewise

    @property
    def scoring(self) -> TransformerConfig:
        """The same decoder as a reward model."""
        return dataclasses.replace(self, tied_head=True, score_head=True)

    @property
    def positions(self) -> int:
        """Positions that the model was made for.

        `max_positions` of a model with linear or dynamic scaling counts those before it is stretched, with Llama 3's
        those after, with yarn either.
        """
        rope = self.rope
        if rope.kind == "yarn":
            return max(self.max_positions, int(rope.original_max_positions * rope.factor))
        stretch = rope.factor if rope.kind in ("linear", "dynamic") else 1.0
        return int(self.max_positions * max(stretch, 1.0))

    def window(self, kind: Kind) -> int | None:
        """Keys that a query of such a layer sees."""
        return self.sliding_window if kind == "sliding" else None

    def rope_of(self, kind: Kind) -> RopeConfig:
        return self.local_rope or self.rope if kind == "sliding" else self.rope

    def __post_init__(self) -> None:
        _check_names(self)
        kinds, name = get_args(Kind), type(self).__name__
        if not self.pattern or not set(self.pattern) <= set(kinds):
            raise ValueError(f"{name}.pattern is {self.pattern!r}; one or more of {', '.join(kinds)}")
        for field in dataclasses.fields(self):
            value, most = getattr(self, field.name), MAX_LAYERS if field.name == "num_layers" else MAX_SIZE
            size = field.default is dataclasses.MISSING
            if field.name in _ABOVE_ZERO and value is not None and value <= 0:
                raise ValueError(f"{name}.{field.name} is {value}; it must be above 0, or None for none")
            if (size or (field.name == "sliding_window" and value is not None)) and value < 1:
                or_none = "" if size else ", or None for none"
                raise ValueError(f"{name}.{field.name} is {value}; it must be at least 1{or_none}")
            if size and value > most:
                raise ValueError(f"{name}.{field.name} is {value}; it must be at most {most}")
        if self.num_heads * self.head_dim > MAX_SIZE:
            raise ValueError(f"{name}: num_heads {self.num_heads} times head_dim {self.head_dim} is above {MAX_SIZE}")
        if self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"{name}: num_heads {self.num_heads} is not a multiple of num_kv_heads {self.num_kv_heads}"
            )
        if self.score_head and not self.tied_head:
            raise ValueError(f"{name}: a model with a score_head has no head over the vocabulary; set tied_head too")
        if self.head_dim % 2:
            raise ValueError(f"{name}.head_dim is {self.head_dim}; rotary embedding needs an even number")


@dataclasses.dataclass(frozen=True)
class ComputeConfig:
    """How the decoder is computed. None of this changes what a checkpoint holds."""

    dtype: str = "float32"  # of activations and matmuls; norm, rope, softmax stay float32
    param_dtype: str = "float32"  # of the parameters that `init` makes
    attention: Literal["xla", "splash", "cudnn"] = "xla"
    remat: Literal["none", "full", "dots"] = "none"
    layer_loop: Literal["scan", "unroll"] = "scan"
    lora_scale: float = 1.0  # alpha / rank, the same for every adapter of one program
    platform: str = ""  # that the program is compiled for, where it is not the default one: "tpu" ahead of time

    def __post_init__(self) -> None:
        _check_names(self)


@dataclasses.dataclass(frozen=True)
class Model:
    """A decoder and how it is computed; hashable, so it can be a static argument."""

    config: TransformerConfig
    compute: ComputeConfig = ComputeConfig()

    @property
    def decoding(self) -> Model:
        """Against a cache: that needs explicit positions, which only the xla back end honours, and no gradient."""
        return dataclasses.replace(self, compute=dataclasses.replace(self.compute, attention="xla", remat="none"))


# Sizes of released models, for plans and checks without their weights. A run reads its model's own config.
_LLAMA31_ROPE = RopeConfig(500_000.0, "llama3", 8.0, 1.0, 4.0, 8192)
GEMMA: dict[str, Any] = {
    **dict.fromkeys(("norm_offset", "post_norms", "embed_scale"), True),
    "activation": "gelu_tanh",
}
"""What Gemma 2 and 3 have in common, and no other family has."""

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
        **GEMMA,
        tied_head=True,
        query_pre_attn_scalar=256.0,
        sliding_window=4096,
        pattern=("sliding", "full"),
        attention_softcap=50.0,
        final_softcap=30.0,
    ),
    "gemma3_1b": TransformerConfig(
        *(262_144, 1152, 6912, 26, 4, 1, 256, 32_768, 1e-6, RopeConfig(1_000_000.0)),
        **GEMMA,
        tied_head=True,
        query_pre_attn_scalar=256.0,
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
