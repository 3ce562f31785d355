"""Log-likelihoods of all responses under a frozen model: made once, kept on disk under all that they depend on."""

from __future__ import annotations

import functools
import json
import logging
import os
from typing import Any

import jax
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from tisdpo_jax import partitioning
from tisdpo_jax.data.template import tokenizer_name
from tisdpo_jax.errors import CheckpointError
from tisdpo_jax.recipes.models import identify
from tisdpo_jax.recipes.session import Session, digest
from tisdpo_jax.roles import Frozen, Role, bind
from tisdpo_jax.scoring import score
from tisdpo_jax.training.progress import progress

log = logging.getLogger(__name__)


def cached_logps(session: Session, role_name: str, role: Role, frozen: Frozen, split: str) -> np.ndarray:
    """`[n, 2, N]` float32 log-likelihoods of a split's responses under a role; read if they are on disk.

    Raises: CheckpointError when the file on disk was made from something else; it names what differs.
    """
    path = session.run_dir / "scores" / f"{split}-{role_name}.safetensors"
    key = cache_key(session, role, frozen, split)
    if path.exists():
        return _read(path, key)
    logps = compute_logps(session, role, frozen, split, label=f"scores {role_name} ({split})")
    if jax.process_index() == 0:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(".tmp")
        save_file({"logps": np.ascontiguousarray(logps)}, temporary, metadata={"key": json.dumps(key, sort_keys=True)})
        os.replace(temporary, path)
    return logps


def cache_key(session: Session, role: Role, frozen: Frozen, split: str) -> dict[str, str]:
    """Everything that the numbers depend on, under the names that an error would use."""
    config, variables = session.config, bind(role, None, frozen)
    return {
        "model": identify(variables["params"]),
        "adapter": f"{identify(variables['lora'])} x {session.model.compute.lora_scale}"
        if "lora" in variables
        else "none",
        "architecture": digest(repr(session.model.config)),
        "dtype": config.model.dtype,
        "tokenizer": f"{tokenizer_name(session.tokenizer)} {digest(session.tokenizer.backend_tokenizer.to_str())}",
        "template": f"{config.data.template} {digest([config.data.system, _template_text(session)])}",
        "prompt": role.view,
        "lengths": f"{config.data.max_length}/{config.data.max_response}",
        "data": session.split(split).fingerprint(),
    }


def compute_logps(session: Session, role: Role, frozen: Frozen, split: str, *, label: str) -> np.ndarray:
    """The same, made now."""
    config = session.config
    pairs, batches = session.passing(split, role.view)
    variables = bind(role, None, frozen)
    run = scorer(session.model, role.view, config.model.head_chunk)
    found = np.zeros((len(pairs.encoded.pairs), 2, session.elements), np.float32)
    for indices in progress(batches, label, enabled=config.logging.progress):
        session.interrupt.poll(label)
        batch = partitioning.put_batch(pairs.batch(indices), session.mesh)
        logps = partitioning.to_host(run(variables, batch))
        found[indices[indices >= 0]] = logps[indices >= 0]
    return found


@functools.lru_cache(maxsize=8)
def scorer(model: Any, view: str, chunk: int) -> Any:
    """The jitted step `(variables, batch) -> log-likelihoods [B, 2, N]`."""
    return jax.jit(lambda variables, batch: score(model, variables, batch, view=view, chunk=chunk).logps)


def _template_text(session: Session) -> str:
    choice = session.config.data.template
    if choice == "auto":
        return str(session.tokenizer.get_chat_template())
    return choice if choice == "hh" else open(choice, encoding="utf-8").read()


def _read(path: Any, key: dict[str, str]) -> np.ndarray:
    try:
        with safe_open(path, framework="numpy") as file:
            found = json.loads(file.metadata()["key"])
            logps = file.get_tensor("logps")
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: not a whole score cache ({error}); delete it to make it again") from None
    changed = sorted(name for name in found.keys() | key.keys() if found.get(name) != key.get(name))
    if changed:
        raise CheckpointError(
            f"{path}: was made with other {', '.join(changed)}; delete it to make it again, or use a new run_dir"
        )
    log.info("scores read from %s", path)
    return np.asarray(logps)


def peek(path: Any, data: str) -> np.ndarray | None:
    """What a cache holds, if it is there and for these token ids, whatever model made it: for showing only."""
    if not path.exists():
        return None
    with safe_open(path, framework="numpy") as file:
        if json.loads(file.metadata()["key"])["data"] != data:
            return None
        return np.asarray(file.get_tensor("logps"))
