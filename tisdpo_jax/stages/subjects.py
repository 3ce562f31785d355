"""The models that an evaluation is about: the run's own, a model directory, a GGUF file, a PEFT adapter."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from pathlib import Path
from typing import Any

import jax

from tisdpo_jax import interchange, partitioning
from tisdpo_jax.data import EncodedSet
from tisdpo_jax.errors import CheckpointError, ConfigError
from tisdpo_jax.interchange import read_json
from tisdpo_jax.models import Model, merge
from tisdpo_jax.stages import models
from tisdpo_jax.stages.positions import warn_of_pairs
from tisdpo_jax.stages.session import Session, named_path
from tisdpo_jax.types import Params, Variables


@dataclasses.dataclass(frozen=True, eq=False)
class Subject:
    """A model that is measured, or that answers."""

    name: str  # what tables call it
    source: str  # where it came from
    model: Model
    variables: Variables
    tokenizer: Any


def open_subject(
    session: Session,
    name: str,
    path: str,
    *,
    base: Subject | None = None,
    frozen: bool = False,
    pairs: EncodedSet | None = None,
) -> Subject:
    """The model that `path` names, on the session's mesh, computed as the session's configuration says.

    An adapter is applied without merging it, to the model that it names or, where that is not here, to `base`.

    Args:
      base: a model that is there already; taken, not read again, where `path` or an adapter names the same.
      frozen: in `model.frozen_dtype`, int8 included, as models are that nothing trains; else never in int8.
      pairs: what it will be measured on; those longer than it has positions are said.

    Raises: CheckpointError for what is no model.
    """
    place = named_path(path)
    if base is not None and not frozen and _same(place, base.source):
        return dataclasses.replace(base, name=name)
    if not is_adapter(place):
        return _whole(session, name, place, frozen, pairs)
    # fetched from the hub only where there is no other
    under = named_path(adapter_base(place)) if base is None else Path(adapter_base(place)).expanduser()
    if base is None or (under.exists() and not _same(under, base.source)):
        base = _whole(session, name, under, True, pairs)
    if "lora" in base.variables:
        raise ConfigError(f"{place}: its base {base.source} is an adapter itself; merge that one first")
    # which leaves there are is known once it is read; an adapter is small
    dtype = session.config.model.param_dtype
    lora, scale, start = interchange.load_peft(place, base.model.config, base=base.source, dtype=dtype)
    lora = jax.device_put(lora, partitioning.param_shardings(lora, session.mesh))
    compute = dataclasses.replace(base.model.compute, lora_scale=scale)
    params = base.variables["params"] if start is None else _without(session, base, start)
    model = Model(base.model.config, compute)
    return Subject(name, str(place), model, {"params": params, "lora": lora}, base.tokenizer)


def _without(session: Session, base: Subject, start: Params) -> Params:
    """The base's parameters without what the adapter's training began with; in int8 where the base is."""
    params, at = base.variables["params"], dataclasses.replace(session, model=base.model, model_path=Path(base.source))
    in_int8 = params["layers"]["attention"]["q"]["kernel"].dtype == "int8"
    if in_int8:
        params = models.load_pretrained(at)
    start = jax.device_put(start, partitioning.param_shardings(start, session.mesh))
    changed: Params = jax.jit(functools.partial(merge, scale=-1.0))(params, start)
    freeze = models.freeze_of(at) if in_int8 else None
    return freeze(changed) if freeze else changed


def is_adapter(path: Path) -> bool:
    return (path / interchange.ADAPTER_CONFIG).is_file() and not (path / "config.json").is_file()


def adapter_base(path: Path) -> str:
    """The model that an adapter names as its base; "" where it names none."""
    return str(read_json(path / interchange.ADAPTER_CONFIG).get("base_model_name_or_path") or "")


def model_files(session: Session, subject: Subject) -> Path:
    """Where the files of a subject's model are: of a run's own policy, those of the model that it began as."""
    path = Path(subject.source)
    own = path.is_file() or (path / "config.json").is_file() or is_adapter(path)
    return path if own else session.model_path


def _whole(session: Session, name: str, path: Path, frozen: bool, pairs: EncodedSet | None) -> Subject:
    config = interchange.read_config(path)
    partitioning.check_heads(config.num_heads, config.num_kv_heads, session.mesh)
    interchange.check_params(path, config)
    at = dataclasses.replace(session, model=Model(config, session.model.compute), model_path=path)
    if pairs is not None and config.positions < session.model.config.positions:  # else it is said already
        warn_of_pairs(pairs, config, path)
    params = models.load_pretrained(at)
    freeze = models.freeze_of(at) if frozen else None
    tokenizer = session.tokenizer
    with contextlib.suppress(CheckpointError):  # weights alone: that of the configuration then
        tokenizer = interchange.load_tokenizer(path)
    return Subject(name, str(path), at.model, {"params": freeze(params) if freeze else params}, tokenizer)


def _same(path: Path, source: str) -> bool:
    return path.exists() and Path(source).exists() and path.samefile(source)
