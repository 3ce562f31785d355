"""A training as a stage: a model from the one that it starts from, by an objective, on pairs."""

from __future__ import annotations

import dataclasses
import functools
import logging
from typing import Any

from tisdpo_jax.artifacts import Run, Stage, Stored
from tisdpo_jax.checkpoint import save_tree
from tisdpo_jax.config import Experiment, get
from tisdpo_jax.errors import ConfigError
from tisdpo_jax.models import Model
from tisdpo_jax.objectives import Objective
from tisdpo_jax.roles import Roles, resident_bytes
from tisdpo_jax.scoring import Text
from tisdpo_jax.stages import trained as results
from tisdpo_jax.stages.frozen import Models, frozen_of, needed
from tisdpo_jax.stages.jobs import job_of
from tisdpo_jax.stages.keys import DERIVED, training_key, whole_training_key
from tisdpo_jax.stages.models import Base
from tisdpo_jax.stages.passes import evaluate_held_out
from tisdpo_jax.stages.session import Session
from tisdpo_jax.training import StepSpec, train
from tisdpo_jax.types import Params

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Training:
    """A training of a run. Its value is what was trained: an adapter, or all parameters."""

    kind: str  # sft, plus, minus or policy: its directory below `models/` and `checkpoints/`
    objective: Objective
    section: str  # of the configuration, that says how long and how fast: "sft", "contrast.training" or "train"
    start: Stage  # the model that it starts from, a `Base`
    roles: Roles  # the models of its step
    sides: tuple[int, ...]  # the responses of a pair that it is trained on
    pairs: Stage  # its value is `Splits`
    frozen: Models = ()  # that the step reads and does not train
    columns: tuple[tuple[str, Stage], ...] = ()  # by split, what the step takes; "eval" is evaluated on the way
    states: tuple[tuple[str, Stage], ...] = ()  # by split, the reference's hidden states, in place of the reference
    taken: tuple[str, ...] = ()  # names of the columns that the step takes
    contrasted: bool = False  # whether anything that it reads is made from pi+ and pi-
    place: str = ""  # directory below that of the run

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
        """Trains, or takes what is there. Raises: CheckpointError when that was made from other things."""
        session: Session = run.context
        start: Base = run(self.start)
        if not run.makes:
            return self._load(run, start)
        directory, pairs = session.run_dir / self.place, run(self.pairs)
        columns = {split: {name: run(stage)[name] for name in self.taken} for split, stage in self.columns}
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
            job = job_of(session, self, pairs, columns.get("train", {}), states.get("train"), identity)
            evaluate = None
            if "eval" in columns:
                held_out = (columns["eval"], states.get("eval"))
                evaluate = functools.partial(evaluate_held_out, session, job.plan, frozen, pairs, *held_out)
            shared: Any = {"mesh": session.mesh, "metrics": metrics, "interrupt": session.interrupt}
            trained = train(job, trained, frozen, evaluate=evaluate, **shared)
        save_tree(results.result_path(directory, self.kind), trained, identity)
        return trained

    def _load(self, run: Run, start: Base) -> Params:
        """The result of a run that is there; what would have to be made for a comparison is not compared.

        Raises: ConfigError when it has not come so far; CheckpointError when it was another configuration's.
        """
        identity = whole_training_key(run, self, start, {}, {"params": {}, "lora": {}})
        derived = (*DERIVED, *(("data",) if run.known(self.pairs) is None else ()))
        directory = run.context.run_dir / self.place
        result = results.load_result(run.context, directory, self.kind, identity, derived=derived)
        if result is None:
            path = results.result_path(directory, self.kind)
            raise ConfigError(f"{path}: is not there; `tisdpo run` with this configuration makes it")
        return result
