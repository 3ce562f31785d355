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
from typing import Any

import jax
import numpy as np
import yaml

from tisdpo_jax import checkpoint, partitioning
from tisdpo_jax.artifacts import differences, digest
from tisdpo_jax.config import Experiment, LossSection, StageSection
from tisdpo_jax.data import Batches, EncodedSet, Layout, Order, States, recorded_columns
from tisdpo_jax.errors import ConfigError
from tisdpo_jax.models import Model, head_only
from tisdpo_jax.recipes import models
from tisdpo_jax.recipes.models import Base
from tisdpo_jax.recipes.scores import cached_logps, cached_states, text_identity
from tisdpo_jax.recipes.session import Session
from tisdpo_jax.roles import Casting, Frozen, Role, contrast_roles, policy_role, resident_bytes
from tisdpo_jax.scoring import contrast_scores
from tisdpo_jax.training.loop import Job, train
from tisdpo_jax.training.objective import WEIGHTED, Plan, make_weights, wants_kl
from tisdpo_jax.training.passes import one_pass
from tisdpo_jax.training.step import evaluate_step, means
from tisdpo_jax.types import Params

log = logging.getLogger(__name__)
Columns = dict[str, np.ndarray]

REFERENCE = Role("base")
TAKEN = {"tisdpo": ("weights",), "dlma": ("margin",), "dlma+tisdpo": ("weights", "margin")}  # columns of a loss
HEAD = Role("head")  # the reference where its last hidden states are on disk
DERIVED = ("scores", "frozen models")  # of an identity: known only once what they stand for is made
SIDES = {"plus": {"sft": (0,), "dpo": (0, 1)}, "minus": {"sft": (1,), "dpo": (1, 0)}}


def takes_contrast(config: Experiment) -> bool:
    """Whether the policy's loss takes anything that pi+ and pi- are for."""
    return config.loss.name in TAKEN


def check_unchanged(session: Session) -> None:
    """Compares what a directory holds with the configuration, as far as that is known before anything is made.

    Raises: CheckpointError that names the result and what differs, both values.
    """
    config = session.config
    construction, nothing = config.contrast.construction, Frozen(params={}, lora={})
    stages: dict[str, tuple[LossSection, StageSection, tuple[int, ...]]] = {
        "policy": (config.loss, config.train, _sides(config.loss)),
    }
    if construction in ("sft", "dpo"):
        loss = LossSection(name=construction, beta=config.contrast.beta)
        stages |= {name: (loss, config.contrast.training, SIDES[name][construction]) for name in ("plus", "minus")}
    if config.sft.epochs:
        stages["sft"] = (LossSection(name="sft"), config.sft, (0,))
    for stage, (loss, section, sides) in stages.items():
        found = models.stored_identity(session, stage)
        if found is not None:
            path, stored = found
            unknown = {*DERIVED, "model"}
            known = _identity(session, loss, section, "", {}, sides, nothing)
            changed = differences(*({k: v for k, v in one.items() if k not in unknown} for one in (stored, known)))
            if changed:
                raise checkpoint.other_configuration(path, changed)


def _sides(loss: LossSection) -> tuple[int, ...]:
    return (0,) if loss.name == "sft" else (0, 1)


def base_stage(session: Session, *, make: bool = True) -> Base:
    """The model that everything starts from: the pretrained one, or that after SFT on chosen responses.

    Args:
      make: whether SFT is trained where it has not been. Raises: ConfigError, where it must be there and is not.
    """
    load, freeze = functools.partial(models.load_pretrained, session), models.freeze_of(session)
    if session.config.sft.epochs == 0:
        return Base(load, freeze, pretrained=True)

    def after_sft() -> Params:
        base, loss, section = Base(load, freeze), LossSection(name="sft"), session.config.sft
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
    return _there(session, "policy", config.loss, config.train, base, sides=_sides(config.loss), derived=derived)


