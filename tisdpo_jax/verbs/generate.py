"""`tisdpo generate`: answers to prompts, into a file."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import jax

from tisdpo_jax import distributed
from tisdpo_jax.config import Experiment, with_prompts
from tisdpo_jax.generation import open_prompts, summary
from tisdpo_jax.stages import RESPONSES, answers, generator_of, open_session, open_subject, prompts_in_views
from tisdpo_jax.training import Interrupt, keep_on_disk, listening
from tisdpo_jax.verbs import run_dir


def generate(config: Experiment) -> None:
    """Answers to `sampling.prompts`, into `run_dir`/responses.jsonl."""
    config = with_prompts(config)
    keep_on_disk(config.compile_cache)
    directory, interrupt = Path(config.run_dir).expanduser(), Interrupt()
    section = config.sampling
    distributed.check_alike(json.dumps(dataclasses.asdict(section), sort_keys=True))
    with listening(interrupt), run_dir.opened(directory, config):
        session = open_session(config, directory, interrupt)
        with session.metrics, jax.set_mesh(session.mesh):
            prompts, invalid = open_prompts(section.prompts, section.limit)
            asked, unusable = prompts_in_views(session, prompts, (section.show,), section.samples)
            generator = None
            if section.engine == "local":
                policy = section.policy or str(session.model_path)
                generator = generator_of(session, open_subject(session, "policy", policy, frozen=True))
            found = answers(session, generator, asked, directory / RESPONSES, "answers")
    if jax.process_index() == 0:
        for invalid_record in (*invalid, *unusable):
            print(f"no prompt: {invalid_record}")
        print(f"{summary(list(found.values()))}\nresponses {directory / RESPONSES}", flush=True)
