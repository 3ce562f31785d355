"""The whole job, as `tisdpo run` tells it, and its parts, as the other verbs do.

Every part makes sure of what it builds on: what an earlier call has done is taken from the run directory.
"""

from __future__ import annotations

import dataclasses
import json
import logging
from pathlib import Path

import jax

from tisdpo_jax import distributed
from tisdpo_jax.artifacts import Run, Stage, changes, order
from tisdpo_jax.checkpoint import other_configuration
from tisdpo_jax.config import Experiment, JudgeSection, resolved, with_prompts
from tisdpo_jax.errors import ConfigError
from tisdpo_jax.estimators import CONTRAST
from tisdpo_jax.recipes import dlma, evaluate, judge, run_dir
from tisdpo_jax.recipes.checks import open_checks
from tisdpo_jax.recipes.evaluate import Evaluation, evaluation_dir, open_evaluation
from tisdpo_jax.recipes.export import export
from tisdpo_jax.recipes.report import write_evaluation, write_report
from tisdpo_jax.recipes.samples import model_names, take_samples
from tisdpo_jax.recipes.tisdpo import Graph, tisdpo, wanted_reads
from tisdpo_jax.reporting import Comparison, Grid, grid_text
from tisdpo_jax.roles import Frozen, bind, policy_role
from tisdpo_jax.stages import Base, Session, Subject, open_session, open_subject
from tisdpo_jax.training import Interrupt, keep_on_disk, listening
from tisdpo_jax.types import Params

log = logging.getLogger(__name__)


def perform(verb: str, config: Experiment) -> None:
    """Does `run`, `train`, `score`, `evaluate` or `export` in `config.run_dir`; each stops at its stage.

    `evaluate` with `evaluation.policy` is about models that are there: it opens no run and trains nothing.
    """
    config = with_prompts(config)
    keep_on_disk(config.compile_cache)
    directory, interrupt = Path(config.run_dir).expanduser(), Interrupt()
    # a run may be found in another place by each process, and log to another terminal; all else must agree
    alike = dataclasses.replace(config, logging=type(config.logging)())
    distributed.check_alike(json.dumps(resolved(alike), sort_keys=True))
    if config.evaluation.judge.by and verb in ("run", "evaluate") and jax.process_count() > 1:
        raise ConfigError("evaluation.judge.by: judging runs in one process; evaluate an export on one machine")
    if config.evaluation.policy:
        if verb != "evaluate":
            raise ConfigError(
                f"evaluation.policy names a model for `tisdpo evaluate`; leave it empty for `tisdpo {verb}`"
            )
        evaluate_models(config, interrupt)
        return
    if verb in ("evaluate", "export"):
        _check_there(directory, config)
    if config.dlma.rounds:
        dlma.perform_rounds(verb, config)
        return
    with listening(interrupt), run_dir.opened(directory, _of_the_run(config)):
        session = open_session(config, directory, interrupt)
        try:
            with jax.set_mesh(session.mesh):
                _perform(verb, session)
        finally:
            session.metrics.close()


def _check_there(directory: Path, config: Experiment) -> None:
    """Raises ConfigError when the run has no policy yet: what looks at a run makes nothing, not even a directory."""
    places = [directory / f"round-{number + 1}" for number in range(config.dlma.rounds)] or [directory]
    for place in places:
        if not (place / "models" / "policy").is_dir():
            raise ConfigError(
                f"run_dir {directory}: no trained policy is there ({place / 'models' / 'policy'}); `tisdpo run` with "
                "this configuration makes it, or name the run_dir that has it"
            )


def _of_the_run(config: Experiment) -> Experiment:
    """The configuration as the run records it: not what one evaluation looked at."""
    section = dataclasses.replace(config.evaluation, policy="", reference="", data="", judge=JudgeSection())
    return dataclasses.replace(config, evaluation=section)


def _perform(verb: str, session: Session) -> None:
    if verb == "evaluate":
        _evaluate(session)
        return
    if verb == "export":
        _say_paths(export(session, *finished(session, tisdpo(session.config))))
        return
    config = session.config
    graph = tisdpo(config, extra=CONTRAST if verb == "score" and config.contrast.construction != "none" else ())
    check_unchanged(session, graph.policy)
    open_checks(config.evaluation.checks)  # what is wrong with them is said now, not after training
    if not wanted_reads(config) and config.contrast.construction in ("sft", "dpo"):
        log.info("loss.name %s reads nothing of pi+ and pi-: they are not trained", config.loss.name)
    run = Run(session)
    columns = {split: run(stage) for split, stage in graph.columns}
    if verb == "score":
        _say(f"scores   {session.run_dir / 'scores'}")
        return
    base, trained = run(graph.base), run(graph.policy)
    if verb == "train":
        _say(f"policy   {session.run_dir / 'models' / 'policy'}")
        return
    del run
    policy, reference = _own_subjects(session, base, trained)
    measured, directory = _to_measure(session)
    if config.evaluation.reference:
        reference = open_subject(measured, "reference", config.evaluation.reference, frozen=True)
    looked = _look(measured, directory, policy, reference)
    written = export(session, base, trained)
    del policy, reference  # the base is given up for the pretrained model, where they are two
    looked = dataclasses.replace(looked, done=None)  # which holds them too
    samples = take_samples(session, base, trained)
    report = write_report(session, looked.tables, samples, columns, measures=looked.measures, judging=looked.judging)
    for line in samples.lines():
        _say(line)
    _say_paths(written)
    _say(f"report   {report}")


