"""The verbs that work on a run: its graph, made as far as the verb goes; what is there is taken from the directory."""

from __future__ import annotations

import dataclasses
import json
import logging
from pathlib import Path
from typing import Any

import jax

from tisdpo_jax import distributed
from tisdpo_jax.artifacts import Run, Stage, changes, order
from tisdpo_jax.checkpoint import other_configuration
from tisdpo_jax.config import Experiment, JudgeSection, replaced, resolved, with_prompts
from tisdpo_jax.errors import ConfigError
from tisdpo_jax.recipes import Graph, graph_of, wanted_reads
from tisdpo_jax.reporting import histogram
from tisdpo_jax.roles import Frozen, bind, policy_role
from tisdpo_jax.stages import Base, Chosen, Columns, Session, Splits, Training, open_session, round_prompts
from tisdpo_jax.training import Interrupt, keep_on_disk, listening
from tisdpo_jax.types import Params, Variables
from tisdpo_jax.verbs import run_dir
from tisdpo_jax.verbs.checks import open_checks
from tisdpo_jax.verbs.evaluate import evaluate_models, evaluate_run, look
from tisdpo_jax.verbs.export import export
from tisdpo_jax.verbs.held_out import compare_answers
from tisdpo_jax.verbs.judges import open_scorer
from tisdpo_jax.verbs.report import write_report
from tisdpo_jax.verbs.reward import check_exportable, evaluate_reward_model, export_reward_model, finish_reward_model
from tisdpo_jax.verbs.samples import take_samples

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
                f"evaluation.policy names a model for `tisdpo evaluate`; leave it out for `tisdpo {verb}`"
            )
        evaluate_models(config, interrupt)
        return
    graph = graph_of(config, contrast=verb == "score")
    if verb in ("evaluate", "export"):
        _check_there(directory, graph.policy)
    with listening(interrupt), run_dir.opened(directory, _of_the_run(config)):
        session = open_session(config, directory, interrupt)
        with session.metrics, jax.set_mesh(session.mesh):
            {"evaluate": _evaluate, "export": _export}.get(verb, _make)(verb, session, graph)


def _check_there(directory: Path, goal: Training) -> None:
    """Raises ConfigError when the run has no policy yet: what looks at a run makes nothing, not even a directory."""
    what = "reward model" if goal.kind == "reward" else goal.kind
    alike = [stage for stage in order(goal) if isinstance(stage, Training) and stage.kind == goal.kind]
    for place in [directory / stage.place / "models" / stage.kind for stage in alike]:
        if not place.is_dir():
            raise ConfigError(
                f"run_dir {directory}: no trained {what} is there ({place}); `tisdpo run` with this configuration "
                "makes it, or name the run_dir that has it"
            )


def _of_the_run(config: Experiment) -> Experiment:
    """The configuration as the run records it: not what one evaluation looked at."""
    if config.recipe == "dlma":
        return config
    section = config.evaluation
    looked_at: dict[str, Any] = {"policy": None, "reference": None, "data": None, "judge": JudgeSection()}
    there = {field.name for field in dataclasses.fields(section)}
    section = dataclasses.replace(section, **{name: value for name, value in looked_at.items() if name in there})
    return replaced(config, "evaluation", section)


