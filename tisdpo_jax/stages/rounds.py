"""The first stages of a round of DLMA: answers behind two opposite prompts, and the pairs that they offer."""

from __future__ import annotations

import dataclasses
import json
import logging
from typing import Any

from tisdpo_jax.artifacts import Run, Stage, Stored, Unkept
from tisdpo_jax.config import Experiment
from tisdpo_jax.data import InvalidRecord, PairSet, Prompt, apply_policy, split_prompts
from tisdpo_jax.errors import DataError
from tisdpo_jax.generation import open_prompts, summary
from tisdpo_jax.stages import self_reward
from tisdpo_jax.stages.answers import RESPONSES, answers
from tisdpo_jax.stages.pairs import Splits
from tisdpo_jax.stages.positions import warn_of_limit
from tisdpo_jax.stages.prompts import Generator, asked_key, prompts_in_views
from tisdpo_jax.stages.selection_counts import nothing_left
from tisdpo_jax.stages.session import Session

log = logging.getLogger(__name__)


def round_prompts(config: Experiment) -> tuple[tuple[Prompt, ...], tuple[Prompt, ...]]:
    """Prompts to train on, and held-out ones."""
    prompts, _ = open_prompts(config.sampling.prompts, config.sampling.limit)
    if config.dlma.eval_prompts:
        return prompts, open_prompts(config.dlma.eval_prompts, 0)[0]
    if not config.dlma.eval_fraction:
        raise DataError("DLMA is evaluated on held-out prompts; set dlma.eval_prompts or dlma.eval_fraction")
    train, held_out = split_prompts(prompts, config.dlma.eval_fraction, config.data.seed, config.sampling.prompts)
    return train, held_out


@dataclasses.dataclass(frozen=True)
class Responses:
    """Answers to all prompts behind the positive and the negative prompt. Its value is id -> response."""

    place: str
    model: Stage

    @property
    def name(self) -> str:
        return f"{self.place} responses"

    @property
    def inputs(self) -> tuple[Stage, ...]:
        return (self.model,)

    def key(self, run: Run) -> dict[str, Any]:
        return asked_key(run.context, _asked(run.context)[0])

    def stored(self, context: Session) -> Stored | None:
        path = context.run_dir / self.place / RESPONSES
        try:
            key = json.loads(path.with_name(f"{path.stem}.key.json").read_text(encoding="utf-8"))
            there, asked = path.read_bytes().count(b"\n"), len(_asked(context)[0])
        except (OSError, ValueError):
            return None  # `answers` says what is wrong with them
        return Stored(path, key, there >= asked, f"{there} of {asked} prompts are answered")

    def make(self, run: Run) -> dict[str, Any]:
        session, base = run.context, run(self.model)
        asked, unusable = _asked(session)
        for invalid_record in unusable:
            log.warning("no prompt: %s", invalid_record)
        generator = Generator(session.model, lambda: {"params": base.frozen()}, {"params": base.identity})
        path, label = session.run_dir / self.place / RESPONSES, self.place.replace("-", " ")
        responses = answers(session, generator, asked, path, f"{label}: answers")
        session.say(f"{label}\nanswers  {summary(list(responses.values()))}")
        return responses


def _asked(session: Session) -> tuple[list[Prompt], list[InvalidRecord]]:
    prompts, _ = round_prompts(session.config)
    return prompts_in_views(session, prompts, ("plus", "minus"), session.config.sampling.samples)


@dataclasses.dataclass(frozen=True, eq=False)
class Offered(Splits):
    """Pairs of answers, that behind the positive prompt first."""

    records: PairSet = dataclasses.field(kw_only=True)


@dataclasses.dataclass(frozen=True)
class Candidates(Unkept):
    """All pairs of answers as tokens, those that cannot be used among the invalid. Its value is `Offered`."""

    responses: Responses

    @property
    def name(self) -> str:
        return f"{self.responses.place} candidates"

    @property
    def inputs(self) -> tuple[Stage, ...]:
        return (self.responses,)

    def make(self, run: Run) -> Offered:
        session: Session = run.context
        config, prompts = session.config, round_prompts(session.config)[0]
        warn_of_limit(config, session.model.config, session.model_path)
        options = {"unfinished": config.dlma.unfinished}
        records = self_reward.candidates(prompts, run(self.responses), config.sampling.samples, **options)
        encoded = apply_policy(session.encoder.pairs(records), "skip", 1.0)
        if not encoded.groups:
            raise DataError(f"{self.responses.place}: {nothing_left(encoded.invalid)}")
        return Offered(encoded, records=records)
