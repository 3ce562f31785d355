"""What results depend on, by content, under the names that an error would use."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from tisdpo_jax.artifacts import Run, Stage, digest
from tisdpo_jax.config import Experiment, StageSection, get
from tisdpo_jax.roles import Frozen, Role, bind
from tisdpo_jax.stages.frozen import Columns
from tisdpo_jax.stages.models import Base, identify
from tisdpo_jax.stages.session import Session

if TYPE_CHECKING:
    from tisdpo_jax.stages.training import Training

DERIVED = ("scores", "frozen models")  # of a training's key: known once what they stand for is made


def known_key(run: Run, role: Role, pairs: Stage, split: str) -> dict[str, str]:
    """The part of a key that is known before any model is read."""
    session: Session = run.context
    config, known = session.config, run.known(pairs)
    return {
        "architecture": digest(repr(session.model.config)),
        "dtype": config.model.dtype,
        **session.encoder.identity,
        "prompt": role.view,
        "lengths": f"{config.data.max_length}/{config.data.max_response}",
        **({} if known is None else {"data": known.split(split).fingerprint()}),
    }


def whole_key(run: Run, role: Role, frozen: Frozen, pairs: Stage, split: str) -> dict[str, str]:
    """Everything that the numbers depend on, under the names that an error would use."""
    variables, scale = bind(role, None, frozen), run.context.model.compute.lora_scale
    return {
        "model": identify(variables["params"]),
        "adapter": f"{identify(variables['lora'])} x {scale}" if "lora" in variables else "none",
        **known_key(run, role, pairs, split),
    }


def training_key(run: Run, training: Training) -> dict[str, Any]:
    """Everything that a training's result depends on, as far as it is known before anything is made."""
    session: Session = run.context
    config, section, pairs = session.config, get(session.config, training.section), run.known(training.pairs)
    weighs = "token_weights" in training.objective.needs.columns
    return {
        "architecture": dataclasses.asdict(session.model.config),
        "model.dtype": config.model.dtype,
        "model.param_dtype": config.model.param_dtype,
        "model.frozen_dtype": config.model.frozen_dtype,
        # another arithmetic for the same numbers: the last bits differ
        "data.packing": config.data.packing,
        "lora": dataclasses.asdict(config.lora) if config.lora.rank else {"rank": 0},
        **session.encoder.identity,
        **({} if pairs is None else {"data": pairs.train.fingerprint()[:16]}),
        "data.seed": config.data.seed,
        "seed": config.seed,
        training.section: _results_of(section),
        "sft": "none" if training.section == "sft" or not config.sft.epochs else _results_of(config.sft),
        "loss": dataclasses.asdict(training.objective),
        "sides": list(training.sides),
        "weights": dataclasses.asdict(config.weights) if weighs else "none",
        "contrast": _contrast(config) if training.contrasted else "none",
        **({"strengths": dataclasses.asdict(config.strengths)} if "target" in training.taken else {}),
    }


def whole_training_key(run: Run, training: Training, start: Base, columns: Columns, frozen: Frozen) -> dict[str, Any]:
    """The same with what its inputs turned out to be."""
    frozen_models = {
        f"{kind}/{key}": identify(tree) for kind in ("params", "lora") for key, tree in frozen[kind].items()
    }
    sums = {name: hashlib.sha256(value.tobytes()).hexdigest() for name, value in sorted(columns.items())}
    made = {"model": start.identity, "scores": digest(sums), "frozen models": digest(frozen_models)}
    return {**training_key(run, training), **made}


def _contrast(config: Experiment) -> dict[str, Any]:
    """What pi+ and pi- are made by: their scores say it too, once they are there."""
    section = config.contrast
    prompts = {"positive_prompt": section.positive_prompt, "negative_prompt": section.negative_prompt}
    trained = {"training": _results_of(section.training)}
    parts: Mapping[str, dict[str, Any]] = {"prompts": prompts, "sft": trained, "dpo": {**trained, "beta": section.beta}}
    return {"construction": section.construction, **parts.get(section.construction, {})}


def _results_of(section: StageSection) -> dict[str, Any]:
    """The fields of a section that a result depends on; the others change nothing, or its last bits."""
    free = ("gradient_accumulation_steps", "eval_every", "checkpoint_every", "keep_checkpoints", "max_skipped")
    return {name: value for name, value in dataclasses.asdict(section).items() if name not in free}
