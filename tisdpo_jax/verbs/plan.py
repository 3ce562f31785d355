"""What a job will need on some hardware: its steps, compiled ahead of time by the functions that run them.

No weights are read and no array is made: the session is that of a run, with shapes where a run has values.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import jax
import numpy as np
from jax.sharding import Mesh

from tisdpo_jax import partitioning
from tisdpo_jax.artifacts import order
from tisdpo_jax.config import Experiment, get
from tisdpo_jax.data import Batches, EncodedSet, Layout, States
from tisdpo_jax.errors import ConfigError, UserError
from tisdpo_jax.models import TransformerConfig, head_only
from tisdpo_jax.planning import (
    Spec,
    StagePlan,
    Topology,
    advise,
    compile_step_program,
    open_topology,
    resident,
    useful,
)
from tisdpo_jax.recipes import graph_of, roles_of, wanted_reads
from tisdpo_jax.roles import Frozen, Role, Roles, bind, policy_role
from tisdpo_jax.stages import (
    HEAD,
    Session,
    Splits,
    Training,
    abstract_base,
    abstract_trained,
    feed,
    passing,
    scorer,
    warn_of_limit,
    warn_of_pairs,
)
from tisdpo_jax.training import compile_step, init_state, optim, state_shardings
from tisdpo_jax.verbs.abstract import Lengths, LengthsFrom, abstract_session, read_lengths, read_transformer

log = logging.getLogger(__name__)


def plan(
    config: Experiment,
    topologies: Sequence[Spec],
    *,
    lengths: LengthsFrom = "",
    stage: str = "",
) -> list[StagePlan]:
    """One plan for each topology and stage. `planning.topology.prepare` was called before.

    Args:
        config: of the job.
        topologies: where to run it.
        lengths: where lengths of pairs come from: the data, the histogram of HH, or every pair as long as the
            configuration allows. "" takes the data where they are at hand, else the histogram.
        stage: sft, plus, minus, score, policy, reward, or all that the configuration has; "" is the last one.

    Raises: UserError when no topology can be planned for, the first one's; the others are planned without those.
    """
    transformer = read_transformer(config)
    warn_of_limit(config, transformer, config.model.path)
    pairs = read_lengths(config, lengths)
    for split in pairs.pairs.splits():
        warn_of_pairs(pairs.pairs.split(split), transformer, config.model.path)
    found: list[StagePlan] = []
    errors: list[UserError] = []
    for spec in topologies:
        try:
            found += _plan_topology(config, transformer, pairs, open_topology(spec), stage)
        except UserError as error:
            log.warning("%s: %s", spec.name, error)
            errors.append(error)
    if errors and not found:
        raise errors[0]
    return found


def _plan_topology(
    config: Experiment, transformer: TransformerConfig, pairs: Lengths, topology: Topology, stage: str
) -> list[StagePlan]:
    session = abstract_session(config, transformer, topology)
    makers = {step.kind: functools.partial(lower_training, session, pairs.pairs, step) for step in trainings(config)}
    if config.loss.needs.reads == "logps":
        makers["score"] = functools.partial(lower_scores, session, pairs.pairs)
    stage = stage or graph_of(config).policy.kind
    if stage not in ("all", *makers):
        raise ConfigError(f"--stage {stage}: this configuration has {', '.join(makers)}; or all")
    wanted = makers if stage == "all" else {stage: makers[stage]}
    return [compile_plan(session, topology.spec, make(), pairs.source, topology.note) for make in wanted.values()]


def trainings(config: Experiment) -> list[Training]:
    """Every training of the job, in its order; of rounds, those of the last."""
    return [stage for stage in order(graph_of(config).policy) if isinstance(stage, Training)]


class Lowered(NamedTuple):
    """A step, ready to be compiled, and what the compiler does not say of it. Arrays are shapes with a sharding."""

    stage: str
    lowered: Any
    roles: Roles
    state: Any  # None: nothing is trained
    frozen: Frozen
    batch: Any
    layout: Layout
    pairs: int  # of the data in a batch; the layout may have places for more
    useful: useful.Flops
    recomputed: useful.Flops


def lower_training(session: Session, data: Splits, step: Training) -> Lowered:
    """The step of a training, lowered as `training.loop` does it."""
    plan, section = step.plan(session.config, session.model), get(session.config, step.section)
    batches, layout = feed(session, data, section, plan, step.sides)
    states = _blank_states(session, data.train) if step.states else None
    pairs = Batches(data.train, layout, _blank_columns(data, step.taken), states)
    optimizer = optim.optimizer(section.optimizer, batches.steps)
    trained = abstract_trained(session)
    shape = jax.eval_shape(functools.partial(init_state, optimizer=optimizer), trained)
    shardings = state_shardings(shape, session.mesh)
    state = _placed(shape, shardings)
    frozen = abstract_frozen(session, plan.roles)
    batch = _placed_batch(session, pairs.batch(batches.batch(0)))
    with _under(session.mesh):
        lowered = compile_step(plan, optimizer, shardings, session.mesh).lower(state, frozen, batch)
    config, roles, transformer = session.config, plan.roles, session.model.config
    others = [role for role in (roles.reference, roles.plus, roles.minus) if role is not None]
    seen = _lengths(data.train, "main", step.sides)
    needed = useful.training(
        transformer,
        seen,
        [_scored(transformer, data.train, role, step.sides) for role in others],
        adapters=sum(leaf.size for leaf in jax.tree.leaves(trained)) if session.lora else 0,
    )
    size = section.batch_size
    share = size / len(seen)
    again = useful.recomputed(transformer, seen, config.model.remat)
    return Lowered(
        step.kind, lowered, roles, state, frozen, batch, layout, size, needed.scaled(share), again.scaled(share)
    )


def lower_scores(session: Session, data: Splits) -> Lowered:
    """The step that makes cached scores: one frozen model, forward; a contrastive one where there is one."""
    config = session.config
    reads = wanted_reads(config)
    role = roles_of(config)[reads[0].role if reads else "reference"]
    roles = Roles(policy_role(lora=False), None, plus=role)
    pairs, batches = passing(session, data.train, data.elements, role.view)
    frozen = abstract_frozen(session, roles)
    batch = _placed_batch(session, pairs.batch(batches[0]))
    with _under(session.mesh):
        run = scorer(session.model, role.view, config.model.head_chunk)
        lowered = run.lower(bind(role, None, frozen), batch)
    lengths = _lengths(data.train, role.view, (0, 1))
    size = pairs.layout.pairs
    needed = useful.forward(session.model.config, lengths).scaled(size / len(lengths))
    return Lowered("score", lowered, roles, None, frozen, batch, pairs.layout, size, needed, needed.scaled(0.0))


def abstract_frozen(session: Session, roles: Roles) -> Frozen:
    """Shapes of the frozen trees that these roles read."""
    base, adapter = abstract_base(session), abstract_trained(session)
    places = {"params": base, "lora": adapter}
    found: dict[str, dict[str, Any]] = {"params": {}, "lora": {}}
    for collection, key in sorted(roles.needs()):
        tree = head_only(session.model.config, base) if key == HEAD else places[collection]
        found[collection][key] = _placed(tree, partitioning.param_shardings(tree, session.mesh))
    return cast(Frozen, found)


def _under(mesh: Mesh) -> Any:
    """Tracing under a mesh as `jax.set_mesh` does; constants made on the way stay on devices that are there."""
    return jax.sharding.use_abstract_mesh(mesh.abstract_mesh)


def _placed(tree: Any, shardings: Any) -> Any:
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), tree, shardings)


def _placed_batch(session: Session, host: Any) -> Any:
    return _placed(host, partitioning.batch_shardings(host, session.mesh))


def _blank_columns(data: Splits, names: Sequence[str]) -> dict[str, np.ndarray]:
    count = len(data.train)
    shapes = dict.fromkeys(("self_reward", "target"), (count,))
    return {name: np.zeros(shapes.get(name, (count, 2, data.elements)), np.float32) for name in names}


def _blank_states(session: Session, encoded: EncodedSet) -> States:
    """A cache of hidden states as long as a run's, of one row that is read everywhere."""
    width, dtype = session.model.config.hidden_size, session.config.model.dtype
    row = np.zeros((1, width), np.uint16 if dtype == "bfloat16" else np.float32)
    rows = int(useful.measure(encoded)[:, 1:].sum())
    return States(np.broadcast_to(row, (rows, width)), encoded.responses.starts, dtype)


