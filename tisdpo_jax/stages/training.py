"""A training as a stage: a model from the one that it starts from, by an objective, on the pairs of the run."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import logging
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from tisdpo_jax import partitioning
from tisdpo_jax.artifacts import Run, Stage, Stored, digest
from tisdpo_jax.config import Experiment, StageSection, get
from tisdpo_jax.data import Batches, Layout, Order, States
from tisdpo_jax.errors import ConfigError
from tisdpo_jax.models import Model
from tisdpo_jax.objectives import Objective
from tisdpo_jax.roles import Frozen, Roles, resident_bytes
from tisdpo_jax.scoring import Text
from tisdpo_jax.stages import models
from tisdpo_jax.stages.models import Base
from tisdpo_jax.stages.scores import Columns, text_identity
from tisdpo_jax.stages.session import Session
from tisdpo_jax.training import Job, StepSpec, evaluate_step, means, one_pass, train
from tisdpo_jax.types import Params

log = logging.getLogger(__name__)

DERIVED = ("model", "scores", "frozen models")  # of a key: known once what they stand for is made


@dataclasses.dataclass(frozen=True)
class Training:
    """A training of a run. Its value is what was trained: an adapter, or all parameters.

    name       of the stage, and of its directories below `models/` and `checkpoints/`
    section    of the configuration that says how long and how fast: "sft", "contrast.training" or "train"
    start      the model that it starts from, a stage whose value is a `Base`
    roles    the models of its step
    frozen     (collection, key, stage) of the models that the step reads and does not train
    columns    split -> stage of the values by pair that the step takes; "eval" is evaluated on the way
    states     split -> stage of the reference's hidden states, in place of the reference
    taken      names of the columns that the step takes
    contrasted whether anything that it reads is made from pi+ and pi-
    """

    name: str
    objective: Objective
    section: str
    start: Stage
    roles: Roles
    sides: tuple[int, ...]
    frozen: tuple[tuple[str, str, Stage], ...] = ()
    columns: tuple[tuple[str, Stage], ...] = ()
    states: tuple[tuple[str, Stage], ...] = ()
    taken: tuple[str, ...] = ()
    contrasted: bool = False

    @property
    def inputs(self) -> tuple[Stage, ...]:
        models = tuple(stage for *_, stage in self.frozen)
        return (self.start, *models, *(stage for _, stage in (*self.columns, *self.states)))

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

    def key(self, context: Session) -> dict[str, Any]:
        """Everything that the result depends on, under the names that an error would use, as far as it is known."""
        config, section = context.config, get(context.config, self.section)
        weighs = "token_weights" in self.objective.needs.columns
        return {
            "architecture": dataclasses.asdict(context.model.config),
            "model.dtype": config.model.dtype,
            "model.param_dtype": config.model.param_dtype,
            "model.frozen_dtype": config.model.frozen_dtype,
            # another arithmetic for the same numbers: the last bits differ
            "data.packing": config.data.packing,
            "lora": dataclasses.asdict(config.lora) if config.lora.rank else {"rank": 0},
            **text_identity(context),
            "data": context.train.fingerprint()[:16],
            "data.seed": config.data.seed,
            "seed": config.seed,
            self.section: _results_of(section),
            "sft": "none" if self.section == "sft" or not config.sft.epochs else _results_of(config.sft),
            "loss": dataclasses.asdict(self.objective),
            "sides": list(self.sides),
            "weights": dataclasses.asdict(config.weights) if weighs else "none",
            "contrast": _contrast(config) if self.contrasted else "none",
        }

    def stored(self, context: Session) -> Stored | None:
        return models.stored(context, self.name)

    def make(self, run: Run) -> Params:
        """Trains, or brings back the result where it is there and was made from the same things."""
        session: Session = run.context
        config, section = session.config, get(session.config, self.section)
        start: Base = run(self.start)
        if not run.makes:
            return self.load(session, start)
        splits = {split: self._columns_of(run(stage)) for split, stage in self.columns}
        states = {split: run(stage) for split, stage in self.states}
        plan = self.plan(config, session.model)
        frozen = self._frozen(run)
        identity = self._identity(session, start.identity, splits.get("train", {}), frozen)
        finished = models.load_result(session, self.name, identity)
        if finished is not None:
            log.info("stage %s: already done", self.name)
            return finished
        trained = models.new_trained(session, start.full(), self.name)
        run.only([self.start, *(stage for *_, stage in self.frozen)])
        if ("params", "base") not in self.roles.needs():
            start.drop()
        held = ", ".join(f"{name} {size / 2**20:.2f} MiB" for name, size in resident_bytes(trained, frozen).items())
        log.info("stage %s: resident %s", self.name, held)
        order, layout = feed(session, section, plan, self.sides)
        evaluate = None
        if "eval" in splits:
            evaluate = functools.partial(evaluate_held_out, session, plan, frozen, splits["eval"], states.get("eval"))
        job = Job(
            stage=self.name,
            plan=plan,
            section=section,
            pairs=Batches(session.train, layout, splits.get("train", {}), states.get("train")),
            order=order,
            directory=models.checkpoints_path(session, self.name),
            identity=identity,
            checkpoint_every=config.train.checkpoint_every,
            keep=config.train.keep_checkpoints,
            max_skipped=config.train.max_skipped,
            log_every=config.logging.every,
            eval_every=config.train.eval_every,
        )
        mesh, metrics, interrupt = session.mesh, session.metrics, session.interrupt
        trained = train(job, trained, frozen, mesh=mesh, metrics=metrics, interrupt=interrupt, evaluate=evaluate)
        models.save_result(session, self.name, trained, identity)
        return trained

    def load(self, session: Session, start: Base, *, derived: tuple[str, ...] = DERIVED[1:]) -> Params:
        """The result of a run that is there. Nothing is made.

        Args:
          derived: parts of the key that are not compared, since what they stand for would have to be made.

        Raises: ConfigError when the stage has not come so far; CheckpointError when it was another configuration's.
        """
        identity = self._identity(session, start.identity, {}, {"params": {}, "lora": {}})
        result = models.load_result(session, self.name, identity, derived=derived)
        if result is None:
            path = models.result_path(session, self.name)
            raise ConfigError(f"{path}: is not there; `tisdpo run` with this configuration makes it")
        return result

    def _columns_of(self, columns: Columns) -> Columns:
        return {name: value for name, value in columns.items() if name in self.taken}

    def _frozen(self, run: Run) -> Frozen:
        frozen: dict[str, dict[str, Any]] = {"params": {}, "lora": {}}
        for collection, key, stage in self.frozen:
            if (collection, key) in self.roles.needs():
                value = run(stage)
                frozen[collection][key] = value.frozen() if isinstance(value, Base) else value
        return frozen  # type: ignore[return-value]  # the two keys of Frozen

    def _identity(self, session: Session, start: str, columns: Columns, frozen: Frozen) -> dict[str, Any]:
        """The whole key: with what the inputs turned out to be."""
        frozen_models = {
            f"{kind}/{key}": models.identify(tree) for kind in ("params", "lora") for key, tree in frozen[kind].items()
        }
        sums = {name: hashlib.sha256(value.tobytes()).hexdigest() for name, value in sorted(columns.items())}
        return {**self.key(session), "model": start, "scores": digest(sums), "frozen models": digest(frozen_models)}


def evaluate_held_out(
    session: Session, plan: StepSpec, frozen: Frozen, columns: Columns, states: States | None, trained: Params
) -> dict[str, float]:
    """The metrics of training, over all held-out pairs: sums and counts added, divided once."""
    run = _evaluator(dataclasses.replace(plan, gradient_accumulation_steps=1))
    pairs, batches = session.passing("eval", *plan.roles.views())
    pairs = dataclasses.replace(pairs, columns=columns, states=states)
    totals: dict[str, Any] = {}
    for _, batch in one_pass(pairs, batches, session.mesh, label="eval", shown=False):
        sums = jax.device_get(run(trained, frozen, batch))
        totals = jax.tree.map(np.add, totals, sums) if totals else sums
    return {name: float(value) for name, value in means(totals).items()}


@functools.lru_cache(maxsize=4)
def _evaluator(plan: StepSpec) -> Any:
    return jax.jit(functools.partial(evaluate_step, plan=plan))


def feed(session: Session, section: StageSection, plan: StepSpec, sides: tuple[int, ...]) -> tuple[Order, Layout]:
    """Which pairs each step of a training takes, and the one shape that holds them all."""
    encoded = session.train
    order = Order(
        encoded.lengths(sides=sides),
        section.batch_size,
        session.config.data.seed,
        section.epochs,
        places=partitioning.places(section.batch_size, session.mesh, parts=section.gradient_accumulation_steps),
    )
    views = plan.roles.views()
    return order, session.layout(
        encoded, order.batches(), parts=section.gradient_accumulation_steps, sides=sides, views=views
    )


def _contrast(config: Experiment) -> dict[str, Any]:
    """What pi+ and pi- are made by: their scores say it too, once they are there."""
    section = config.contrast
    prompts = {"positive_prompt": section.positive_prompt, "negative_prompt": section.negative_prompt}
    trained = {"training": _results_of(section.training)}
    parts: Mapping[str, dict[str, Any]] = {"prompts": prompts, "sft": trained, "dpo": {**trained, "beta": section.beta}}
    return {"construction": section.construction, **parts.get(section.construction, {})}


def _results_of(section: StageSection) -> dict[str, Any]:
    """The fields of a section that a result depends on; the others change nothing, or its last bits."""
    free = ("gradient_accumulation_steps", "eval_every", "checkpoint_every", "keep_checkpoints", "max_skipped")
    return {name: value for name, value in dataclasses.asdict(section).items() if name not in free}