def _there(
    session: Session,
    stage: str,
    loss: LossSection,
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
    """pi+ and pi-, trained where the construction trains them, beside the base that they share or start from."""
    frozen: Frozen = {"params": {"base": base.frozen()}, "lora": {}}
    construction = session.config.contrast.construction
    if construction not in ("sft", "dpo"):
        return frozen
    loss = LossSection(name=construction, beta=session.config.contrast.beta)
    columns: Columns = {}
    if construction == "dpo" and session.config.contrast.scores == "cached":
        columns["reference_logps"] = cached_logps(session, "reference", REFERENCE, frozen, "train")
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


def score_stage(session: Session, frozen: Frozen, *, contrast: bool = True) -> dict[str, Columns]:
    """Columns for each split: what the loss takes as given, and `plus_logps`, `minus_logps` for pictures.

    Args:
      contrast: whether pi+ and pi- are there, and scored.
    """
    config, found = session.config, {}
    roles = contrast_roles(config.contrast.construction, lora=session.lora) if contrast else None
    for split in session.splits():
        encoded = session.split(split)
        columns: Columns = dict(recorded_columns(encoded, session.elements))
        if roles is not None and config.contrast.scores == "cached":
            for name, role in zip(("plus", "minus"), roles, strict=True):
                columns[f"{name}_logps"] = cached_logps(session, name, role, frozen, split)
            derive(session, encoded, columns)
        if config.contrast.scores == "cached" and wants_kl(config.loss) is None and config.loss.name != "sft":
            columns["reference_logps"] = cached_logps(session, "reference", REFERENCE, frozen, split)
        _check_columns(session, split, columns)
        found[split] = columns
    return found


def derive(session: Session, encoded: EncodedSet, columns: Columns) -> None:
    """Token weights and the self-reward of the pair, both from the one contrast of pi+ and pi-."""
    if "weights" in columns or "margin" in columns:
        raise ConfigError(
            f"{encoded.source}: brings its own weights or margin, which a contrast would overwrite; "
            "set contrast.construction none, or take these fields out"
        )
    mask, record = encoded.mask(session.elements), np.arange(len(encoded))
    parts = []
    for rows in np.array_split(record, -(-len(record) // 256)):
        positive, negative = (columns[f"{name}_logps"][rows] for name in ("plus", "minus"))
        made = make_weights(session.config.weights, positive, negative, mask[rows], record=rows)
        parts.append(np.asarray(made))
    columns["weights"] = np.concatenate(parts)
    if not columns["weights"].any():
        raise ConfigError(
            f"{encoded.source}: weights.method {session.config.weights.method} gives weight 0 to all tokens"
        )
    scores = contrast_scores(columns["plus_logps"], columns["minus_logps"], mask)
    columns["margin"] = (scores[:, 0] - scores[:, 1]).astype(np.float32)


def _check_columns(session: Session, split: str, columns: Columns) -> None:
    loss, construction = session.config.loss.name, session.config.contrast.construction
    for needed in (name for name in TAKEN.get(loss, ()) if construction == "none" and name not in columns):
        fields = {"weights": "chosen_weights and rejected_weights", "margin": "margin"}[needed]
        raise ConfigError(
            f"loss.name {loss} needs {needed}: set contrast.construction to prompts, sft or dpo, "
            f"or give every record of {session.split(split).source} the fields {fields}"
        )


def policy_plan(config: Experiment, model: Model, *, whole_reference: Role = REFERENCE) -> tuple[Plan, tuple[str, ...]]:
    """What the policy's step computes, and the names of the columns that it takes."""
    lora = config.lora.rank > 0
    cached = config.contrast.scores == "cached"
    roles = None if cached else contrast_roles(config.contrast.construction, lora=lora)
    online = roles if config.loss.name in WEIGHTED else None
    live_reference = config.loss.name != "sft" and (wants_kl(config.loss) is not None or not cached)
    reference = (HEAD if takes_states(config) else whole_reference) if live_reference else None
    casting = Casting(policy_role(lora=lora), reference, *(online if online else (None, None)))
    plan = _plan(config, model, config.loss, casting, config.train)
    return plan, (*TAKEN.get(config.loss.name, ()), *(() if live_reference else ("reference_logps",)))


def takes_states(config: Experiment) -> bool:
    """Whether the policy's step takes the reference's last hidden states in place of the reference."""
    return wants_kl(config.loss) is not None and config.contrast.reference_states == "cached"


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
        sides=_sides(config.loss),
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
    for _, batch in one_pass(pairs, batches, session.mesh, label="eval", shown=False):
        sums = jax.device_get(run(trained, frozen, batch))
        totals = jax.tree.map(np.add, totals, sums) if totals else sums
    return {name: float(value) for name, value in means(totals).items()}


@functools.lru_cache(maxsize=4)
def _evaluator(plan: Plan) -> Any:
    return jax.jit(functools.partial(evaluate_step, plan=plan))


def run_training(
    session: Session,
    stage: str,
    loss: LossSection,
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
        pairs=Batches(session.train, layout, columns, states),
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


def stage_plan(config: Experiment, model: Model, loss: LossSection, section: StageSection, *, cached: bool) -> Plan:
    """What the step of a stage before the policy computes; `cached`: the reference's scores are a column."""
    live = loss.name != "sft" and not cached
    casting = Casting(policy_role(lora=config.lora.rank > 0), REFERENCE if live else None)
    return _plan(config, model, loss, casting, section)


def _plan(config: Experiment, model: Model, loss: LossSection, casting: Casting, section: StageSection) -> Plan:
    return Plan(
        model=model,
        casting=casting,
        loss=loss,
        weights=config.weights,
        micro_batches=section.micro_batches,
        head_chunk=config.model.head_chunk,
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
    loss: LossSection,
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
        "weights": dataclasses.asdict(config.weights) if loss.name in WEIGHTED else "none",
        "contrast": _contrast(config) if loss is config.loss and takes_contrast(config) else "none",
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
