"""Log-likelihoods of all responses under a frozen model: made once, kept on disk under all that they depend on."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from tisdpo_jax import distributed, partitioning
from tisdpo_jax.artifacts import differences, digest, replacing, sha256, write_text
from tisdpo_jax.checkpoint import quarantine
from tisdpo_jax.data import EncodedGroup, States, open_template, tokenizer_identity
from tisdpo_jax.data.states import create, open_states
from tisdpo_jax.errors import CheckpointError, DamagedError, DataError
from tisdpo_jax.recipes.models import identify
from tisdpo_jax.recipes.session import Session
from tisdpo_jax.roles import Frozen, Role, bind
from tisdpo_jax.scoring import read, score
from tisdpo_jax.training.passes import collect, one_pass

log = logging.getLogger(__name__)


def cached_logps(session: Session, role_name: str, role: Role, frozen: Frozen, split: str) -> np.ndarray:
    """`[n, 2, N]` float32 log-likelihoods of a split's responses under a role; read if they are on disk.

    A file that is damaged is set aside, and made again.

    Raises: CheckpointError when the file on disk was made from something else; it names what differs. DataError when
      a score is not finite; nothing is kept then.
    """
    path = session.run_dir / "scores" / f"{split}-{role_name}.safetensors"
    key = cache_key(session, role, frozen, split)
    if path.exists():
        try:
            return _read(path, key)
        except DamagedError as error:
            _set_aside(path, error)
    logps = compute_logps(session, role, frozen, split, label=f"scores {role_name} ({split})")
    if jax.process_index() == 0:
        path.parent.mkdir(parents=True, exist_ok=True)
        whole = np.ascontiguousarray(logps)
        label = {"key": json.dumps(key, sort_keys=True), "sha256": _digest(whole)}
        with replacing(path) as temporary:
            save_file({"logps": whole}, temporary, metadata=label)
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
        **text_identity(session),
        "prompt": role.view,
        "lengths": f"{config.data.max_length}/{config.data.max_response}",
        "data": session.split(split).fingerprint(),
    }


def text_identity(session: Session) -> dict[str, str]:
    """What turns records into tokens, by its content: a difference in the data is told by these first."""
    data = session.config.data
    return {
        "tokenizer": tokenizer_identity(session.tokenizer)[:16],
        "template": digest([data.system, open_template(data.template, session.tokenizer).identity]),
    }


def compute_logps(session: Session, role: Role, frozen: Frozen, split: str, *, label: str) -> np.ndarray:
    """The same, made now."""
    config = session.config
    pairs, batches = session.passing(split, role.view)
    variables = bind(role, None, frozen)
    run = scorer(session.model, role.view, config.model.head_chunk)
    watched: Any = {"label": label, "interrupt": session.interrupt, "shown": config.logging.progress}
    everything = one_pass(pairs, batches, session.mesh, **watched)
    logps: np.ndarray = collect(lambda batch: run(variables, batch), everything, len(pairs.encoded))
    check_finite(label, logps, pairs.encoded.groups)
    return logps


def check_finite(what: str, values: np.ndarray, pairs: Sequence[EncodedGroup]) -> None:
    """Raises: DataError that names the records whose `values [n, ...]` are not finite."""
    bad = np.flatnonzero(~np.isfinite(values).all(axis=tuple(range(1, values.ndim))))
    if len(bad):
        names = ", ".join(f"{pairs[i].id} ({pairs[i].origin})" for i in bad[:4])
        raise DataError(
            f"{what}: not finite for {len(bad)} of {len(values)} pairs: {names}{', ...' if len(bad) > 4 else ''}; "
            "nothing is kept. A model with NaN in its parameters gives this for all pairs; else look at these records, "
            "or set model.dtype float32"
        )


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
            write_text(label, json.dumps({"key": key, "sha256": sha256(path)}, sort_keys=True, indent=1) + "\n")
    distributed.wait_for_all(f"{split} states")
    try:
        stored = json.loads(label.read_text(encoding="utf-8"))
        _check_key(path, stored["key"], key)
        if sha256(path, lambda: session.interrupt.poll("reading cached states")) != stored["sha256"]:
            raise ValueError("its bytes do not match their digest")
        return open_states(path, encoded, width, dtype)
    except CheckpointError:
        raise
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: no whole cache of states ({error}); delete {label} to make it again") from None


def _make_states(session: Session, role: Role, frozen: Frozen, split: str, path: Path) -> None:
    pairs, batches = session.passing(split, role.view)
    run, variables = _reader(session.model, role.view), bind(role, None, frozen)
    width, dtype = session.model.config.hidden_size, session.config.model.dtype
    path.parent.mkdir(parents=True, exist_ok=True)
    task = f"states of the reference ({split})"
    with contextlib.ExitStack() as stack:
        states = None
        if jax.process_index() == 0:
            states = create(stack.enter_context(replacing(path)), pairs.encoded, width, dtype)
        watched: Any = {"label": task, "interrupt": session.interrupt, "shown": session.config.logging.progress}
        for indices, batch in one_pass(pairs, batches, session.mesh, **watched):
            hidden = partitioning.to_host(run(variables, batch))
            elements = partitioning.to_host(batch.views[role.view].slots.elements)
            if not np.isfinite(np.asarray(hidden, np.float32)).all():
                raise DataError(f"{task}: not finite; nothing is kept: look for NaN in the model, or at these records")
            if states is not None:
                states.write(indices, elements, hidden, pairs.layout)
        if states is not None:
            states.values.flush()  # type: ignore[attr-defined]  # a memory map
    if states is not None:
        log.info("%s: %.1f MiB in %s", task, states.values.nbytes / 2**20, path)


@functools.lru_cache(maxsize=2)
def _reader(model: Any, view: str) -> Any:
    return jax.jit(lambda variables, batch: read(model, variables, batch.views[view]).hidden)


def _read(path: Path, key: dict[str, str]) -> np.ndarray:
    try:
        with safe_open(path, framework="numpy") as file:
            label = file.metadata() or {}
            logps = np.asarray(file.get_tensor("logps"))
        found = json.loads(label["key"])
        whole = label.get("sha256", "") == _digest(logps)
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise DamagedError(f"{path}: not a whole score cache ({error})") from None
    _check_key(path, found, key)
    if not whole:
        raise DamagedError(f"{path}: the scores do not match their digest")
    log.info("scores read from %s", path)
    return logps


def _digest(logps: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(logps).tobytes()).hexdigest()


def _set_aside(path: Path, error: DamagedError) -> None:
    """Makes room for scores to be made again; with several processes that is left to a person."""
    if jax.process_count() > 1:
        raise CheckpointError(f"{error}; delete it to make it again") from error
    log.warning("scores set aside, and made again: %s", error)
    quarantine(path)


def _check_key(path: Path, found: dict[str, str], key: dict[str, str]) -> None:
    changed = differences(found, key)
    if changed:
        raise CheckpointError(
            f"{path}: was made with another configuration: {'; '.join(changed)}. Nothing was changed: go back to "
            "those values, delete it to make it again, or use a new run_dir"
        )


def peek(path: Any, data: str) -> np.ndarray | None:
    """What a cache holds, if it is there and for these token ids, whatever model made it: for showing only."""
    if not path.exists():
        return None
    with safe_open(path, framework="numpy") as file:
        if json.loads(file.metadata()["key"])["data"] != data:
            return None
        return np.asarray(file.get_tensor("logps"))
