"""`tisdpo generate`: answers to prompts, into a file."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import jax

from tisdpo_jax import distributed
from tisdpo_jax.config import Experiment, with_prompts
from tisdpo_jax.recipes import run_dir
from tisdpo_jax.stages import (
    RESPONSES,
    answers,
    generator_of,
    open_prompts,
    open_session,
    open_subject,
    prompts_in_views,
    summary,
)
from tisdpo_jax.training import Interrupt, keep_on_disk, listening


def generate(config: Experiment) -> None:
    """`tisdpo generate`: answers to `sampling.prompts`, into `run_dir`/responses.jsonl."""
    config = with_prompts(config)
    keep_on_disk(config.compile_cache)
    directory, interrupt = Path(config.run_dir).expanduser(), Interrupt()
    distributed.check_alike(json.dumps(dataclasses.asdict(config.sampling), sort_keys=True))
    with listening(interrupt), run_dir.opened(directory, config):
        session = open_session(config, directory, interrupt)
        with session.metrics, jax.set_mesh(session.mesh):
            prompts, invalid = open_prompts(config.sampling.prompts, config.sampling.limit)
            asked, unusable = prompts_in_views(session, prompts, (config.sampling.show,), config.sampling.samples)
            subject = (
                open_subject(session, "policy", config.sampling.policy or str(session.model_path), frozen=True)
                if config.sampling.engine == "local"
                else None
            )
            generator = None if subject is None else generator_of(session, subject)
            path = directory / RESPONSES
            found = answers(session, generator, asked, path, "answers")
    if jax.process_index() == 0:
        for invalid_record in (*invalid, *unusable):
            print(f"no prompt: {invalid_record}")
        print(f"{summary(list(found.values()))}\nresponses {path}", flush=True)
