"""TIS-DPO as a job of stages. Each stage leaves its result in the run directory and is skipped when it is there.

(sft) -> base
base -> reference scores
base -> plus, minus          (S) SFT on chosen / on rejected; (D) DPO forward / reversed; (P) nothing to train
plus, minus -> scores -> token weights
base, weights -> policy
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import logging
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import yaml

from tisdpo_jax import checkpoint, partitioning
from tisdpo_jax.artifacts import differences, digest
from tisdpo_jax.config import Experiment, StageSection
from tisdpo_jax.data import EncodedSet, Layout, Order, States, recorded_columns
from tisdpo_jax.errors import ConfigError
from tisdpo_jax.estimators import CONTRAST, Estimator, Read, reads_of
from tisdpo_jax.models import Model, head_only
from tisdpo_jax.objectives import Dpo, Objective, Sft
from tisdpo_jax.recipes import models
from tisdpo_jax.recipes.models import Base
from tisdpo_jax.recipes.scores import cached_scores, cached_states, text_identity
from tisdpo_jax.recipes.session import Session
from tisdpo_jax.roles import Casting, Frozen, Role, contrast_roles, policy_role, resident_bytes
from tisdpo_jax.scoring import Text, contrast_scores
from tisdpo_jax.training.loop import Job, Pairs, train
from tisdpo_jax.training.objective import Plan
from tisdpo_jax.training.step import evaluate_step, means
from tisdpo_jax.types import Params

log = logging.getLogger(__name__)
Columns = dict[str, np.ndarray]

REFERENCE = Role("base")
HEAD = Role("head")  # the reference where its last hidden states are on disk
DERIVED = ("scores", "frozen models")  # of an identity: known only once what they stand for is made
SIDES = {"plus": {"sft": (0,), "dpo": (0, 1)}, "minus": {"sft": (1,), "dpo": (1, 0)}}


BROUGHT = {"token_weights": "chosen_weights and rejected_weights", "self_reward": "margin"}  # fields of records


def wanted_reads(config: Experiment) -> tuple[Read, ...]:
    """What the columns that the objective needs are made of; nothing where the records bring them."""
    if config.contrast.construction == "none":
        return ()
    return reads_of(config.loss.needs.columns, config.weights)


def trained_contrast(config: Experiment, reads: tuple[Read, ...]) -> bool:
    """Whether pi+ and pi- are trained: something reads them, and the construction trains them."""
    read = any(read.role in ("plus", "minus") for read in reads)
    return read and config.contrast.construction in ("sft", "dpo")


def contrast_objective(config: Experiment) -> Objective:
    """What pi+ and pi- are trained on, each on sides of its own."""
    return Sft() if config.contrast.construction == "sft" else Dpo(beta=config.contrast.beta)


def check_unchanged(session: Session) -> None:
    """Compares what a directory holds with the configuration, as far as that is known before anything is made.

    Raises: CheckpointError that names the result and what differs, both values.
    """
    config = session.config
    construction, nothing = config.contrast.construction, Frozen(params={}, lora={})
    stages: dict[str, tuple[Objective, StageSection, tuple[int, ...]]] = {
        "policy": (config.loss, config.train, config.loss.needs.sides),
    }
    if construction in ("sft", "dpo"):
        loss = contrast_objective(config)
        stages |= {name: (loss, config.contrast.training, SIDES[name][construction]) for name in ("plus", "minus")}
    if config.sft.epochs:
        stages["sft"] = (Sft(), config.sft, (0,))
    for stage, (loss, section, sides) in stages.items():
        found = models.stored_identity(session, stage)
        if found is not None:
            path, stored = found
            unknown = {*DERIVED, "model"}
            known = _identity(session, loss, section, "", {}, sides, nothing)
            changed = differences(*({k: v for k, v in one.items() if k not in unknown} for one in (stored, known)))
            if changed:
                raise checkpoint.other_configuration(path, changed)


def base_stage(session: Session, *, make: bool = True) -> Base:
    """The model that everything starts from: the pretrained one, or that after SFT on chosen responses.

    Args:
      make: whether SFT is trained where it has not been. Raises: ConfigError, where it must be there and is not.
    """
    load, freeze = functools.partial(models.load_pretrained, session), models.freeze_of(session)
    if session.config.sft.epochs == 0:
        return Base(load, freeze, pretrained=True)

    def after_sft() -> Params:
        base, loss, section = Base(load, freeze), Sft(), session.config.sft
        if not make:
            return models.fold_in(session, base, _there(session, "sft", loss, section, base, sides=(0,)))
        frozen: Frozen = {"params": {"base": base.frozen()} if session.lora else {}, "lora": {}}
        trained = run_training(session, "sft", loss, section, base, frozen, {}, sides=(0,))
        return models.fold_in(session, base, trained)

    return Base(after_sft, freeze)


def finished(session: Session) -> tuple[Base, Params]:
    """What a run that is there started from, and its policy. Nothing is made.

    Raises: ConfigError when it has not come so far; CheckpointError when it was another configuration's.
    """
    base = base_stage(session, make=False)
    return base, finished_policy(session, base)


def finished_policy(session: Session, base: Base, *, derived: tuple[str, ...] = DERIVED) -> Params:
    """The policy that was trained from `base`. `derived`: what of its identity is not known without making it."""
    config = session.config
    return _there(session, "policy", config.loss, config.train, base, sides=config.loss.needs.sides, derived=derived)


def _there(
    session: Session,
    stage: str,
    loss: Objective,
    section: StageSection,
    base: Base,
    *,
    sides: tuple[int, ...],
    derived: tuple[str, ...] = DERIVED,
) -> Params:
    identity = _identity(session, loss, section, base.identity, {}, sides, {"params": {}, "lora": {}})
    found = models.load_result(session, stage, identity, derived=derived)
    if found is None:
        raise ConfigError(
            f"{models.result_path(session, stage)}: is not there; `tisdpo run` with this configuration makes it"
        )
    return found


def contrast_stage(session: Session, base: Base) -> Frozen:
    """pi+ and pi-, trained, beside the base that they share or start from."""
    frozen: Frozen = {"params": {"base": base.frozen()}, "lora": {}}
    construction = session.config.contrast.construction
    loss, columns = contrast_objective(session.config), Columns()
    if construction == "dpo" and session.config.contrast.scores == "cached":
        columns["reference_logps"] = cached_scores(session, Read("reference"), REFERENCE, frozen, "train")
    for name in ("plus", "minus"):
        sides = SIDES[name][construction]
        training = session.config.contrast.training
        trained = run_training(session, name, loss, training, base, frozen, columns, sides=sides)
        if session.lora:
            frozen["lora"][name] = trained
        else:
            whole, freeze = models.fold_in(session, base, trained), models.freeze_of(session)
            frozen["params"][name] = freeze(whole) if freeze else whole
    return frozen


def score_stage(session: Session, frozen: Frozen, reads: tuple[Read, ...]) -> dict[str, Columns]:
    """Columns for each split: what the objective takes as given, and what they are made of, for pictures.

    Args:
      reads: what is scored; the models are in `frozen`.
    """
    config, splits = session.config, {}
    roles = roles_of(config)
    for split in session.splits():
        encoded = session.split(split)
        columns: Columns = dict(recorded_columns(encoded, session.elements))
        if config.contrast.scores == "cached":
            for read in reads:
                columns[read.column] = cached_scores(session, read, roles[read.role], frozen, split)
            if config.contrast.construction != "none":
                derive(session, encoded, columns)
            if config.loss.needs.reference == "logps":
                columns["reference_logps"] = cached_scores(session, Read("reference"), REFERENCE, frozen, split)
        _check_columns(session, split, columns)
        splits[split] = columns
    return splits


def roles_of(config: Experiment) -> dict[str, Role]:
    """The models that values are read of, by the name that estimators have for them."""
    roles = contrast_roles(config.contrast.construction, lora=config.lora.rank > 0)
    return {"reference": REFERENCE, **(dict(zip(("plus", "minus"), roles, strict=True)) if roles else {})}


def derive(session: Session, encoded: EncodedSet, columns: Columns) -> None:
    """Token weights from what the estimator reads, and the self-reward of the pair from the contrast of pi+ and pi-.

    Each is made where its reads are among the columns.
    """
    estimator, mask, record = session.config.weights, encoded.mask(session.elements), np.arange(len(encoded.pairs))
    made: Columns = {}
    wanted = "token_weights" in session.config.loss.needs.columns or estimator.reads
    if wanted and all(read.column in columns for read in estimator.reads):
        made["token_weights"] = token_weights(estimator, columns, mask, record)
    if all(read.column in columns for read in CONTRAST):
        scores = contrast_scores(columns["plus_logps"], columns["minus_logps"], mask)
        made["self_reward"] = (scores[:, 0] - scores[:, 1]).astype(np.float32)
    if made and ("token_weights" in columns or "self_reward" in columns):
        raise ConfigError(
            f"{encoded.source}: brings its own weights or margin, which a contrast would overwrite; "
            "set contrast.construction none, or take these fields out"
        )
    if "token_weights" in made and not made["token_weights"].any():
        raise ConfigError(f"{encoded.source}: weights.method {estimator.method} gives weight 0 to all tokens")
    columns |= made


def token_weights(estimator: Estimator, columns: Mapping[str, Any], mask: np.ndarray, record: np.ndarray) -> np.ndarray:
    """An estimator's weights `[n, 2, N]` of all pairs, some hundreds at a time."""
    parts = []
    for rows in np.array_split(record, max(-(-len(record) // 256), 1)):
        values = {read.column: jnp.asarray(columns[read.column][rows]) for read in estimator.reads}
        parts.append(np.asarray(estimator.weights(values, jnp.asarray(mask[rows]), jnp.asarray(rows))))
    return np.concatenate(parts)


def _check_columns(session: Session, split: str, columns: Columns) -> None:
    loss, construction = session.config.loss, session.config.contrast.construction
    for needed in (name for name in loss.needs.columns if construction == "none" and name not in columns):
        raise ConfigError(
            f"loss.name {loss.name} needs {needed}: set contrast.construction to prompts, sft or dpo, "
            f"or give every record of {session.split(split).source} the fields {BROUGHT[needed]}"
        )


def policy_plan(config: Experiment, model: Model, *, whole_reference: Role = REFERENCE) -> tuple[Plan, tuple[str, ...]]:
    """What the policy's step computes, and the names of the columns that it takes."""
    needs, reads = config.loss.needs, wanted_reads(config)
    online = {read.role for read in reads} if config.contrast.scores == "online" else set()
    in_step = needs.direction is not None or (needs.reference == "logps" and config.contrast.scores == "online")
    roles = {name: role for name, role in roles_of(config).items() if name in online}
    if in_step:
        roles["reference"] = HEAD if takes_states(config) else whole_reference
    casting = Casting(policy_role(lora=config.lora.rank > 0), roles.pop("reference", None), **roles)
    columns = [name for name in needs.columns if not (reads and online and name == "token_weights")]
    if needs.reference == "logps" and not in_step:
        columns.append("reference_logps")
    return _plan(config, model, config.loss, casting, config.train), tuple(columns)


def takes_states(config: Experiment) -> bool:
    """Whether the policy's step takes the reference's last hidden states in place of the reference."""
    return config.loss.needs.direction is not None and config.contrast.reference_states == "cached"


def policy_stage(
    session: Session, base: Base, frozen: Frozen, columns: dict[str, Columns], *, reference: Role = REFERENCE
) -> Params:
    """Trains the policy; on the way and at the end, the loss on the held-out pairs.

    Frozen models that its step does not read are given up; `base` comes back when it is asked for.
    """
    config = session.config
    plan, names = policy_plan(config, session.model, whole_reference=reference)
    kept = {split: {name: value for name, value in found.items() if name in names} for split, found in columns.items()}
    states: dict[str, States] = {}
    if takes_states(config):
        states = {split: cached_states(session, reference, frozen, split) for split in session.splits()}
        frozen["params"]["head"] = head_only(session.model.config, frozen["params"][reference.params])
    needed = _needed(frozen, plan)
    for kind, trees in (("params", frozen["params"]), ("lora", frozen["lora"])):
        for key in trees.keys() - needed[kind].keys():  # type: ignore[literal-required]  # the two keys of Frozen
            del trees[key]
    evaluate = None
    if session.eval is not None:
        evaluate = functools.partial(evaluate_pairs, session, plan, needed, kept["eval"], states.get("eval"))
    return run_training(
        session,
        "policy",
        config.loss,
        config.train,
        base,
        needed,
        kept["train"],
        sides=config.loss.needs.sides,
        plan=plan,
        states=states.get("train"),
        evaluate=evaluate,
    )


def evaluate_pairs(
    session: Session, plan: Plan, frozen: Frozen, columns: Columns, states: States | None, trained: Params
) -> dict[str, float]:
    """The metrics of training, over all held-out pairs: sums and counts added, divided once."""
    run = _evaluator(dataclasses.replace(plan, micro_batches=1))
    pairs, batches = session.passing("eval", *plan.casting.views())
    pairs = dataclasses.replace(pairs, columns=columns, states=states)
    totals: dict[str, Any] = {}
    for indices in batches:
        sums = jax.device_get(run(trained, frozen, partitioning.put_batch(pairs.batch(indices), session.mesh)))
        totals = jax.tree.map(np.add, totals, sums) if totals else sums
    return {name: float(value) for name, value in means(totals).items()}


@functools.lru_cache(maxsize=4)
def _evaluator(plan: Plan) -> Any:
    return jax.jit(functools.partial(evaluate_step, plan=plan))


def run_training(
    session: Session,
    stage: str,
    loss: Objective,
    section: StageSection,
    base: Base,
    frozen: Frozen,
    columns: Columns,
    *,
    sides: tuple[int, ...] = (0, 1),
    plan: Plan | None = None,
    states: States | None = None,
    evaluate: Any = None,
) -> Params:
    """Trains a stage from the base, or brings back its result if it is there and was made from the same things."""
    config = session.config
    if plan is None:
        plan = stage_plan(config, session.model, loss, section, cached="reference_logps" in columns)
    frozen = _needed(frozen, plan)
    identity = _identity(session, loss, section, base.identity, columns, sides, frozen)
    finished = models.load_result(session, stage, identity)
    if finished is not None:
        log.info("stage %s: already done", stage)
        return finished
    trained = models.new_trained(session, base.full(), stage)
    if ("params", "base") not in plan.casting.needs():
        base.drop()
    held = ", ".join(f"{name} {size / 2**20:.2f} MiB" for name, size in resident_bytes(trained, frozen).items())
    log.info("stage %s: resident %s", stage, held)
    order, layout = feed(session, section, plan, sides)
    job = Job(
        stage=stage,
        plan=plan,
        section=section,
        pairs=Pairs(session.train, layout, columns, states),
        order=order,
        directory=session.run_dir / "checkpoints" / stage,
        identity=identity,
        checkpoint_every=config.train.checkpoint_every,
        keep=config.train.keep_checkpoints,
        max_skipped=config.train.max_skipped,
        log_every=config.logging.every,
        eval_every=config.train.eval_every,
    )
    trained = train(
        job, trained, frozen, mesh=session.mesh, metrics=session.metrics, interrupt=session.interrupt, evaluate=evaluate
    )
    models.save_result(session, stage, trained, identity)
    return trained


def feed(session: Session, section: StageSection, plan: Plan, sides: tuple[int, ...]) -> tuple[Order, Layout]:
    """Which pairs each step of a stage takes, and the one shape that holds them all."""
    encoded = session.train
    order = Order(
        encoded.lengths(sides=sides),
        section.batch_size,
        session.config.data.seed,
        section.epochs,
        places=partitioning.places(section.batch_size, session.mesh, parts=section.micro_batches),
    )
    views = plan.casting.views()
    return order, session.layout(encoded, order.batches(), parts=section.micro_batches, sides=sides, views=views)


def stage_plan(config: Experiment, model: Model, loss: Objective, section: StageSection, *, cached: bool) -> Plan:
    """What the step of a stage before the policy computes; `cached`: the reference's scores are a column."""
    live = loss.needs.reference != "none" and not cached
    casting = Casting(policy_role(lora=config.lora.rank > 0), REFERENCE if live else None)
    return _plan(config, model, loss, casting, section)


def _plan(config: Experiment, model: Model, loss: Objective, casting: Casting, section: StageSection) -> Plan:
    return Plan(
        scorer=Text(model, config.model.head_chunk),
        casting=casting,
        objective=loss,
        estimator=config.weights,
        micro_batches=section.micro_batches,
        seed=config.seed,
        compiler_options=compiler_options(config.mesh.compiler_options),
    )


def compiler_options(text: str) -> tuple[tuple[str, bool | int | float | str], ...]:
    """`a=1,b=true` as pairs of names and plain values. Raises: ConfigError for a part without name or value."""
    found = []
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, _, value = part.partition("=")
        if not name.strip() or not value.strip():
            raise ConfigError(f"mesh.compiler_options: {part!r} is not name=value")
        found.append((name.strip(), yaml.safe_load(value)))
    return tuple(found)


def _needed(frozen: Frozen, plan: Plan) -> Frozen:
    """The part of `frozen` that the step reads; the same arrays."""
    needs = plan.casting.needs()
    return {
        "params": {key: tree for key, tree in frozen["params"].items() if ("params", key) in needs},
        "lora": {key: tree for key, tree in frozen["lora"].items() if ("lora", key) in needs},
    }


def _identity(
    session: Session,
    loss: Objective,
    section: StageSection,
    base: str,
    columns: Columns,
    sides: tuple[int, ...],
    frozen: Frozen,
) -> dict[str, Any]:
    """Everything that the result of a stage depends on, under the names that an error would use."""
    config, field = session.config, _field_of(section, session.config)
    frozen_models = {
        f"{kind}/{key}": models.identify(tree) for kind in ("params", "lora") for key, tree in frozen[kind].items()
    }
    return {
        "model": base,
        "architecture": dataclasses.asdict(session.model.config),
        "model.dtype": config.model.dtype,
        "model.param_dtype": config.model.param_dtype,
        "model.frozen_dtype": config.model.frozen_dtype,
        # another arithmetic for the same numbers: the last bits differ
        "data.packing": config.data.packing,
        "lora": dataclasses.asdict(config.lora) if config.lora.rank else {"rank": 0},
        **text_identity(session),
        "data": session.train.fingerprint()[:16],
        "data.seed": config.data.seed,
        "seed": config.seed,
        field: _results_of(section),
        "sft": "none" if section is config.sft or not config.sft.epochs else _results_of(config.sft),
        "loss": dataclasses.asdict(loss),
        "sides": list(sides),
        "weights": dataclasses.asdict(config.weights) if "token_weights" in loss.needs.columns else "none",
        "contrast": _contrast(config) if loss is config.loss and wanted_reads(config) else "none",
        "scores": digest(
            {name: hashlib.sha256(value.tobytes()).hexdigest() for name, value in sorted(columns.items())}
        ),
        "frozen models": digest(frozen_models),
    }


def _contrast(config: Experiment) -> dict[str, Any]:
    """What pi+ and pi- are made by: their scores say it too, once they are there."""
    section = config.contrast
    prompts = {"positive_prompt": section.positive_prompt, "negative_prompt": section.negative_prompt}
    trained = {"training": _results_of(section.training)}
    taken: dict[str, dict[str, Any]] = {"prompts": prompts, "sft": trained, "dpo": {**trained, "beta": section.beta}}
    return {"construction": section.construction, **taken.get(section.construction, {})}


def _results_of(section: StageSection) -> dict[str, Any]:
    """The fields of a section that a result depends on; the others change nothing, or its last bits."""
    free = ("micro_batches", "eval_every", "checkpoint_every", "keep_checkpoints", "max_skipped")
    return {name: value for name, value in dataclasses.asdict(section).items() if name not in free}


def _field_of(section: StageSection, config: Experiment) -> str:
    """What a configuration calls a section, for whoever has to change it back."""
    names = {"train": config.train, "sft": config.sft, "contrast.training": config.contrast.training}
    return next(name for name, value in names.items() if value is section)
