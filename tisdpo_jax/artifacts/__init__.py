"""What a run leaves on disk: how it is identified, how it is written, and who may write it."""

from tisdpo_jax.artifacts.graph import Given, Line, Run, Stage, Stored, changes, order, show
from tisdpo_jax.artifacts.key import differences, digest, plain
from tisdpo_jax.artifacts.store import append_jsonl, clean, read_jsonl, replacing, sha256, write_jsonl, write_text
from tisdpo_jax.artifacts.workspace import lease

__all__ = [
    "Given",
    "Line",
    "Run",
    "Stage",
    "Stored",
    "append_jsonl",
    "changes",
    "clean",
    "differences",
    "digest",
    "lease",
    "order",
    "plain",
    "read_jsonl",
    "replacing",
    "sha256",
    "show",
    "write_jsonl",
    "write_text",
]
