"""Our steps, as `cpu.py` and `gpu.py` time them: case by case on one session, taken as the training loop takes them."""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from cases import CASES

from tisdpo_jax.config import Experiment, build, nest
from tisdpo_jax.data import Batches, EncodedSet, States
from tisdpo_jax.models import head_only
from tisdpo_jax.planning import useful
from tisdpo_jax.recipes import graph_of
from tisdpo_jax.stages import Session, Splits, feed, new_trained
from tisdpo_jax.training import optim
from tisdpo_jax.training.passes import on_devices
from tisdpo_jax.training.step import compile_step, init_state, state_shardings
from tisdpo_jax.types import Params


@dataclasses.dataclass(frozen=True)
class Ready:
    """A case before its first step."""

    step: Any
    frozen: Any
    pairs: Batches


class Steps:
    """The steps of some cases on one session.

    All train the same state in turn: a step's speed does not depend on the values, and one copy of the moments is
    enough. What is read from disk in a run is made up for the same reason: weights of 1, reference log-likelihoods of
    -1, hidden states of 0.
    """

    def __init__(self, session: Session, pairs: Splits, names: Sequence[str], load: Callable[[], Params]) -> None:
        """`load` gives the pretrained parameters on the mesh of the session."""
        self.mesh, self.names = session.mesh, tuple(names)
        self.encoded, self.config = pairs.train, session.model.config
        section = session.config.train
        policies = {
            name: (config, graph_of(config).policy) for name in names for config in [with_case(session.config, name)]
        }
        plans = {name: (one.plan(config, session.model), one.taken) for name, (config, one) in policies.items()}
        needs = {key for plan, _ in plans.values() for _, key in plan.roles.needs()}
        self.order, self.layout = feed(session, pairs, section, next(iter(plans.values()))[0], (0, 1))
        optimizer = optim.optimizer(section.optimizer, self.order.steps)
        begin = functools.partial(init_state, optimizer=optimizer)
        with jax.set_mesh(self.mesh):
            base = load()
            trained = new_trained(session, base, "benchmark")
            trees = {"base": base} if "base" in needs else {}
            trees |= {"head": head_only(session.model.config, base)} if "head" in needs else {}
            del base
            shardings = state_shardings(jax.eval_shape(begin, trained), self.mesh)
            self.state: Any = jax.jit(begin, out_shardings=shardings, donate_argnums=0)(trained)
        mask = self.encoded.mask(pairs.elements)
        columns = {"token_weights": mask, "reference_logps": -mask}
        blank = blank_states(self.encoded, session.model.config.hidden_size, session.config.model.dtype)
        self.ready = {}
        for name, (plan, taken) in plans.items():
            keys = {key for _, key in plan.roles.needs()}
            frozen = {"params": {key: tree for key, tree in trees.items() if key in keys}, "lora": {}}
            rows = Batches(self.encoded, self.layout, {column: columns[column] for column in taken})
            if "head" in keys:
                rows = dataclasses.replace(rows, states=blank)
            self.ready[name] = Ready(compile_step(plan, optimizer, shardings, self.mesh), frozen, rows)
        self.metrics: dict[str, float] = {}

    def take(self, name: str, number: int) -> float:
        """One optimizer step of a case on batch `number`, from pairs on the host to its metrics there; its seconds."""
        ready = self.ready[name]
        with jax.set_mesh(self.mesh):
            began = time.perf_counter()
            batch = on_devices(ready.pairs, self.batch(number), self.mesh)
            self.state, measured = ready.step(self.state, ready.frozen, batch)
            self.metrics = {key: float(value) for key, value in jax.device_get(measured).items()}
            jax.block_until_ready(self.state)
            return time.perf_counter() - began

    def batch(self, number: int) -> np.ndarray:
        """Indices of the pairs of a batch; they begin anew after an epoch."""
        return self.order.batch(number % self.order.steps)

    def lengths(self, number: int) -> np.ndarray:
        """Tokens of prompt, chosen and rejected response of each pair of a batch, `[B, 3]`."""
        rows = self.batch(number)
        rows = rows[rows >= 0]
        return np.column_stack([self.encoded.prompts().sizes[rows], self.encoded.responses.sizes[rows]])

    def shape(self) -> dict[str, int]:
        """Rows of a batch, and tokens of a row."""
        return dataclasses.asdict(dict(self.layout.views)["main"])

    def compiled(self, name: str) -> int:
        """How many shapes a step was compiled for."""
        return int(self.ready[name].step._cache_size())

    def useful_flops(self, name: str, numbers: Sequence[int]) -> float:
        """Flops that a case needs for the real tokens of these batches."""
        lengths = np.concatenate([self.lengths(number) for number in numbers])
        once = useful.forward(self.config, lengths)
        costs = {"base": once, "head": once.times(0, 0, 1)}
        frozen = [costs[key] for key in self.ready[name].frozen["params"]]
        return useful.training(self.config, lengths, frozen, adapters=0).total


def with_case(config: Experiment, name: str) -> Experiment:
    """The configuration with the fields of a case."""
    where = f"case {name}"
    return build(Experiment, nest(CASES[name], where=where), where=where, base=config)


def blank_states(encoded: EncodedSet, width: int, dtype: str) -> States:
    """Hidden states of 0 for all response tokens."""
    bits: Any = {"bfloat16": np.uint16, "float32": np.float32}[dtype]
    return States(np.zeros((len(encoded.responses.values), width), bits), encoded.responses.starts, dtype)
