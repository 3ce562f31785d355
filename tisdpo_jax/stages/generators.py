"""Models that answer prompts: what their answers depend on."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tisdpo_jax import generation
from tisdpo_jax.artifacts import digest
from tisdpo_jax.data import Prompt, as_record
from tisdpo_jax.generation import Options
from tisdpo_jax.models import Model
from tisdpo_jax.stages import models
from tisdpo_jax.stages.session import Session
from tisdpo_jax.stages.subjects import Subject, model_files
from tisdpo_jax.types import Variables


@dataclasses.dataclass(frozen=True, eq=False)
class Generator:
    """Who answers, where this program does."""

    model: Model
    variables: Callable[[], Variables]
    identity: dict[str, str]  # of what `variables` gives
    files: Path | None = None  # of the model, where that is not the session's


def generator_of(session: Session, subject: Subject) -> Generator:
    identity = {name: models.identify(tree) for name, tree in subject.variables.items()}
    return Generator(subject.model, lambda: subject.variables, identity, model_files(session, subject))


def end_options(session: Session, generator: Generator) -> Options:
    """How answers are drawn, with the tokens that end those of this model."""
    template = session.config.data.template
    ends = generation.end_tokens(session.tokenizer, template, generator.files or session.model_path)
    return generation.options_of(session.config.sampling, template, ends)


def asked_key(session: Session, asked: Sequence[Prompt]) -> dict[str, Any]:
    """What answers depend on besides who answers, under the names that an error would use."""
    config, section = session.config, session.config.sampling
    key: dict[str, Any] = {
        "prompts": digest([[prompt.id, as_record(prompt.messages)] for prompt in asked]),
        "sampling.engine": section.engine,
    }
    if section.engine == "files":
        return key
    options = generation.options_of(section, config.data.template)
    drawn = {"max_new_tokens": options.max_new_tokens, "seed": options.seed, "stop": list(options.stop)}
    return key | {"sampling": {**dataclasses.asdict(options.draw), **drawn}}


def answers_key(session: Session, generator: Generator | None, asked: Sequence[Prompt]) -> dict[str, Any]:
    """Everything that the answers depend on."""
    key, section = asked_key(session, asked), session.config.sampling
    if section.engine == "files":
        return key
    if generator is None:
        return key | {"sampling.endpoint_model": section.endpoint_model}
    return key | {
        "model": " ".join(f"{name} {value}" for name, value in sorted(generator.identity.items())),
        "architecture": digest(repr(generator.model.config)),
        "dtype": generator.model.compute.dtype,
        "lora scale": str(generator.model.compute.lora_scale) if "lora" in generator.identity else "none",
        "sampling.max_prompt": str(section.max_prompt),
        "end of answers": str(end_options(session, generator).eos_ids),
        **session.encoder.identity(),
    }
