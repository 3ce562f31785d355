"""Our half of `cpu.py`: the policy's step of each case on the same session, taken as the training loop takes it."""

from __future__ import annotations

import dataclasses
import functools
import tempfile
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np

from tisdpo_jax import interchange, partitioning
from tisdpo_jax.config import Experiment, LossSection
from tisdpo_jax.recipes import models
from tisdpo_jax.recipes.session import open_session
from tisdpo_jax.recipes.tisdpo import feed
from tisdpo_jax.roles import Casting, Role, policy_role
from tisdpo_jax.training import optim
from tisdpo_jax.training.interrupt import Interrupt
from tisdpo_jax.training.loop import Pairs, compile_step, state_shardings
from tisdpo_jax.training.objective import Plan
from tisdpo_jax.training.step import init_state


@dataclasses.dataclass(frozen=True)
class Case:
    """A loss, whether the reference runs in the step, and which columns the batch brings."""

    loss: LossSection
    live_reference: bool
    columns: tuple[str, ...] = ()


CASES = {
    "dpo, live reference": Case(LossSection(name="dpo"), True),
    "dpo, cached reference": Case(LossSection(name="dpo"), False, ("reference_logps",)),
    "tisdpo, cached, exact KL": Case(LossSection(), True, ("weights",)),
    "tisdpo, cached, no KL": Case(LossSection(kl_coef=0.0), False, ("weights", "reference_logps")),
}


class OurSide:
    """A session and the compiled step of each case.

    All cases train the same state in turn: a step's speed does not depend on the values, and so one copy of the
    moments is enough. The values of cached columns are made up for the same reason: 1 for each token's weight, -1
    for its reference log-likelihood.
    """

    def __init__(self, config: Experiment, cases: dict[str, Case]) -> None:
        self.session = session = open_session(config, Path(tempfile.mkdtemp()), Interrupt())
        self.mesh = session.mesh
        with jax.set_mesh(self.mesh):
            self.base = models.load_base(session)
            optimizer = optim.optimizer(config.train.optimizer, 1000)
            trained = models.new_trained(session, self.base, "benchmark")
            shape = jax.eval_shape(functools.partial(init_state, optimizer=optimizer), trained)
            shardings = state_shardings(shape, self.mesh)
            make = functools.partial(init_state, optimizer=optimizer)
            self.state: Any = jax.jit(make, out_shardings=shardings, donate_argnums=0)(trained)
            plans = {name: self._plan(case) for name, case in cases.items()}
            self.steps = {name: compile_step(plan, optimizer, shardings, self.mesh) for name, plan in plans.items()}
        self.order, layout = feed(session, config.train, self._plan(CASES["dpo, live reference"]), (0, 1))
        mask = session.train.mask(session.elements)
        values = {"weights": mask, "reference_logps": -mask}
        self.fed = {
            name: Pairs(session.train, layout, {column: values[column] for column in case.columns})
            for name, case in cases.items()
        }
        self.shape = {name: dataclasses.asdict(shape) for name, shape in layout.views}
        self.cases = cases
        self.metrics: dict[str, float] = {}

    def _plan(self, case: Case) -> Plan:
        reference = Role("base") if case.live_reference else None
        casting = Casting(policy_role(lora=False), reference)
        chunk = self.session.config.model.head_chunk
        return Plan(self.session.model, casting, case.loss, head_chunk=chunk)

    def pairs(self, indices: np.ndarray) -> list[tuple[list[int], list[int], list[int]]]:
        """Prompt, chosen and rejected tokens of these pairs."""
        found = (self.session.train.pairs[i] for i in indices if i >= 0)
        return [(pair.prompt.tolist(), pair.chosen.tolist(), pair.rejected.tolist()) for pair in found]

    def export(self, directory: Path) -> None:
        """The model for PyTorch."""
        with jax.set_mesh(self.mesh):
            config, tokenizer = self.session.model.config, self.session.tokenizer
            interchange.save_huggingface(directory, self.base, config, tokenizer=tokenizer)

    def step(self, name: str, indices: np.ndarray) -> float:
        """One optimizer step, from pairs to metrics on the host; its seconds."""
        case = self.cases[name]
        frozen = {"params": {"base": self.base} if case.live_reference else {}, "lora": {}}
        with jax.set_mesh(self.mesh):
            began = time.perf_counter()
            host = self.fed[name].batch(indices)
            self.state, measured = self.steps[name](self.state, frozen, partitioning.put_batch(host, self.mesh))
            self.metrics = {key: float(value) for key, value in jax.device_get(measured).items()}
            jax.block_until_ready(self.state)
            return time.perf_counter() - began

    def compiled(self, name: str) -> int:
        """How many shapes the step was compiled for."""
        return int(self.steps[name]._cache_size())
