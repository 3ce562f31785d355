"""GGUF files, as llama.cpp writes them: parsed and dequantised by the `gguf` package; what they mean is said here."""

from tisdpo_jax.interchange.gguf.model import ROPE_FACTORS, open_gguf, read_gguf_config, read_metadata
from tisdpo_jax.interchange.gguf.tokenizer import gguf_tokenizer

__all__ = ["ROPE_FACTORS", "gguf_tokenizer", "open_gguf", "read_gguf_config", "read_metadata"]
