"""What tests need, ours and yours: tiny models, a tokenizer, pairs, a mesh. Everything is small and made from a key."""

from tisdpo_jax.testing.directories import write_pairs, write_tiny_model
from tisdpo_jax.testing.meshes import device_mesh
from tisdpo_jax.testing.models import FAMILIES, random_adapters, random_params, tiny_config
from tisdpo_jax.testing.pairs import Pairs, batch_of, random_batch, random_encoded, random_pairs
from tisdpo_jax.testing.tokenizer import tiny_tokenizer

__all__ = [
    "FAMILIES",
    "Pairs",
    "batch_of",
    "device_mesh",
    "random_adapters",
    "random_batch",
    "random_encoded",
    "random_pairs",
    "random_params",
    "tiny_config",
    "tiny_tokenizer",
    "write_pairs",
    "write_tiny_model",
]
