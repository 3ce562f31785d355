"""What a run leaves on disk: how it is identified, how it is written, and who may write it."""

from tisdpo_jax.artifacts.key import differences, digest, plain
from tisdpo_jax.artifacts.store import clean, replacing, sha256, write_text
from tisdpo_jax.artifacts.workspace import lease

__all__ = ["clean", "differences", "digest", "lease", "plain", "replacing", "sha256", "write_text"]
