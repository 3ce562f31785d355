"""Answers to prompts, by whichever engine; a job that was stopped goes on where it was. Everybody asks here.

prompts -> one for each form of the prompt and each sample -> a file of responses, its key beside it
"""

from __future__ import annotations

import dataclasses
import functools
import logging
from collections.abc import Sequence
from pathlib import Path

import jax

from tisdpo_jax import distributed, generation
from tisdpo_jax.artifacts import digest
from tisdpo_jax.config import GenerateRecipe, GenerateSection, carried, replaced
from tisdpo_jax.data import Prompt
from tisdpo_jax.generation import Lines, Response
from tisdpo_jax.stages.prompts import Generator, answers_key, drawn, generator_of, prompts_in_views
from tisdpo_jax.stages.session import Session
from tisdpo_jax.stages.subjects import Subject
from tisdpo_jax.training import Progress

log = logging.getLogger(__name__)

KEYS = ("TISDPO_API_KEY", "OPENAI_API_KEY")  # environment variables, the first that is set
RESPONSES = "responses.jsonl"


def answers(
    session: Session, generator: Generator | None, asked: Sequence[Prompt], path: Path, label: str
) -> dict[str, Response]:
    """A response to every prompt, by id; those that `path` holds are not made again. `generator` is for engine local.

    Raises: CheckpointError when what is on disk was made from something else; Interrupted; what the engine raises.
    """
    section = session.config.sampling
    generation.check_key(path, answers_key(session, generator, asked))
    distributed.wait_for_all(f"key of {path.name}")
    if section.engine == "files":
        return generation.from_file(asked, path)
    kept, poll = Lines(path), functools.partial(session.interrupt.poll, label)
    there = {name: generation.read_response(record, where) for name, (where, record) in kept.rows.items()}
    distributed.wait_for_all(f"{label}: what is there")
    left = [prompt for prompt in asked if prompt.id not in there]
    done = len(asked) - len(left)
    if done:
        log.info("%s: %d of %d are there already", label, done, len(asked))
    bar = Progress(label, len(asked), done=done, unit="answer", enabled=session.config.logging.progress)

    def take(*responses: Response) -> None:
        there.update((response.id, response) for response in responses)
        if jax.process_index() == 0:
            kept.add(map(generation.as_line, responses))
        for _ in responses:
            bar.advance()

    try:
        if left and section.engine == "http":
            fields = "sampling.url, sampling.endpoint_model"
            endpoint = generation.open_endpoint(section.url, section, KEYS, fields)
            options = generation.options_of(section, session.config.data.template)
            witness = next((one for one in asked if one.id in there and there[one.id].finish == "stop"), None)
            generation.ask_endpoint(endpoint, left, options, take=take, poll=poll, witness=witness)
        elif left:
            for batch in drawn(session, generator, left, poll):
                take(*batch)
    finally:
        bar.close()
    return {prompt.id: there[prompt.id] for prompt in asked}


def answers_of(
    session: Session, subject: Subject, prompts: Sequence[Prompt], folder: Path, *, temperature: float = 0.0
) -> list[Response | None]:
    """A model's answers with the settings of `evaluation`, in its own tokenizer, kept in `folder` under what they are.

    None where the template cannot write the prompt. Raises: Interrupted between two batches.
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
