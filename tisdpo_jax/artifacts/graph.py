"""A run as a graph: stages that say what they are made of, and two ways to go through it, `Run` and `show`.

A stage is a frozen dataclass of plain values and other stages. It knows no directory: that is the context's. What a
stage has made is kept where it says, with its key beside it; another key is a difference that is named, never a file to
be overwritten. A stage that nothing asks for does not exist, so nothing is made for nobody.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

from tisdpo_jax.artifacts.key import differences


class Stored(NamedTuple):
    """What a stage has left on disk."""

    path: Path
    key: Mapping[str, Any]
    whole: bool = True  # else it goes on from here
    progress: str = ""
    remade: bool = False  # nothing stands on it yet: where its key differs it is made again, not refused


class Stage(Protocol):
    """A step of a run. Hashable; two stages with the same fields are one."""

    @property
    def name(self) -> str:
        """What people call it; no two stages of a graph share it."""
        ...

    @property
    def inputs(self) -> tuple[Stage, ...]: ...

    def make(self, run: Run) -> Any:
        """The result: read where it is stored, else made, and stored. `run(stage)` gives that of an input.

        Raises: CheckpointError when what is stored was made with something else; it names what differs.
        """
        ...

    def key(self, run: Run) -> Mapping[str, Any] | None:
        """What the result depends on, as far as that is known from what `run` has; None keeps nothing on disk."""
        ...

    def stored(self, context: Any) -> Stored | None: ...


class Run:
    """Makes what is asked for, each stage once. Values of models are given up with `only`.

    `makes` False is for what looks at a run: what is not there is an error, and nothing is trained.
    """

    def __init__(self, context: Any, *, makes: bool = True) -> None:
        self.context, self.makes = context, makes
        self._values: dict[Stage, Any] = {}

    def __call__(self, stage: Stage) -> Any:
        if stage not in self._values:
            self._values[stage] = stage.make(self)
        return self._values[stage]

    def known(self, stage: Stage) -> Any:
        """The value of a stage where it is made or read already; else None."""
        return self._values.get(stage)

    def forget(self, stage: Stage) -> None:
        """Asked for again, the value is read again."""
        self._values.pop(stage, None)

    def only(self, kept: Iterable[Stage]) -> None:
        """Forgets all other values that are large, those with a method `drop`: asked for again, they are read again."""
        names = {stage.name for stage in kept}
        self._values = {
            stage: value for stage, value in self._values.items() if stage.name in names or not hasattr(value, "drop")
        }


def order(*goals: Stage) -> list[Stage]:
    """The goals and all that they are made of, inputs first, each once."""
    ordered: dict[Stage, None] = {}

    def visit(stage: Stage) -> None:
        if stage not in ordered:
            for one in stage.inputs:
                visit(one)
            ordered[stage] = None

    for goal in goals:
        visit(goal)
    return list(ordered)


class Line(NamedTuple):
    """What `show` says of a stage."""

    stage: str
    state: Literal["there", "begun", "missing", "stale"]
    why: str
    inputs: tuple[str, ...]


def show(run: Run, *goals: Stage) -> list[Line]:
    """What is there, what would be made, and what was made with another configuration: nothing is made or changed."""
    return [_line(run, stage) for stage in order(*goals) if stage.key(run) is not None]


def _line(run: Run, stage: Stage) -> Line:
    stored, inputs = stage.stored(run.context), tuple(_kept(run, stage))
    if stored is None:
        return Line(stage.name, "missing", "would be made", inputs)
    changed = changes(run, stage, stored)
    if changed and stored.remade:
        return Line(stage.name, "missing", f"would be made again: {'; '.join(changed)}", inputs)
    if changed:
        return Line(stage.name, "stale", f"{stored.path}: {'; '.join(changed)}", inputs)
    if not stored.whole:
        return Line(stage.name, "begun", f"{stored.path}: {stored.progress}", inputs)
    return Line(stage.name, "there", str(stored.path), inputs)


def changes(run: Run, stage: Stage, stored: Stored) -> list[str]:
    """What differs between a stored key and the stage's, as far as both know it."""
    wanted = stage.key(run) or {}
    return differences({name: value for name, value in stored.key.items() if name in wanted}, wanted)


def _kept(run: Run, stage: Stage) -> Iterable[str]:
    """Names of the nearest stages below that keep something on disk."""
    for one in stage.inputs:
        if one.key(run) is not None:
            yield one.name
        else:
            yield from _kept(run, one)


class Unkept:
    """A stage of which nothing is kept on disk: it is made again, or read from where it came."""

    def key(self, run: Run) -> None:
        return None

    def stored(self, context: Any) -> None:
        return None


@dataclasses.dataclass(frozen=True, eq=False)
class Given(Unkept):
    """A value that somebody has made already, as a stage."""

    name: str
    value: Any
    inputs: tuple[Stage, ...] = ()

    def make(self, run: Run) -> Any:
        return self.value
