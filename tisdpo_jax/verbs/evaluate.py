"""Looking at models: a run's own, or any that are there; measured on pairs, judged, printed and saved in one way."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import jax

from tisdpo_jax.config import Experiment
from tisdpo_jax.data import EncodedSet
from tisdpo_jax.reporting import Comparison, Grid, grid_text
from tisdpo_jax.roles import Frozen, bind, policy_role
from tisdpo_jax.stages import (
    Base,
    Session,
    Splits,
    Subject,
    adapter_base,
    is_adapter,
    named_path,
    open_session,
    open_subject,
    warn_of_limit,
    warn_of_pairs,
)
from tisdpo_jax.training import Interrupt, listening
from tisdpo_jax.types import Params
from tisdpo_jax.verbs import judge, measure, run_dir
from tisdpo_jax.verbs.measure import Evaluation, evaluation_dir
from tisdpo_jax.verbs.report import write_evaluation
from tisdpo_jax.verbs.samples import model_names


@dataclasses.dataclass(frozen=True, eq=False)
class Looked:
    """What an evaluation found, for the report."""

    directory: Path
    subjects: tuple[Subject, ...] = ()
    done: Evaluation | None = None
    tables: tuple[Comparison, ...] = ()
    measures: tuple[Grid, ...] = ()
    judging: tuple[Grid, ...] = ()


def look(session: Session, pairs: Splits, base: Base, trained: Params) -> Looked:
    """The policy of a run against the model it started from, on its held-out pairs or on `evaluation.data`.

    Results go beside the run's own only for its own pairs.
    """
    section, directory = session.config.evaluation, session.run_dir
    policy, reference = _own_subjects(session, base, trained)
    if section.data or section.reference:
        directory = evaluation_dir(session.config)
        directory.mkdir(parents=True, exist_ok=True)
        pairs = measure.open_pairs(session)
    elif pairs.eval is not None:
        pairs = Splits.measured(pairs.eval)
    if section.reference:
        reference = open_subject(session, "reference", section.reference, frozen=True, pairs=pairs.eval)
    looked = _look(session, pairs, directory, policy, reference)
    if directory != session.run_dir:
        return looked
    return dataclasses.replace(looked, done=None, subjects=())  # they hold the models


def evaluate_run(session: Session, pairs: Splits, base: Base, trained: Params) -> None:
    """`tisdpo evaluate` of a run that is there."""
    if not (session.config.evaluation.data or session.config.evaluation.reference):
        pairs.split("eval")  # says what to set
    looked = look(session, pairs, base, trained)
    if looked.directory != session.run_dir:
        page = write_evaluation(looked.directory, session, looked.done, looked.judging, looked.subjects)
        session.say(f"written  {page}")


def open_models(config: Experiment, directory: Path, interrupt: Interrupt) -> tuple[Session, Splits]:
    """A session for models that are there, and the pairs to measure them on; none where a judge has prompts alone."""
    section, path = config.evaluation, named_path(config.evaluation.reference or config.model.path)
    session = open_session(config, directory, interrupt, model=adapter_base(path) if is_adapter(path) else str(path))
    warn_of_limit(config, session.model.config, session.model_path)
    if section.judge.by and section.judge.prompts and not (section.data or config.data.train):
        return session, Splits(EncodedSet((), (), "none"))
    pairs = measure.open_pairs(session)
    warn_of_pairs(pairs.split("eval"), session.model.config, session.model_path)
    return session, pairs


def evaluate_models(config: Experiment, interrupt: Interrupt) -> None:
    """`evaluation.policy` against `evaluation.reference`, on any pairs, in a directory of its own below `run_dir`."""
    directory, section = evaluation_dir(config), config.evaluation
    with listening(interrupt), run_dir.opened(directory, config):
        session, pairs = open_models(config, directory, interrupt)
        with session.metrics, jax.set_mesh(session.mesh):
            named = section.reference or config.model.path
            reference = open_subject(session, "reference", named, frozen=True, pairs=pairs.eval)
            policy = open_subject(session, "policy", section.policy or "", base=reference, pairs=pairs.eval)
            looked = _look(session, pairs, directory, policy, reference)
            page = write_evaluation(directory, session, looked.done, looked.judging, looked.subjects)
            session.say(f"written  {page}")


def _look(session: Session, pairs: Splits, directory: Path, policy: Subject, reference: Subject) -> Looked:
    section = session.config.evaluation
    done: Evaluation | None = None
    tables: tuple[Comparison, ...] = ()
    measures: tuple[Grid, ...] = ()
    if pairs.eval is None:
        session.say("no held-out pairs (data.eval, data.eval_fraction): nothing is measured\n")
    else:
        if pairs.eval.invalid:
            session.say(f"{measure.listed(pairs.eval)}\n")
        done = measure.evaluate(session, pairs, policy, reference)
        before, after = model_names(session)[-2:]
        models = ("reference", "policy") if section.policy or section.reference else (before, after)
        tables, measures = measure.comparisons(done.scores, done.found.beta, models), done.grids()
        # "before" and "after" are words for a run, not for any two models
        for grid in (*(table.grid() for table in tables if not section.policy), *measures):
            session.say(grid_text(grid) + "\n")
    judged = None
    if section.judge.by:
        measure.save(directory, pairs, done, tables, None)  # judging may be stopped, and may take long
        judged = judge.judge(session, pairs, directory, policy, reference)
        for invalid_record in judged.invalid[: measure.LISTED]:
            session.say(f"no prompt: {invalid_record}")
        for grid in judge.grids(judged):
            session.say(grid_text(grid) + "\n")
    measure.save(directory, pairs, done, tables, judged)
    judging = judge.grids(judged) if judged is not None else ()
    return Looked(directory, (policy, reference), done, tables, measures, judging)


def _own_subjects(session: Session, base: Base, trained: Params) -> tuple[Subject, Subject]:
    """The policy of the run, and the model that it started from."""
    frozen: Frozen = {"params": {"base": base.frozen()}, "lora": {}}
    policy = bind(policy_role(lora=session.lora), trained, frozen)
    source, model = str(session.run_dir / "models" / "policy"), session.model
    return (
        Subject("policy", source, model, policy, session.tokenizer),
        Subject("reference", str(session.model_path), model, {"params": base.frozen()}, session.tokenizer),
    )