def _make(verb: str, session: Session, graph: Graph) -> None:
    """`score`, `train` and `run`."""
    config, run, place = session.config, Run(session), session.run_dir / graph.policy.place
    if not graph.pairs.inputs:
        run(graph.pairs)  # records are read before any model
    check_unchanged(run, graph.policy)
    if config.recipe == "reward":
        check_exportable(session, run(graph.pairs))
    open_checks(config.evaluation.checks)  # what is wrong with them is said now, not after training
    if config.recipe == "dlma" and config.evaluation.judge.by and verb == "run":
        open_scorer(session)
    if not wanted_reads(config) and config.contrast.construction in ("sft", "dpo"):
        log.info("loss.name %s reads nothing of pi+ and pi-: they are not trained", config.loss.name)
    for stage in graph.scored:
        run(stage)
    if verb == "score":
        session.say(f"pairs    {place / 'pairs.jsonl'}" if config.recipe == "dlma" else f"scores   {place / 'scores'}")
        return
    base, trained = run(graph.base), run(graph.policy)
    if verb == "train":
        session.say(f"{graph.policy.kind:<8} {place / 'models' / graph.policy.kind}")
        return
    pairs, columns = run(graph.pairs), {split: run(stage) for split, stage in graph.columns}
    if config.recipe == "reward":
        _say_paths(session, finish_reward_model(session, pairs, base, trained))
    elif config.recipe == "dlma":
        first = run(graph.first)
        _finish_on_prompts(session, graph, pairs, columns, first, base, trained)
    else:
        del run  # the base is given up for the pretrained model, where they are two
        _finish_on_pairs(session, pairs, columns, base, trained)


def _finish_on_pairs(session: Session, pairs: Splits, columns: dict[str, Columns], base: Base, trained: Params) -> None:
    looked = look(session, pairs, base, trained)
    written = export(session, base, trained)
    samples = take_samples(session, pairs, base, trained)
    grids: Any = {"measures": looked.measures, "judging": looked.judging}
    report = write_report(session, pairs, looked.tables, samples, columns, **grids)
    for line in samples.lines():
        session.say(line)
    _say_paths(session, [*written, report])


def _finish_on_prompts(
    session: Session,
    graph: Graph,
    pairs: Splits,
    columns: dict[str, Columns],
    first: Base,
    base: Base,
    trained: Params,
) -> None:
    tables, samples = compare_answers(session, round_prompts(session.config)[1], *_both(session, first, base, trained))
    written = export(session, base, trained)
    assert isinstance(pairs, Chosen)
    chart = histogram("Self-reward R", "nats; below 0 the label is turned round", {"candidates": pairs.rewards})
    metrics = session.run_dir / graph.policy.place / "metrics.jsonl"
    report = write_report(session, pairs, tables, samples, columns, rewards=chart, metrics=metrics)
    _say_paths(session, [*written, report])


def _evaluate(verb: str, session: Session, graph: Graph) -> None:
    run = Run(session, makes=False)
    if session.config.recipe == "dlma":
        first, base, trained = run(graph.first), run(graph.base), run(graph.policy)
        compare_answers(session, round_prompts(session.config)[1], *_both(session, first, base, trained))
    elif session.config.recipe == "reward":
        evaluate_reward_model(session, run(graph.pairs), run(graph.base), run(graph.policy))
    else:
        pairs = run(graph.pairs)
        evaluate_run(session, pairs, run(graph.base), run(graph.policy))


def _both(session: Session, first: Base, base: Base, trained: Params) -> tuple[Variables, Variables]:
    """The model before and the policy."""
    frozen: Frozen = {"params": {"base": base.frozen()}, "lora": {}}
    return {"params": first.frozen()}, bind(policy_role(lora=session.lora), trained, frozen)


def _export(verb: str, session: Session, graph: Graph) -> None:
    run = Run(session, makes=False)
    if not graph.pairs.inputs:
        run(graph.pairs)
    if session.config.recipe == "reward":
        models = run(graph.base), run(graph.policy)
        _say_paths(session, [export_reward_model(session, run(graph.pairs), *models)])
        return
    _say_paths(session, export(session, run(graph.base), run(graph.policy)))


def check_unchanged(run: Run, *goals: Stage) -> None:
    """Compares what a directory holds with the configuration, as far as that is known before anything is made.

    Raises: CheckpointError that names the result and what differs, both values.
    """
    for stage in reversed(order(*goals)):
        stored = stage.stored(run.context)
        if stored is not None and not stored.remade and (changed := changes(run, stage, stored)):
            raise other_configuration(stored.path, changed)


def _say_paths(session: Session, paths: list[Path]) -> None:
    for path in paths:
        session.say(f"{path.stem if path.suffix else path.name:<8} {path}")
