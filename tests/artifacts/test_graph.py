"""The graph of a run, on stages that compute nothing: order, what is made once, what is shown."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from tisdpo_jax.artifacts import Given, Run, Stored, changes, order, show


@dataclasses.dataclass
class Context:
    """A directory as a dict, and what was made in it."""

    options: dict[str, Any]
    disk: dict[str, tuple[dict[str, Any], bool]] = dataclasses.field(default_factory=dict)
    made: list[str] = dataclasses.field(default_factory=list)


class Large(str):
    """A value that is given up when it is not needed, as the parameters of a whole model are."""

    def drop(self) -> None: ...


@dataclasses.dataclass(frozen=True)
class Fake:
    name: str
    inputs: tuple[Any, ...] = ()
    kept: bool = True
    large: bool = False

    def key(self, run: Run) -> dict[str, Any] | None:
        return {f"{self.name}.option": run.context.options.get(self.name, 0)} if self.kept else None

    def stored(self, context: Context) -> Stored | None:
        if self.name not in context.disk:
            return None
        key, whole = context.disk[self.name]
        return Stored(Path(self.name), {**key, "content of inputs": "unknown to others"}, whole, "goes on from step 3")

    def make(self, run: Run) -> str:
        parts = [run(one) for one in self.inputs]
        run.context.made.append(self.name)
        if self.kept:
            run.context.disk[self.name] = (dict(self.key(run) or {}), True)
        text = f"{self.name}({', '.join(parts)})"
        return Large(text) if self.large else text


BASE = Fake("base", kept=False)
PLUS, MINUS = Fake("plus", (BASE,)), Fake("minus", (BASE,))
WEIGHTS = Fake("weights", (PLUS, MINUS), kept=False)
POLICY = Fake("policy", (BASE, WEIGHTS))


def states(context: Context) -> dict[str, str]:
    return {line.stage: line.state for line in show(Run(context), POLICY)}


def test_inputs_come_first_and_each_stage_once() -> None:
    assert [stage.name for stage in order(POLICY)] == ["base", "plus", "minus", "weights", "policy"]
    assert order(Fake("plus", (BASE,)), PLUS) == [BASE, PLUS], "two stages of equal fields are one"
    context = Context({})
    assert Run(context)(POLICY) == "policy(base(), weights(plus(base()), minus(base())))"
    assert context.made == ["base", "plus", "minus", "weights", "policy"]


def test_what_nobody_asks_for_is_not_made() -> None:
    context = Context({})
    Run(context)(Fake("policy", (BASE,)))
    assert context.made == ["base", "policy"]


def test_what_is_forgotten_is_made_again_and_what_is_kept_is_not() -> None:
    context = Context({})
    run = Run(context)
    run(POLICY)
    other = Fake("other", large=True)
    run(other), run(Fake("third", large=True))
    run.only([other])
    run(other), run(PLUS), run(Fake("third", large=True))
    assert context.made[5:] == ["other", "third", "third"]


def test_a_value_that_is_given_stands_for_a_stage() -> None:
    context = Context({})
    given = Given("base", "mine")
    assert Run(context)(Fake("policy", (given,))) == "policy(mine)"
    assert [line.stage for line in show(Run(context), Fake("policy", (given,)))] == ["policy"]


def test_show_before_during_and_after_a_run_and_after_a_change() -> None:
    context = Context({})
    assert states(context) == {"plus": "missing", "minus": "missing", "policy": "missing"}
    run = Run(context)
    run(PLUS)
    context.disk["minus"] = ({"minus.option": 0}, False)
    assert states(context) == {"plus": "there", "minus": "begun", "policy": "missing"}
    run(POLICY)
    assert set(states(context).values()) == {"there"}
    context.options["minus"] = 7
    lines = {line.stage: line for line in show(Run(context), POLICY)}
    assert [name for name, line in lines.items() if line.state == "stale"] == ["minus"]
    assert "minus.option (was 0, now 7)" in lines["minus"].why and lines["policy"].inputs == ("plus", "minus")
    context.options["minus"] = 0
    assert set(states(context).values()) == {"there"}, "changed back"


def test_only_what_is_known_now_is_compared() -> None:
    context = Context({"plus": 1})
    stored = Stored(Path("plus"), {"plus.option": 1, "content of inputs": "ab"})
    assert changes(Run(context), PLUS, stored) == []
    assert changes(Run(context), PLUS, stored._replace(key={"content of inputs": "ab"})) == [
        "plus.option (was absent, now 1)"
    ]
