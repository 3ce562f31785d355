"""Prompts as a session shows them, and the answers of a model that is measured."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from pathlib import Path

import jax

from tisdpo_jax import generation
from tisdpo_jax.artifacts import digest
from tisdpo_jax.config import GenerateRecipe, GenerateSection, carried, replaced
from tisdpo_jax.data import InvalidRecord, Prompt, make_views, open_template
from tisdpo_jax.generation import Response
from tisdpo_jax.stages.answers import answers
from tisdpo_jax.stages.generators import answers_key, generator_of
from tisdpo_jax.stages.session import Session
from tisdpo_jax.stages.subjects import Subject

log = logging.getLogger(__name__)


def prompts_in_views(
    session: Session, prompts: Sequence[Prompt], names: Sequence[str], samples: int
) -> tuple[list[Prompt], list[InvalidRecord]]:
    """Every prompt in the views `names` ("main", "plus", "minus"), and the prompts that the template cannot write."""
    data, contrast = session.config.data, session.config.contrast
    both = (contrast.positive_prompt, contrast.negative_prompt) if set(names) - {"main"} else None
    template, views = open_template(data.template, session.tokenizer), make_views(data.system, both)
    return generation.show_prompts(prompts, views, names, samples, template=template, tokenizer=session.tokenizer)


def answers_of(
    session: Session, subject: Subject, prompts: Sequence[Prompt], folder: Path, *, temperature: float = 0.0
) -> list[Response | None]:
    """A model's answers with the settings of `evaluation`, in its own tokenizer, kept in `folder` under what they are.

    None where the template cannot write the prompt.

    Raises: Interrupted between two batches.
    """
    section = session.config.evaluation
    sampling = GenerateSection(
        engine="local",
        temperature=temperature,
        seed=section.seed,
        batch_size=section.batch_size,
        max_new_tokens=section.max_new_tokens,
        max_prompt=session.config.data.max_length,
    )
    config = replaced(carried(session.config, GenerateRecipe), "sampling", sampling)
    session = dataclasses.replace(session, config=config, tokenizer=subject.tokenizer)
    asked, unusable = prompts_in_views(session, prompts, ("main",), 1)
    for invalid_record in unusable if jax.process_index() == 0 else ():
        log.warning("not answered by %s: %s", subject.name, invalid_record)
    if not asked:
        return [None] * len(prompts)
    generator = generator_of(session, subject)
    same = digest(answers_key(session, generator, asked))[:8]
    path = folder / f"{subject.name.replace(' ', '-').lower()}-{same}.jsonl"
    responses = answers(session, generator, asked, path, f"answers of {subject.name}")
    return [responses.get(f"{prompt.id}/main/0") for prompt in prompts]
