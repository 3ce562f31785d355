"""What the models of a run answer to held-out prompts: as loaded, after SFT where there was any, and at the end."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence

import jax

from tisdpo_jax.artifacts import write_text
from tisdpo_jax.data import Prompt
from tisdpo_jax.generation import Response, prompts_of
from tisdpo_jax.judging import is_refusal
from tisdpo_jax.reporting import UNFOLDED, Sample, Score, ShownAnswer, as_plain, grid_text, headlines, score_grid
from tisdpo_jax.roles import Frozen, bind, policy_role
from tisdpo_jax.stages import Base, Session, Splits, Subject, answers_of, models
from tisdpo_jax.types import Params, Variables
from tisdpo_jax.verbs.checks import Check, check_of, open_checks

DIRECTORY, RESULT = "samples", "samples.json"


@dataclasses.dataclass(frozen=True)
class Samples:
    """Answers of the models in the order in which they came to be, and what checks found in them."""

    shown: tuple[Sample, ...] = ()
    scores: tuple[Score, ...] = ()
    prompts: str = "held-out"  # or "training", where none are held out

    def lines(self) -> list[str]:
        """For a terminal: the first prompts with their answers, then the table of all."""
        found = []
        for sample in self.shown[:UNFOLDED]:
            width = max(len(answer.model) for answer in sample.answers)
            found.append(f"{'prompt':<{width}}  {sample.prompt!r}")
            for answer in sample.answers:
                found.append(f"{answer.model:<{width}}  {answer.text!r}{' (cut off)' if answer.unfinished else ''}")
                found.append(f"{'':<{width}}  {answer.note}")
            found.append("")
        if self.scores:
            found.append(grid_text(score_grid(self.scores)) + "\n")
        return [*found, *headlines(self.scores)]


def model_names(session: Session) -> tuple[str, ...]:
    """What the models of the run are called, from the first to the last."""
    last = f"after {session.config.loss.title}"
    return ("pretrained", *(("after SFT",) if session.config.sft.epochs else ()), last)


def take_samples(session: Session, pairs: Splits, base: Base, trained: Params) -> Samples:
    """Greedy answers to the first `evaluation.generate` held-out prompts (training prompts where none are held out).

    They are kept in the run directory as they are made, and are not made again. Base and pretrained model are not on
    the devices at one time.

    Raises: Interrupted between two batches.
    """
    section = session.config.evaluation
    groups = (pairs.eval or pairs.train).groups if section.generate else ()
    prompts = prompts_of(groups, section.generate)
    checks = open_checks(section.checks)
    folder, columns = session.run_dir / DIRECTORY, dict[str, list[Response | None]]()
    for name, make in _models(session, base, trained) if prompts else ():
        subject = Subject(name, str(session.run_dir), session.model, make(), session.tokenizer)
        columns[name] = answers_of(session, subject, prompts, folder)
        del subject
    rows = [
        (prompt, [one for one in column if one is not None])
        for prompt, *column in zip(prompts, *columns.values(), strict=True)
        if None not in column
    ]
    if not rows:
        return Samples()
    samples = side_by_side(tuple(columns), rows, checks)
    samples = dataclasses.replace(samples, prompts="training" if pairs.eval is None else "held-out")
    if jax.process_index() == 0:
        write_text(session.run_dir / RESULT, json.dumps(as_plain(samples), indent=1, ensure_ascii=False) + "\n")
    return samples


def side_by_side(
    names: tuple[str, ...], rows: Sequence[tuple[Prompt, list[Response]]], checks: tuple[Check, ...]
) -> Samples:
    """Prompts with the answers of the models `names`, and what `checks` find in them."""
    shown = []
    for prompt, responses in rows:
        check = check_of(checks, prompt.id)
        both = zip(names, responses, strict=True)
        shown.append(Sample(prompt.text, tuple(_answer(name, response, check) for name, response in both)))
    return Samples(tuple(shown), _scores(names, rows, checks))


def _models(session: Session, base: Base, trained: Params) -> list[tuple[str, Callable[[], Variables]]]:
    """How each model of the run is had, by its name; the pretrained one takes the place of the base for its time."""

    def pretrained() -> Variables:
        base.drop()
        params, freeze = models.load_pretrained(session), models.freeze_of(session)
        return {"params": freeze(params) if freeze else params}

    def start() -> Variables:
        return {"params": base.frozen()}

    def policy() -> Variables:
        frozen: Frozen = {"params": {"base": base.frozen()}, "lora": {}}
        return bind(policy_role(lora=session.lora), trained, frozen)

    names = model_names(session)
    made = [pretrained, start, policy] if len(names) > 2 else [start, policy]
    return list(zip(names, made, strict=True))


def _answer(name: str, response: Response, check: Check | None) -> ShownAnswer:
    """An answer, with a line that says what was looked for and whether it was there."""
    text, unfinished = response.response, response.finish == "length"
    if response.finish == "too long":
        return ShownAnswer(name, "", False, "not asked: the prompt is longer than data.max_length", None)
    if check is None:
        return ShownAnswer(name, text, unfinished, f"refuses: {'yes' if is_refusal(text) else 'no'}", None)
    hit = check.hit(text)
    note = f"{check.name}: " + (f"yes (“{hit}”)" if hit else "no")
    return ShownAnswer(name, text, unfinished, note, hit is not None)


def _scores(
    names: tuple[str, ...], rows: Sequence[tuple[Prompt, list[Response]]], checks: tuple[Check, ...]
) -> tuple[Score, ...]:
    """How many answers of each model pass, by group of prompts; then how many refuse, which is read by a rule alone."""
    passed: dict[tuple[str, str], list[list[bool]]] = {}
    refused: dict[tuple[str, str], list[list[bool]]] = {}
    for prompt, responses in rows:
        check = check_of(checks, prompt.id)
        group = "prompts"
        if check is not None:
            group = check.group
            hits = [check.hit(response.response) is not None for response in responses]
            passed.setdefault((group, check.name), []).append(hits)
        refusals = [is_refusal(response.response) for response in responses]
        refused.setdefault((group, "refuses (“I can't help with that”)"), []).append(refusals)
    return tuple(
        Score(group, name, names, tuple(sum(column) for column in zip(*counted, strict=True)), len(counted), wanted)
        for kind, wanted in ((passed, True), (refused, None))
        for (group, name), counted in kind.items()
    )
