"""What a run has, what it would make, and what on disk was made with another configuration. Nothing is changed."""

from __future__ import annotations

from pathlib import Path

import jax

from tisdpo_jax.artifacts import Line, Run, show
from tisdpo_jax.config import Experiment
from tisdpo_jax.recipes import graph_of
from tisdpo_jax.stages import open_session
from tisdpo_jax.training import Interrupt

WRITTEN = ("export", "evaluation.json", "report.html")  # of the policy, anew by every run


def lines(config: Experiment) -> list[Line]:
    """A line for each stage that keeps something, inputs first, and for what is written of the policy."""
    session = open_session(config, Path(config.run_dir).expanduser(), Interrupt())
    graph, run = graph_of(config), Run(session, makes=False)
    with jax.set_mesh(session.mesh):
        if not graph.pairs.inputs:
            run(graph.pairs)
        stages = show(run, graph.policy)
    policy = stages[-1]
    result = session.run_dir / graph.policy.place / "models" / graph.policy.kind
    return [*stages, *(_of_policy(session.run_dir / name, policy, result) for name in WRITTEN)]


def _of_policy(path: Path, policy: Line, result: Path) -> Line:
    if not path.exists():
        return Line(path.name, "missing", "would be made", (policy.stage,))
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
