"""Log-likelihoods of all responses under a frozen model: made once, kept on disk under all that they depend on."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from tisdpo_jax import distributed, partitioning
from tisdpo_jax.artifacts import Run, Stage, Stored, differences, digest, replacing, sha256, write_text
from tisdpo_jax.checkpoint import quarantine
from tisdpo_jax.data import (
    EncodedGroup,
    EncodedSet,
    States,
    create,
    open_states,
    open_template,
    recorded_columns,
    tokenizer_identity,
)
from tisdpo_jax.errors import CheckpointError, ConfigError, DamagedError, DataError
from tisdpo_jax.estimators import CONTRAST, Estimator, Read
from tisdpo_jax.models import head_only
from tisdpo_jax.roles import Frozen, Role, bind
from tisdpo_jax.scoring import Text, contrast_scores
from tisdpo_jax.scoring import read as read_states
from tisdpo_jax.stages.models import Base, identify
from tisdpo_jax.stages.session import Session
from tisdpo_jax.training import collect, one_pass
from tisdpo_jax.types import Params

log = logging.getLogger(__name__)

REFERENCE_LOGPS = Read("reference")
HEAD = "head"  # key of the reference where its last hidden states are on disk


Columns = dict[str, np.ndarray]
"""Values by pair, `[n, ...]`."""

Models = tuple[tuple[str, str, Stage], ...]
"""(collection, key, stage) of frozen models."""


@dataclasses.dataclass(frozen=True)
class CachedScores:
    """What is read of a frozen model for all pairs of a split, `[n, 2, N]` on disk; see `Read`."""

    read: Read
    role: Role
    split: str
    models: Models

    @property
    def name(self) -> str:
        return f"scores {self.split}-{_file_name(self.read)}"

    @property
    def inputs(self) -> tuple[Stage, ...]:
        return tuple(stage for *_, stage in needed(self.models, self.role))

    def make(self, run: Run) -> np.ndarray:
        return cached_scores(run.context, self.read, self.role, frozen_of(run, self.models, self.role), self.split)

    def key(self, context: Session) -> dict[str, Any]:
        return known_key(context, self.role, self.split)

    def stored(self, context: Session) -> Stored | None:
        path = score_path(context, self.read, self.split)
        try:
            return Stored(path, _key_of(path)) if path.exists() else None
        except DamagedError:
            return None  # set aside, and made again


@dataclasses.dataclass(frozen=True)
class HiddenStates:
    """Last hidden states of a frozen model at all response tokens of a split, on disk."""

    role: Role
    split: str
    models: Models

    @property
    def name(self) -> str:
        return f"hidden states {self.split}-reference"

    @property
    def inputs(self) -> tuple[Stage, ...]:
        return tuple(stage for *_, stage in needed(self.models, self.role))

    def make(self, run: Run) -> States:
        return cached_states(run.context, self.role, frozen_of(run, self.models, self.role), self.split)

    def key(self, context: Session) -> dict[str, Any]:
        return known_key(context, self.role, self.split)

    def stored(self, context: Session) -> Stored | None:
        path, label = states_paths(context, self.split)
        try:
            return Stored(path, json.loads(label.read_text(encoding="utf-8"))["key"]) if label.exists() else None
        except (OSError, KeyError, ValueError):
            return None


@dataclasses.dataclass(frozen=True)
class ReferenceHead:
    """The head of a frozen model alone: what is left of the reference where its hidden states are on disk."""

    model: Stage
    name: str = HEAD

    @property
    def inputs(self) -> tuple[Stage, ...]:
        return (self.model,)

    def make(self, run: Run) -> Params:
        return head_only(run.context.model.config, run(self.model).frozen())

    def key(self, context: Session) -> None:
        return None

    def stored(self, context: Session) -> None:
        return None


@dataclasses.dataclass(frozen=True)
class PairColumns:
    """Columns of a split: what its records bring, what was read of models, and what follows from that."""

    split: str
    scores: tuple[CachedScores, ...]
    derived: bool  # whether token weights and self-rewards are made of the scores

    @property
    def name(self) -> str:
        return f"columns {self.split}"

    @property
    def inputs(self) -> tuple[Stage, ...]:
        return self.scores

    def make(self, run: Run) -> Columns:
        session = run.context
        encoded = session.split(self.split)
        columns: Columns = dict(recorded_columns(encoded, session.elements))
        for scores in self.scores:
            if scores.read != REFERENCE_LOGPS:
                columns[scores.read.column] = run(scores)
        if self.derived:
            derive(session, encoded, columns)
        for scores in self.scores:
            if scores.read == REFERENCE_LOGPS:
                columns[scores.read.column] = run(scores)
        check_columns(session, self.split, columns)
        return columns

    def key(self, context: Session) -> None:
        return None

    def stored(self, context: Session) -> None:
        return None


def needed(models: Models, role: Role) -> Models:
    """The models that a role reads."""
    return tuple((collection, key, stage) for collection, key, stage in models if (collection, key) in role.needs())


def frozen_of(run: Run, models: Models, role: Role) -> Frozen:
    frozen: Any = {"params": {}, "lora": {}}
    for collection, key, stage in needed(models, role):
        value = run(stage)
        frozen[collection][key] = value.frozen() if isinstance(value, Base) else value
    return frozen


def derive(session: Session, encoded: EncodedSet, columns: Columns) -> None:
    """Token weights from what the estimator reads, and the self-reward of the pair from the contrast of pi+ and pi-.

    Each is made where its reads are among the columns.
    """
    estimator, mask, record = session.config.weights, encoded.mask(session.elements), np.arange(len(encoded))
    new: Columns = {}
    wanted = "token_weights" in session.config.loss.needs.columns or estimator.reads
    if wanted and all(read.column in columns for read in estimator.reads):
        new["token_weights"] = weights_of_pairs(estimator, columns, mask, record)
    if all(read.column in columns for read in CONTRAST):
        scores = contrast_scores(columns["plus_logps"], columns["minus_logps"], mask)
        new["self_reward"] = (scores[:, 0] - scores[:, 1]).astype(np.float32)
    if new and ("token_weights" in columns or "self_reward" in columns):
        raise ConfigError(
            f"{encoded.source}: brings its own weights or margin, which a contrast would overwrite; "
            "set contrast.construction none, or take these fields out"
        )
    if "token_weights" in new and not new["token_weights"].any():
        raise ConfigError(f"{encoded.source}: weights.method {estimator.method} gives weight 0 to all tokens")
    columns |= new


def weights_of_pairs(
    estimator: Estimator, columns: Mapping[str, Any], mask: np.ndarray, record: np.ndarray
) -> np.ndarray:
    """An estimator's weights `[n, 2, N]` of all pairs, some hundreds at a time."""
    parts = []
    for rows in np.array_split(record, max(-(-len(record) // 256), 1)):
        values = {read.column: jnp.asarray(columns[read.column][rows]) for read in estimator.reads}
        parts.append(np.asarray(estimator.weights(values, jnp.asarray(mask[rows]), jnp.asarray(rows))))
    return np.concatenate(parts)


BROUGHT = {"token_weights": "chosen_weights and rejected_weights", "self_reward": "margin"}  # fields of records


def check_columns(session: Session, split: str, columns: Columns) -> None:
    """Raises: ConfigError where records were to bring what the objective needs, and do not."""
    loss, construction = session.config.loss, session.config.contrast.construction
    for column in (name for name in loss.needs.columns if construction == "none" and name not in columns):
        raise ConfigError(
            f"loss.name {loss.name} needs {column}: set contrast.construction to prompts, sft or dpo, "
            f"or give every record of {session.split(split).source} the fields {BROUGHT[column]}"
        )


def score_path(session: Session, read: Read, split: str) -> Path:
    return session.run_dir / "scores" / f"{split}-{_file_name(read)}.safetensors"


def _file_name(read: Read) -> str:
    return read.role if read.kind == "logps" else f"{read.role}-{read.kind}"


def states_paths(session: Session, split: str) -> tuple[Path, Path]:
    """The file of hidden states, and its label."""
    directory = session.run_dir / "scores"
    return directory / f"{split}-reference-states.npy", directory / f"{split}-reference-states.json"


def cached_scores(session: Session, read: Read, role: Role, frozen: Frozen, split: str) -> np.ndarray:
    """`[n, 2, N]` float32: what `read` asks for, of a split's responses under a role; read if it is on disk.

    A file that is damaged is set aside, and made again.

    Raises: CheckpointError when the file on disk was made from something else; it names what differs. DataError when
      a score is not finite; nothing is kept then.
    """
    path = score_path(session, read, split)
    key = cache_key(session, role, frozen, split)
    if path.exists():
        try:
            return _read(path, key)
        except DamagedError as error:
            _set_aside(path, error)
    scores = compute_scores(session, read, role, frozen, split, label=f"scores {_file_name(read)} ({split})")
    if jax.process_index() == 0:
        path.parent.mkdir(parents=True, exist_ok=True)
        whole = np.ascontiguousarray(scores)
        label = {"key": json.dumps(key, sort_keys=True), "sha256": _digest(whole)}
        with replacing(path) as temporary:
            save_file({"logps": whole}, temporary, metadata=label)
    return scores


def cache_key(session: Session, role: Role, frozen: Frozen, split: str) -> dict[str, str]:
    """Everything that the numbers depend on, under the names that an error would use."""
    variables = bind(role, None, frozen)
    scale = session.model.compute.lora_scale
    return {
        "model": identify(variables["params"]),
        "adapter": f"{identify(variables['lora'])} x {scale}" if "lora" in variables else "none",
        **known_key(session, role, split),
    }


def known_key(session: Session, role: Role, split: str) -> dict[str, str]:
    """The part of `cache_key` that is known before any model is read."""
    config = session.config
    return {
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


def compute_scores(session: Session, read: Read, role: Role, frozen: Frozen, split: str, *, label: str) -> np.ndarray:
    """The same, made now."""
    config = session.config
    pairs, batches = session.passing(split, role.view)
    variables = bind(role, None, frozen)
    run = scorer(session.model, role.view, config.model.head_chunk, read.kind)
    watched: Any = {"label": label, "interrupt": session.interrupt, "shown": config.logging.progress}
    everything = one_pass(pairs, batches, session.mesh, **watched)
    scores: np.ndarray = collect(lambda batch: run(variables, batch), everything, len(pairs.encoded))
    check_finite(label, scores, pairs.encoded.groups)
    return scores


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
def scorer(model: Any, view: str, chunk: int, kind: str = "logps") -> Any:
    """The jitted step `(variables, batch) -> [B, 2, N]`, log-likelihoods or another method of the scorer."""
    score = getattr(Text(model, chunk), kind)
    return jax.jit(lambda variables, batch: score(variables, batch, jax.random.key(0), view=view))


def cached_states(session: Session, role: Role, frozen: Frozen, split: str) -> States:
    """Last hidden states of a role at all response tokens of a split, on disk; made when they are not there.

    2 or 4 bytes times the model's width for each token (`model.dtype`). With the head they give the exact KL.

    Raises: CheckpointError when what is on disk was made from something else; it names what differs.
    """
    path, label = states_paths(session, split)
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
    return jax.jit(lambda variables, batch: read_states(model, variables, batch.views[view]).hidden)


def _read(path: Path, key: dict[str, str]) -> np.ndarray:
    stored = _key_of(path)
    try:
        with safe_open(path, framework="numpy") as file:
            label = file.metadata() or {}
            logps = np.asarray(file.get_tensor("logps"))
        whole = label.get("sha256", "") == _digest(logps)
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise DamagedError(f"{path}: not a whole score cache ({error})") from None
    _check_key(path, stored, key)
    if not whole:
        raise DamagedError(f"{path}: the scores do not match their digest")
    log.info("scores read from %s", path)
    return logps


def _key_of(path: Path) -> dict[str, str]:
    try:
        with safe_open(path, framework="numpy") as file:
            key: dict[str, str] = json.loads((file.metadata() or {})["key"])
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise DamagedError(f"{path}: not a whole score cache ({error})") from None
    return key


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
