"""A training as a stage: a model from the one that it starts from, by an objective, on pairs."""

from __future__ import annotations

import dataclasses
import functools
import logging
from typing import Any

from tisdpo_jax.artifacts import Run, Stage, Stored
from tisdpo_jax.checkpoint import save_tree
from tisdpo_jax.config import Experiment, get
from tisdpo_jax.data import Batches, States
from tisdpo_jax.errors import ConfigError
from tisdpo_jax.models import Model
from tisdpo_jax.objectives import Objective
from tisdpo_jax.roles import Roles, resident_bytes
from tisdpo_jax.scoring import Text
from tisdpo_jax.stages import trained as results
from tisdpo_jax.stages.frozen import Columns, Models, frozen_of, needed
from tisdpo_jax.stages.keys import DERIVED, training_key, whole_training_key
from tisdpo_jax.stages.models import Base
from tisdpo_jax.stages.pairs import Splits
from tisdpo_jax.stages.passes import evaluate_held_out, feed
from tisdpo_jax.stages.session import Session
from tisdpo_jax.training import Job, StepSpec, train
from tisdpo_jax.types import Params

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Training:
    """A training of a run. Its value is what was trained: an adapter, or all parameters.

    kind       sft, plus, minus or policy: its directory below `models/` and `checkpoints/`
    objective  what is minimised
    section    of the configuration that says how long and how fast: "sft", "contrast.training" or "train"
    start      the model that it starts from, a stage whose value is a `Base`
    roles      the models of its step
    sides      the responses of a pair that it is trained on
    pairs      a stage whose value is `Splits`
    frozen     (collection, key, stage) of the models that the step reads and does not train
    columns    split -> stage of the values by pair that the step takes; "eval" is evaluated on the way
    states     split -> stage of the reference's hidden states, in place of the reference
    taken      names of the columns that the step takes
    contrasted whether anything that it reads is made from pi+ and pi-
    place      directory below that of the run
    """

    kind: str
    objective: Objective
    section: str
    start: Stage
    roles: Roles
    sides: tuple[int, ...]
    pairs: Stage
    frozen: Models = ()
    columns: tuple[tuple[str, Stage], ...] = ()
    states: tuple[tuple[str, Stage], ...] = ()
    taken: tuple[str, ...] = ()
    contrasted: bool = False
    place: str = ""

    @property
    def name(self) -> str:
        return f"{self.place} {self.kind}".strip()

    @property
    def inputs(self) -> tuple[Stage, ...]:
        models = tuple(stage for *_, stage in needed(self.frozen, self.roles))
        return (self.start, self.pairs, *models, *(stage for _, stage in (*self.columns, *self.states)))

    def plan(self, config: Experiment, model: Model) -> StepSpec:
        """What a step computes."""
        return StepSpec(
            scorer=Text(model, config.model.head_chunk),
            roles=self.roles,
            objective=self.objective,
            estimator=config.weights,
            gradient_accumulation_steps=get(config, self.section).gradient_accumulation_steps,
            seed=config.seed,
            compiler_options=tuple((config.mesh.compiler_options or {}).items()),
        )

    def key(self, run: Run) -> dict[str, Any]:
        return training_key(run, self)

    def stored(self, context: Session) -> Stored | None:
        return results.stored_result(context.run_dir / self.place, self.kind)

    def make(self, run: Run) -> Params:
        """Trains, or brings back the result where it is there and was made from the same things.

        Raises: CheckpointError when it was made from other things.
        """
        session: Session = run.context
        start: Base = run(self.start)
        if not run.makes:
            return self._load(run, start)
        directory, pairs = session.run_dir / self.place, run(self.pairs)
        columns = {split: self._taken(run(stage)) for split, stage in self.columns}
        states = {split: run(stage) for split, stage in self.states}
        frozen = frozen_of(run, self.frozen, self.roles)
        identity = whole_training_key(run, self, start, columns.get("train", {}), frozen)
        finished = results.load_result(session, directory, self.kind, identity)
        if finished is not None:
            log.info("stage %s: already done", self.name)
            return finished
        trained = results.new_trained(session, start.full(), self.kind)
        run.only([self.start, *(stage for *_, stage in self.frozen)])
        if ("params", "base") not in self.roles.needs():
            start.drop()
        held = ", ".join(f"{name} {size / 2**20:.2f} MiB" for name, size in resident_bytes(trained, frozen).items())
        log.info("stage %s: resident %s", self.name, held)
        with session.metrics.within(directory, self.place) as metrics:
            job = self._job(session, pairs, columns.get("train", {}), states.get("train"), identity)
            evaluate = None
            if "eval" in columns:
                held_out = (columns["eval"], states.get("eval"))
                evaluate = functools.partial(evaluate_held_out, session, job.plan, frozen, pairs, *held_out)
            shared: Any = {"mesh": session.mesh, "metrics": metrics, "interrupt": session.interrupt}
            trained = train(job, trained, frozen, evaluate=evaluate, **shared)
        save_tree(results.result_path(directory, self.kind), trained, identity)
        return trained

    def _job(
        self, session: Session, pairs: Splits, columns: Columns, states: States | None, identity: dict[str, Any]
    ) -> Job:
        config = session.config
        section, plan = get(config, self.section), self.plan(config, session.model)
        order, rows = feed(session, pairs, section, plan, self.sides)
        return Job(
            stage=self.kind,
            plan=plan,
            section=section,
            pairs=Batches(pairs.train, rows, columns, states),
            order=order,
            directory=results.checkpoints_path(session.run_dir / self.place, self.kind),
            identity=identity,
            checkpoint_every=config.train.checkpoint_every,
            keep=config.train.keep_checkpoints,
            max_skipped=config.train.max_skipped,
            log_every=config.logging.every,
            eval_every=config.train.eval_every,
        )

    def _load(self, run: Run, start: Base) -> Params:
        """The result of a run that is there. Nothing is made, and what would have to be made is not compared.

        Raises: ConfigError when the stage has not come so far; CheckpointError when it was another configuration's.
        """
        identity = whole_training_key(run, self, start, {}, {"params": {}, "lora": {}})
        derived = (*DERIVED, *(("data",) if run.known(self.pairs) is None else ()))
        directory = run.context.run_dir / self.place
        result = results.load_result(run.context, directory, self.kind, identity, derived=derived)
        if result is None:
            path = results.result_path(directory, self.kind)
            raise ConfigError(f"{path}: is not there; `tisdpo run` with this configuration makes it")
        return result

    def _taken(self, columns: Columns) -> Columns:
        return {name: value for name, value in columns.items() if name in self.taken}