def _scored(model: TransformerConfig, encoded: EncodedSet, role: Role, sides: tuple[int, ...]) -> useful.Flops:
    """What a frozen role costs over all pairs; its head alone, where its hidden states are on disk."""
    once = useful.forward(model, _lengths(encoded, role.view, sides))
    return once.times(0, 0, 1) if role.params == HEAD else once


def _lengths(encoded: EncodedSet, view: str, sides: tuple[int, ...]) -> useful.Lengths:
    """Tokens of the prompt in a view, and of the responses of these sides."""
    prompts = encoded.prompts(view).sizes
    return np.stack([prompts, *(useful.measure(encoded)[:, 1 + side] for side in sides)], 1)


def compile_plan(session: Session, spec: Spec, step: Lowered, lengths: str, note: str = "") -> StagePlan:
    """Compiles a step and reads what came out."""
    held = resident(step.state, step.frozen, step.batch, step.roles)
    flags = os.environ.get("XLA_FLAGS", "")
    dumps = "xla_dump_to" in (session.config.mesh.compiler_options or {}) or "xla_dump_to" in flags
    if dumps:  # a directory for what XLA writes is given already: it is left alone
        log.info("xla_dump_to is set: the compiler's report of memory is there, the plan shows the peak")
    report = spec.chip is not None and not dumps
    compiled = compile_step_program(step.lowered, report=report, resident=sum(item.chip for item in held))
    log.info("%s, stage %s: compiled in %.0f s", spec.name, step.stage, compiled.seconds)
    plan = StagePlan(
        spec=spec,
        stage=step.stage,
        mesh={name: int(size) for name, size in session.mesh.shape.items()},
        model=Path(session.config.model.path).name,
        pairs=step.pairs,
        rows=tuple((view, shape.rows, shape.tokens) for view, shape in step.layout.views),
        lengths=lengths,
        resident=held,
        useful=step.useful,
        recomputed=step.recomputed,
        program=compiled.program,
        needed=compiled.needed,
        compile_seconds=compiled.seconds,
        note=note,
    )
    return dataclasses.replace(plan, advice=advise(session.config, plan))
