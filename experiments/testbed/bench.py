"""One setting of the testbed: languages, pretrained models and pairs of many seeds, and what is trained on them."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import numpy.typing as npt

from experiments.testbed import replicas
from experiments.testbed.cells import Cell, Source, columns
from experiments.testbed.config import Testbed, WorldSection, rates
from experiments.testbed.statistics import Found, quality
from experiments.testbed.world import (
    World,
    draw_corpus,
    draw_pairs,
    draw_prompts,
    make_world,
    token_rewards,
)
from tisdpo_jax.data import EncodedSet, Order
from tisdpo_jax.models import ComputeConfig, Model, TransformerConfig
from tisdpo_jax.objectives import Dpo, Objective, Sft
from tisdpo_jax.roles import Frozen, Role, Roles, policy_role
from tisdpo_jax.scoring import Text
from tisdpo_jax.training.objective import StepSpec
from tisdpo_jax.types import Batch, Params

Floats = npt.NDArray[np.float64]
HELD_OUT = 100_000  # added to seeds of what no training sees


@dataclasses.dataclass(frozen=True)
class Setting:
    """What is varied besides the method."""

    world: WorldSection
    pairs: int  # that policies are trained on
    contrast_pairs: int = 0  # others, that pi+ and pi- are trained on; 0: the same


class Outcome(NamedTuple):
    """Policies of a cell at the cuts of the learning curve, each `[cuts, S, G]`: means over held-out prompts."""

    reward: Floats  # true reward of a response
    kl: Floats  # log-ratio of policy and reference of a response, by sampling
    length: Floats  # tokens of a response


class Bench:
    """Everything that the cells of a setting share, made once. A class because it is costly and has parts."""

    def __init__(self, config: Testbed, setting: Setting, *, whole: bool = True, log: Any = lambda text: None) -> None:
        """
        Args:
          whole: whether pi+ and pi- are wanted at every learning rate, and policies along the learning curve; else
            at the rate that is asked for, and at the end.
        """
        self.config, self.setting, self.whole = config, setting, whole
        self.rates = rates(config.training.rates)
        first, count = config.first_seed, config.tuning_seeds + config.seeds
        self.seeds = list(range(first, first + count))  # those for tuning first
        fields = dataclasses.asdict(setting.world)
        noise = fields.pop("label_noise")
        self.worlds = [make_world(seed, **fields) for seed in self.seeds]
        self.model = Model(tiny_model(config, self.worlds[0]), ComputeConfig(layer_loop="unroll"))
        log("pretraining")
        corpora = [draw_corpus(world, seed, config.model.corpus) for world, seed in self._both()]
        size = {"steps": config.model.steps, "batch": config.model.batch_size}
        self.base: Params = replicas.pretrain(self.model, corpora, self.seeds, **size)
        self.pairs = [draw_pairs(world, seed, setting.pairs, label_noise=noise) for world, seed in self._both()]
        self.encoded = [replicas.encode(pairs) for pairs in self.pairs]
        self.fresh = [draw_pairs(world, HELD_OUT + seed, setting.pairs) for world, seed in self._both()]
        self.taught = self.encoded
        if setting.contrast_pairs:
            drawn = [
                draw_pairs(world, 2 * HELD_OUT + seed, setting.contrast_pairs, label_noise=noise)
                for world, seed in self._both()
            ]
            self.taught = [replicas.encode(pairs) for pairs in drawn]
        self.prompts = np.stack(
            [draw_prompts(world, np.random.default_rng((seed, 3)), config.prompts) for world, seed in self._both()]
        )

    def _both(self) -> Any:
        return zip(self.worlds, self.seeds, strict=True)

    @property
    def elements(self) -> int:
        return self.worlds[0].response_length

    def baseline(self) -> Outcome:
        """The model before training, as the outcome of a training at one rate, cut once."""
        return self._measure(jax.tree.map(lambda x: x[:, None], self.base))

    def train(self, cell: Cell, ratios: Sequence[Floats] | None = None) -> Outcome:
        """Trains policies at every rate on the pairs of the setting.

        Args:
          ratios: log-ratios `[n, 2, N]` of each seed, where the cell has weights.
        """
        given = None if ratios is None else columns(cell, self.pairs, ratios, self.seeds)
        batches = self._batches(self.encoded, cell.sides, given)
        at = cut_steps(len(batches.mask), self.config.cuts if self.whole else 1)
        found = [self._measure(params) for params in self._fit(cell.loss, self.rates, batches, at)]
        return Outcome(*(np.concatenate(parts) for parts in zip(*found, strict=True)))

    def contrast(self, source: Source, rate: int) -> tuple[Params, Params]:
        """pi+ and pi- of (S) or (D), trained at one rate of the grid: `[S, ...]` each."""
        at = range(len(self.rates)) if self.whole else range(rate, rate + 1)
        both = self._contrasts(source, at)
        return jax.tree.map(lambda x: x[:, at.index(rate)], both)

    @functools.cache  # noqa: B019 (a bench lives as long as its setting)
    def _contrasts(self, source: Source, at: range) -> tuple[Params, Params]:
        name: Any = source
        loss = Sft() if source == "sft" else Dpo(beta=self.config.training.beta)
        both = []
        for taken in {"sft": ((0,), (1,)), "dpo": ((0, 1), (1, 0))}[name]:
            batches = self._batches(self.taught, taken, None)
            both.append(self._fit(loss, [self.rates[number] for number in at], batches, [len(batches.mask)])[0])
        return both[0], both[1]

    def ratios(self, source: Source, rate: int = 0, *, fresh: bool = False) -> list[Floats]:
        """log pi+ - log pi- of every token, `[n, 2, N]` of each seed; the true rewards for "true".

        Args:
          rate: number of the learning rate that pi+ and pi- were trained at.
          fresh: of pairs that nothing was trained on, in place of the training pairs.
        """
        pairs = self.fresh if fresh else self.pairs
        if source == "true":
            return [drawn.rewards for drawn in pairs]
        batch = self._whole(fresh)
        if source == "prompts":
            views = ("plus", "minus")
            plus, minus = (replicas.scores(self.model, self.base, batch, view) for view in views)
        else:
            plus, minus = (replicas.scores(self.model, params, batch) for params in self.contrast(source, rate))
        return list(np.asarray(plus, np.float64) - np.asarray(minus, np.float64))

    def estimates(self, ratios: Sequence[Floats], *, fresh: bool = False) -> list[Found]:
        """How well log-ratios tell the true rewards, of each seed."""
        pairs = self.fresh if fresh else self.pairs
        return [quality(ratio, drawn.rewards, drawn.mask) for ratio, drawn in zip(ratios, pairs, strict=True)]

    def _whole(self, fresh: bool) -> Batch:
        """All pairs in one batch, in all views."""
        encoded = [replicas.encode(pairs) for pairs in self.fresh] if fresh else self.encoded
        size = self.setting.pairs
        made = replicas.layout(encoded, size, elements=self.elements, views=("main", "plus", "minus"))
        return replicas.stack_batches(encoded, [np.arange(size)] * len(encoded), made)

    def _batches(
        self, encoded: Sequence[EncodedSet], sides: tuple[int, ...], given: list[dict[str, Any]] | None
    ) -> Batch:
        """`[K, S, ...]`, the order of each seed its own."""
        training = self.config.training
        made = replicas.layout(encoded, training.batch_size, elements=self.elements, sides=sides)
        orders = [
            Order(one.lengths(sides=sides), training.batch_size, seed, training.epochs)
            for one, seed in zip(encoded, self.seeds, strict=True)
        ]
        steps = range(orders[0].steps)
        batches = [
            replicas.stack_batches(encoded, [order.batch(step) for order in orders], made, given) for step in steps
        ]
        return jax.tree.map(lambda *leaves: np.stack(leaves), *batches)

    def _fit(self, loss: Objective, at: Sequence[float], batches: Batch, cuts: Sequence[int]) -> list[Params]:
        reference = None if loss.needs.reference == "none" else Role("base")
        plan = StepSpec(Text(self.model), Roles(policy_role(lora=False), reference), loss)
        frozen: Frozen = {"params": {"base": self.base} if reference else {}, "lora": {}}
        section = self.config.training.optimizer
        grid = [rate * section.learning_rate for rate in at]
        return replicas.train(plan, section, grid, self.base, frozen, batches, cuts=cuts)

    def _measure(self, params: Params) -> Outcome:
        drawn = replicas.draw(self.model, params, self.base, self.prompts, width=self.elements)
        rewards = [
            token_rewards(world, prompts, np.moveaxis(tokens, 0, 1)).sum(-1).mean(0)
            for world, prompts, tokens in zip(self.worlds, self.prompts, drawn.tokens, strict=True)
        ]
        return Outcome(np.stack(rewards)[None], drawn.kl.mean(-1)[None], drawn.mask.sum(-1).mean(-1)[None])


def cut_steps(steps: int, cuts: int) -> list[int]:
    """Steps after which policies are measured, about evenly spaced; the last is the end."""
    return sorted({max(round(steps * part / cuts), 1) for part in range(1, cuts + 1)})


def tiny_model(config: Testbed, world: World) -> TransformerConfig:
    """A Llama of some ten thousand parameters."""
    shape = config.model
    return TransformerConfig(
        vocab_size=world.vocab_size,
        hidden_size=shape.width,
        intermediate_size=2 * shape.width,
        num_layers=shape.layers,
        num_heads=shape.heads,
        num_kv_heads=shape.heads,
        head_dim=shape.width // shape.heads,
    )
