"""Prompts as a session shows them, who answers them, and all that the answers depend on."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from tisdpo_jax import generation
from tisdpo_jax.artifacts import digest
from tisdpo_jax.data import InvalidRecord, Prompt, as_record, make_views, open_template
from tisdpo_jax.generation import Options, Response
from tisdpo_jax.models import Model
from tisdpo_jax.stages import models
from tisdpo_jax.stages.positions import warn_of_rows
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


def prompts_in_views(
    session: Session, prompts: Sequence[Prompt], names: Sequence[str], samples: int
) -> tuple[list[Prompt], list[InvalidRecord]]:
    """Every prompt in the views `names` ("main", "plus", "minus"), and the prompts that the template cannot write."""
    data, contrast = session.config.data, session.config.contrast
    both = (contrast.positive_prompt, contrast.negative_prompt) if set(names) - {"main"} else None
    template, views = open_template(data.template, session.tokenizer), make_views(data.system, both)
    return generation.show_prompts(prompts, views, names, samples, template=template, tokenizer=session.tokenizer)


def options_of_model(session: Session, generator: Generator) -> Options:
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
        "end of answers": str(options_of_model(session, generator).eos_ids),
        **session.encoder.identity,
    }


def drawn(
    session: Session, generator: Generator | None, prompts: Sequence[Prompt], poll: Callable[[], None]
) -> Iterator[list[Response]]:
    """Answers of our own engine, batch by batch; `poll` is called between two."""
    if generator is None:
        raise ValueError("answers: engine local needs a generator")
    section, tokenizer, files = session.config.sampling, session.tokenizer, generator.files or session.model_path
    requests = generation.read_by_model(prompts, open_template(session.config.data.template, tokenizer), tokenizer)
    lengths = [len(one.ids) + section.max_new_tokens for one in requests if len(one.ids) <= section.max_prompt]
    field = "sampling.max_prompt, or sampling.max_new_tokens,"
    warn_of_rows(lengths, generator.model.config, files, "prompts with the longest answers that they may get", field)
    decode = functools.partial(tokenizer.decode, skip_special_tokens=True)
    options = options_of_model(session, generator)
    poll()
    for batch in generation.sample(generator.model, generator.variables(), requests, options, decode=decode):
        yield batch
        poll()
