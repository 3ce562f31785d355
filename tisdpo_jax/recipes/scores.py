"""Log-likelihoods of all responses under a frozen model: made once, kept on disk under all that they depend on."""

from __future__ import annotations

import functools
import json
import logging
import os
from pathlib import Path
from typing import Any

import jax
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from tisdpo_jax import distributed, partitioning
from tisdpo_jax.data import States, open_template, tokenizer_identity
from tisdpo_jax.data.states import create, open_states, write
from tisdpo_jax.errors import CheckpointError
from tisdpo_jax.recipes.models import identify
from tisdpo_jax.recipes.session import Session, digest
from tisdpo_jax.roles import Frozen, Role, bind
from tisdpo_jax.scoring import read, score
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
        "tokenizer": tokenizer_identity(session.tokenizer),
        "template": digest([config.data.system, open_template(config.data.template, session.tokenizer).identity]),
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


def cached_states(session: Session, role: Role, frozen: Frozen, split: str) -> States:
    """Last hidden states of a role at all response tokens of a split, on disk; made when they are not there.

    2 or 4 bytes times the model's width for each token (`model.dtype`). With the head they give the exact KL.

    Raises: CheckpointError when what is on disk was made from something else; it names what differs.
    """
    directory = session.run_dir / "scores"
    path, label = directory / f"{split}-reference-states.npy", directory / f"{split}-reference-states.json"
    key = cache_key(session, role, frozen, split)
    encoded, width, dtype = session.split(split), session.model.config.hidden_size, session.config.model.dtype
    if not label.exists():
        _make_states(session, role, frozen, split, path)
        if jax.process_index() == 0:
            temporary = label.with_suffix(".tmp")
            temporary.write_text(json.dumps(key, sort_keys=True, indent=1) + "\n", encoding="utf-8")
            os.replace(temporary, label)
    distributed.wait_for_all(f"{split} states")
    try:
        _check_key(path, json.loads(label.read_text(encoding="utf-8")), key)
        return open_states(path, encoded, width, dtype)
    except CheckpointError:
        raise
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: no whole cache of states ({error}); delete {label} to make it again") from None


def _make_states(session: Session, role: Role, frozen: Frozen, split: str, path: Path) -> None:
    pairs, batches = session.passing(split, role.view)
    run, variables = _reader(session.model, role.view), bind(role, None, frozen)
    width, dtype = session.model.config.hidden_size, session.config.model.dtype
    main, temporary = jax.process_index() == 0, path.with_suffix(".tmp")
    path.parent.mkdir(parents=True, exist_ok=True)
    states = create(temporary, pairs.encoded, width, dtype) if main else None
    task = f"states of the reference ({split})"
    for indices in progress(batches, task, enabled=session.config.logging.progress):
        session.interrupt.poll(task)
        host = pairs.batch(indices)
        found = partitioning.to_host(run(variables, partitioning.put_batch(host, session.mesh)))
        if states is not None:
            write(states, indices, np.asarray(host.views[role.view].place), found)
    if states is not None:
        states.values.flush()  # type: ignore[attr-defined]  # a memory map
        os.replace(temporary, path)
        log.info("%s: %.1f MiB in %s", task, states.values.nbytes / 2**20, path)


@functools.lru_cache(maxsize=2)
def _reader(model: Any, view: str) -> Any:
    return jax.jit(lambda variables, batch: read(model, variables, batch.views[view]).hidden)


def _read(path: Any, key: dict[str, str]) -> np.ndarray:
    try:
        with safe_open(path, framework="numpy") as file:
            found = json.loads(file.metadata()["key"])
            logps = file.get_tensor("logps")
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: not a whole score cache ({error}); delete it to make it again") from None
    _check_key(path, found, key)
    log.info("scores read from %s", path)
    return np.asarray(logps)


def _check_key(path: Path, found: dict[str, str], key: dict[str, str]) -> None:
    changed = sorted(name for name in found.keys() | key.keys() if found.get(name) != key.get(name))
    if changed:
        raise CheckpointError(
            f"{path}: was made with other {', '.join(changed)}; delete it to make it again, or use a new run_dir"
        )


def peek(path: Any, data: str) -> np.ndarray | None:
    """What a cache holds, if it is there and for these token ids, whatever model made it: for showing only."""
    if not path.exists():
        return None
    with safe_open(path, framework="numpy") as file:
        if json.loads(file.metadata()["key"])["data"] != data:
            return None
        return np.asarray(file.get_tensor("logps"))
