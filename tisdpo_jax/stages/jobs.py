"""What a training is given to do: which pairs each step takes, in which shape, how often to save and to look."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tisdpo_jax import partitioning
from tisdpo_jax.config import StageSection, get
from tisdpo_jax.data import Batches, Layout, Order, States
from tisdpo_jax.stages.frozen import Columns
from tisdpo_jax.stages.pairs import Splits
from tisdpo_jax.stages.passes import fit_layout
from tisdpo_jax.stages.session import Session
from tisdpo_jax.stages.trained import checkpoints_path
from tisdpo_jax.training import Job, StepSpec

if TYPE_CHECKING:
    from tisdpo_jax.stages.training import Training


def job_of(
    session: Session,
    training: Training,
    pairs: Splits,
    columns: Columns,
    states: States | None,
    identity: dict[str, Any],
) -> Job:
    """The job of a training on these pairs; `identity` is kept with each checkpoint."""
    config = session.config
    section, plan = get(config, training.section), training.plan(config, session.model)
    order, layout = feed(session, pairs, section, plan, training.sides)
    return Job(
        stage=training.kind,
        plan=plan,
        section=section,
        pairs=Batches(pairs.train, layout, columns, states),
        order=order,
        directory=checkpoints_path(session.run_dir / training.place, training.kind),
        identity=identity,
        checkpoint_every=config.train.checkpoint_every,
        keep=config.train.keep_checkpoints,
        max_skipped=config.train.max_skipped,
        log_every=config.logging.every,
        eval_every=config.train.eval_every,
    )


def feed(
    session: Session, pairs: Splits, section: StageSection, plan: StepSpec, sides: tuple[int, ...]
) -> tuple[Order, Layout]:
    """Which pairs each step of a training takes, and the one shape that holds them all."""
    encoded, parts = pairs.train, section.gradient_accumulation_steps
    order = Order(
        encoded.lengths(sides=sides),
        section.batch_size,
        session.config.data.seed,
        section.epochs,
        places=partitioning.places(section.batch_size, session.mesh, parts=parts),
    )
    options: Any = {"parts": parts, "sides": sides, "views": plan.roles.views()}
    return order, fit_layout(session, encoded, order.batches(), pairs.elements, **options)