def check_unchanged(session: Session, *goals: Stage) -> None:
    """Compares what a directory holds with the configuration, as far as that is known before anything is made.

    Raises: CheckpointError that names the result and what differs, both values.
    """
    for stage in reversed(order(*goals)):
        stored = stage.stored(session)
        if stored is not None and (changed := changes(session, stage, stored)):
            raise other_configuration(stored.path, changed)


def finished(session: Session, graph: Graph) -> tuple[Base, Params]:
    """What a run that is there started from, and its policy. Nothing is made.

    Raises: ConfigError when it has not come so far; CheckpointError when it was another configuration's.
    """
    run = Run(session, makes=False)
    return run(graph.base), run(graph.policy)


def _evaluate(session: Session) -> None:
    """The policy of a run that is there, on its held-out pairs or on others."""
    policy, reference = _own_subjects(session, *finished(session, tisdpo(session.config)))
    measured, directory = _to_measure(session)
    if session.config.evaluation.reference:
        reference = open_subject(measured, "reference", session.config.evaluation.reference, frozen=True)
    if measured.eval is None:
        measured.split("eval")  # says what to set
    looked = _look(measured, directory, policy, reference)
    if directory != session.run_dir:
        _say(f"written  {write_evaluation(directory, measured, looked.done, looked.judging, (policy, reference))}")


def evaluate_models(config: Experiment, interrupt: Interrupt) -> None:
    """`evaluation.policy` against `evaluation.reference`, on any pairs, in a directory of its own below `run_dir`."""
    directory = evaluation_dir(config)
    with listening(interrupt), run_dir.opened(directory, config):
        session = open_evaluation(config, directory, interrupt)
        with jax.set_mesh(session.mesh):
            named = config.evaluation.reference or config.model.path
            reference = open_subject(session, "reference", named, frozen=True)
            policy = open_subject(session, "policy", config.evaluation.policy, base=reference)
            looked = _look(session, directory, policy, reference)
            page = write_evaluation(directory, session, looked.done, looked.judging, (policy, reference))
            _say(f"written  {page}")


@dataclasses.dataclass(frozen=True, eq=False)
class _Looked:
    """What an evaluation found, for the report."""

    done: Evaluation | None
    tables: tuple[Comparison, ...]
    measures: tuple[Grid, ...]
    judging: tuple[Grid, ...]


def _look(session: Session, directory: Path, policy: Subject, reference: Subject) -> _Looked:
    """Measures, judges, prints and saves: the one way, whatever the models come from."""
    done: Evaluation | None = None
    tables: tuple[Comparison, ...] = ()
    measures: tuple[Grid, ...] = ()
    if session.eval is None:
        _say("no held-out pairs (data.eval, data.eval_fraction): nothing is measured\n")
    else:
        if session.eval.invalid:
            _say(f"{evaluate.listed(session.eval)}\n")
        done = evaluate.evaluate(session, policy, reference)
        before, after = model_names(session)[-2:]
        section = session.config.evaluation
        models = ("reference", "policy") if section.policy or section.reference else (before, after)
        tables, measures = evaluate.comparisons(done.scores, done.found.beta, models), done.grids()
        # "before" and "after" are words for a run, not for any two models
        shown = [table.grid() for table in tables] if not session.config.evaluation.policy else []
        for grid in (*shown, *measures):
            _say(grid_text(grid) + "\n")
    judged = None
    if session.config.evaluation.judge.by:
        evaluate.save(directory, session, done, tables, None)  # judging may be stopped, and may take long
        judged = judge.judge(session, directory, policy, reference)
        for invalid_record in judged.invalid[: evaluate.LISTED]:
            _say(f"no prompt: {invalid_record}")
        for grid in judge.grids(judged):
            _say(grid_text(grid) + "\n")
    evaluate.save(directory, session, done, tables, judged)
    return _Looked(done, tables, measures, judge.grids(judged) if judged is not None else ())


def _own_subjects(session: Session, base: Base, trained: Params) -> tuple[Subject, Subject]:
    """The policy of the run, and the model that it started from."""
    frozen: Frozen = {"params": {"base": base.frozen()}, "lora": {}}
    made = [bind(policy_role(lora=session.lora), trained, frozen), {"params": base.frozen()}]
    sources = [str(session.run_dir / "models" / "policy"), str(session.model_path)]
    policy, reference = (
        Subject(name, source, session.model, variables, session.tokenizer)
        for name, source, variables in zip(("policy", "reference"), sources, made, strict=True)
    )
    return policy, reference


def _to_measure(session: Session) -> tuple[Session, Path]:
    """The session with the pairs to measure on, and where results go: beside the run's own only for its own pairs."""
    section = session.config.evaluation
    if not (section.data or section.reference):
        return (session if session.eval is None else evaluate.measuring(session, session.eval)), session.run_dir
    directory = evaluation_dir(session.config)
    directory.mkdir(parents=True, exist_ok=True)
    return evaluate.measuring(session, evaluate.open_pairs(session)), directory


def _say_paths(paths: list[Path]) -> None:
    for path in paths:
        _say(f"{path.name:<8} {path}")


def _say(text: str) -> None:
    if jax.process_index() == 0:
        print(text, flush=True)
