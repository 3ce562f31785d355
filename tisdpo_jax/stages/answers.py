"""Answers to prompts, by whichever engine; a job that was stopped goes on where it was. Everybody asks here.

prompts -> one for each form of the prompt and each sample -> a file of responses, its key beside it
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import jax

from tisdpo_jax import distributed, generation
from tisdpo_jax.data import Prompt, open_template
from tisdpo_jax.errors import DataError
from tisdpo_jax.generation import Lines, Response
from tisdpo_jax.stages.generators import Generator, answers_key, end_options
from tisdpo_jax.stages.positions import warn_of_rows
from tisdpo_jax.stages.session import Session
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
            if jax.process_count() > 1:
                one = "run `tisdpo generate` on one machine first"
                raise DataError(f"sampling.engine http asks from one process; {one}")
            fields = "sampling.url, sampling.endpoint_model"
            endpoint = generation.open_endpoint(section.url, section, KEYS, fields)
            options = generation.options_of(section, session.config.data.template)
            witness = next((one for one in asked if one.id in there and there[one.id].finish == "stop"), None)
            generation.ask_endpoint(endpoint, left, options, take=take, poll=poll, witness=witness)
        elif left:
            for batch in _drawn(session, generator, left, poll):
                take(*batch)
    finally:
        bar.close()
    return {prompt.id: there[prompt.id] for prompt in asked}


def _drawn(
    session: Session, generator: Generator | None, left: Sequence[Prompt], poll: Callable[[], None]
) -> Iterator[list[Response]]:
    """Answers of our own engine, batch by batch; `poll` is called between two."""
    if generator is None:
        raise ValueError("answers: engine local needs a generator")
    section, tokenizer, files = session.config.sampling, session.tokenizer, generator.files or session.model_path
    requests = generation.read_by_model(left, open_template(session.config.data.template, tokenizer), tokenizer)
    lengths = [len(one.ids) + section.max_new_tokens for one in requests if len(one.ids) <= section.max_prompt]
    field = "sampling.max_prompt, or sampling.max_new_tokens,"
    warn_of_rows(lengths, generator.model.config, files, "prompts with the longest answers that they may get", field)
    decode, options = functools.partial(tokenizer.decode, skip_special_tokens=True), end_options(session, generator)
    poll()
    for batch in generation.sample(generator.model, generator.variables(), requests, options, decode=decode):
        yield batch
        poll()
