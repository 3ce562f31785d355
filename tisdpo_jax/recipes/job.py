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
from tisdpo_jax.config import Experiment, resolved
from tisdpo_jax.evaluation import Comparison, table_text
from tisdpo_jax.recipes import evaluate, run_dir
from tisdpo_jax.recipes.export import export
from tisdpo_jax.recipes.models import Base
from tisdpo_jax.recipes.report import write_report
from tisdpo_jax.recipes.session import Session, open_session
from tisdpo_jax.recipes.tisdpo import base_stage, contrast_stage, policy_stage, score_stage
from tisdpo_jax.roles import bind, policy_role
from tisdpo_jax.training.interrupt import Interrupt, listening
from tisdpo_jax.types import Params, Variables

log = logging.getLogger(__name__)


def perform(verb: str, config: Experiment) -> None:
    """Does `run`, `train`, `score`, `evaluate` or `export` in `config.run_dir`; each stops at its stage."""
    directory, interrupt = Path(config.run_dir).expanduser(), Interrupt()
    # a run may be found in another place by each process, and log to another terminal; all else must agree
    alike = dataclasses.replace(config, logging=type(config.logging)())
    distributed.check_alike(json.dumps(resolved(alike), sort_keys=True))
    with listening(interrupt), run_dir.opened(directory, config):
        session = open_session(config, directory, interrupt)
        try:
            with jax.set_mesh(session.mesh):
                _perform(verb, session)
        finally:
            session.metrics.close()


def _perform(verb: str, session: Session) -> None:
    base = base_stage(session)
    frozen = contrast_stage(session, base)
    columns = score_stage(session, frozen)
    if verb == "score":
        _say(f"scores   {session.run_dir / 'scores'}")
        return
    trained = policy_stage(session, base, frozen, columns)
    if verb == "train":
        _say(f"policy   {session.run_dir / 'models' / 'policy'}")
        return
    if verb == "export":
        _say_paths(export(session, base, trained))
        return
    before, after = _before_and_after(session, base, trained)
    tables: tuple[Comparison, ...] = ()
    if session.eval is not None:
        tables = evaluate.comparisons(evaluate.measure(session, before, after), session.config.loss.beta)
        evaluate.save(session, tables)
        for table in tables:
            _say(table_text(table) + "\n")
    elif verb == "evaluate":
        session.split("eval")  # says what to set
    else:
        _say("no held-out pairs (data.eval, data.eval_fraction): nothing is evaluated\n")
    if verb == "evaluate":
        return
    samples = evaluate.samples(session, before, after)
    for sample in samples:
        _say(f"prompt   {sample.prompt!r}\nbefore   {sample.before!r}\nafter    {sample.after!r}\n")
    written = export(session, base, trained)
    report = write_report(session, tables, samples, columns)
    _say_paths(written)
    _say(f"report   {report}")


def _before_and_after(session: Session, base: Base, trained: Params) -> tuple[Variables, Variables]:
    frozen = {"params": {"base": base.frozen()}, "lora": {}}
    return {"params": base.frozen()}, bind(policy_role(lora=session.lora), trained, frozen)  # type: ignore[arg-type]


def _say_paths(paths: list[Path]) -> None:
    for path in paths:
        _say(f"{path.name:<8} {path}")


def _say(text: str) -> None:
    if jax.process_index() == 0:
        print(text, flush=True)
