"""What a run has, what it would make, and what on disk was made with another configuration. Nothing is changed."""

from __future__ import annotations

from pathlib import Path

import jax

from tisdpo_jax.artifacts import Line, show
from tisdpo_jax.config import Experiment
from tisdpo_jax.errors import ConfigError
from tisdpo_jax.recipes.tisdpo import tisdpo
from tisdpo_jax.stages import open_session
from tisdpo_jax.training import Interrupt

WRITTEN = ("export", "evaluation.json", "report.html")  # of the policy, anew by every run


def lines(config: Experiment) -> list[Line]:
    """A line for each stage that keeps something, inputs first, and for what is written of the policy.

    Raises: ConfigError for a configuration of DLMA, whose pairs are made round by round.
    """
    if config.dlma.rounds:
        raise ConfigError("tisdpo show: the pairs of DLMA are made round by round (dlma.rounds); look into run_dir")
    session = open_session(config, Path(config.run_dir).expanduser(), Interrupt())
    with jax.set_mesh(session.mesh):
        stages = show(session, tisdpo(config).policy)
    policy = stages[-1]
    return [*stages, *(_of_policy(session.run_dir / name, policy) for name in WRITTEN)]


def _of_policy(path: Path, policy: Line) -> Line:
    if not path.exists():
        return Line(path.name, "missing", "would be made", (policy.stage,))
    result = path.parent / "models" / policy.stage
    if policy.state != "there" or path.stat().st_mtime < result.stat().st_mtime:
        return Line(path.name, "stale", f"{path}: of another policy than that of this configuration", (policy.stage,))
    return Line(path.name, "there", str(path), (policy.stage,))


def text(config: Experiment) -> str:
    """The same as a table."""
    rows = lines(config)
    width = max(len(row.stage) for row in rows)
    table = [f"{row.stage:<{width}}  {row.state:<7}  {row.why}" for row in rows]
    stale = [row.stage for row in rows if row.state == "stale" and row.stage not in WRITTEN]
    if stale:
        table.append(
            f"\n`tisdpo run` refuses what is stale ({', '.join(stale)}): go back to the values it was made with, or "
            "use a new run_dir"
        )
    return "\n".join(table)
