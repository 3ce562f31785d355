"""What a run leaves on disk: how it is identified, how it is written, and who may write it."""

from tisdpo_jax.artifacts.arrays import check_same_key, key_of, load_array, peek, save_array
from tisdpo_jax.artifacts.graph import Given, Line, Run, Stage, Stored, Unkept, changes, order, show
from tisdpo_jax.artifacts.key import differences, digest, plain
from tisdpo_jax.artifacts.store import append_jsonl, clean, read_jsonl, replacing, sha256, write_jsonl, write_text
from tisdpo_jax.artifacts.workspace import lease

__all__ = [
    "Given",
    "Line",
    "Run",
    "Stage",
    "Stored",
    "Unkept",
    "append_jsonl",
    "changes",
    "check_same_key",
    "clean",
    "differences",
    "digest",
    "key_of",
    "lease",
    "load_array",
    "order",
    "peek",
    "plain",
    "read_jsonl",
    "replacing",
    "save_array",
    "sha256",
    "show",
    "write_jsonl",
    "write_text",
]
