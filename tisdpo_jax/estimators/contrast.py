"""Estimators from the log-ratios of pi+ and pi-: the paper's, its controls, and the transforms of the public code."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Literal

import jax

from tisdpo_jax import weights
from tisdpo_jax.estimators.estimator import CONTRAST, MINUS, PLUS, Read
from tisdpo_jax.options import option

Array = jax.Array
Values = Mapping[str, Array]


@dataclasses.dataclass(frozen=True)
class Formula:
    """Options of the paper's formula, `k exp(+-mu clamp(log pi+ - log pi-, L, U))`."""

    reads: ClassVar[tuple[Read, ...]] = CONTRAST
    scale: float = option(1.0, "k of the paper", above=0)
    mu: float = option(1.0, "mu of the paper: +mu on chosen, -mu on rejected")
    lower: float = option(-0.5, "L of the paper: lower clamp of the log-ratio")
    upper: float = option(1.5, "U of the paper: upper clamp of the log-ratio")

    @property
    def formula(self) -> dict[str, Any]:
        return {"scale": self.scale, "mu": self.mu, "lower": self.lower, "upper": self.upper}


@dataclasses.dataclass(frozen=True)
class Importance(Formula):
    method: Literal["importance"] = option("importance", "the paper's importance weight")

    def weights(self, values: Values, mask: Array, record: Array) -> Array:
        return weights.importance_weights(*_contrast(values), mask, **self.formula)


@dataclasses.dataclass(frozen=True)
class Rank(Formula):
    method: Literal["rank"] = option("rank", "control: the order of the log-ratios without their size")

    def weights(self, values: Values, mask: Array, record: Array) -> Array:
        return weights.rank(*_contrast(values), mask, **self.formula)


@dataclasses.dataclass(frozen=True)
class Shuffled(Formula):
    method: Literal["shuffled"] = option("shuffled", "control: the paper's weights on the wrong tokens")
    seed: int = option(0, "seed of the permutations")

    def weights(self, values: Values, mask: Array, record: Array) -> Array:
        positive, negative = _contrast(values)
        return _drawn(weights.shuffled, self.seed, positive, negative, mask, record, **self.formula)


@dataclasses.dataclass(frozen=True)
class LogUniform(Formula):
    reads: ClassVar[tuple[Read, ...]] = ()
    method: Literal["log_uniform"] = option("log_uniform", "control: the paper's formula on log-ratios drawn at random")
    seed: int = option(0, "seed of the draws")

    def weights(self, values: Values, mask: Array, record: Array) -> Array:
        return _drawn(weights.log_uniform, self.seed, mask, mask, mask, record, **self.formula)


@dataclasses.dataclass(frozen=True)
class Uniform:
    reads: ClassVar[tuple[Read, ...]] = ()
    method: Literal["uniform"] = option("uniform", "control: weight 1 on every token")

    def weights(self, values: Values, mask: Array, record: Array) -> Array:
        return weights.uniform(mask, mask, mask)


@dataclasses.dataclass(frozen=True)
class Position:
    reads: ClassVar[tuple[Read, ...]] = ()
    method: Literal["position"] = option("position", "control: weights by the place in the response alone")
    gamma: float = option(0.9, "a token's weight is gamma to the power of its place in the response", above=0)

    def weights(self, values: Values, mask: Array, record: Array) -> Array:
        return weights.position(mask, mask, mask, gamma=self.gamma)


@dataclasses.dataclass(frozen=True)
class Binary:
    reads: ClassVar[tuple[Read, ...]] = CONTRAST
    method: Literal["binary"] = option("binary", "public code: 1 on the tokens with the largest log-ratios, else 0")
    top_percent: float = option(
        50.0, "percent of the tokens of a response that keep weight 1 (at 100 it would be uniform)", above=0, below=100
    )

    def weights(self, values: Values, mask: Array, record: Array) -> Array:
        return weights.TRANSFORMS["binary"](*_contrast(values), mask, top_percent=self.top_percent, zero_last=True)


@dataclasses.dataclass(frozen=True)
class Random:
    reads: ClassVar[tuple[Read, ...]] = ()
    method: Literal["random"] = option("random", "public code: U(0.7, 1.3)")
    seed: int = option(0, "seed of the draws")

    def weights(self, values: Values, mask: Array, record: Array) -> Array:
        return _drawn(weights.TRANSFORMS["random"], self.seed, mask, mask, mask, record, zero_last=True)


class _Transform:
    """A transform of the public code without options; as there, the last token of a response weighs 0."""

    reads: ClassVar[tuple[Read, ...]] = CONTRAST
    method: str

    def weights(self, values: Values, mask: Array, record: Array) -> Array:
        return weights.TRANSFORMS[self.method](*_contrast(values), mask, zero_last=True)


@dataclasses.dataclass(frozen=True)
class RankBased(_Transform):
    method: Literal["rank_based"] = option("rank_based", "public code: ranks, mapped to [0.7, 1.3]")


@dataclasses.dataclass(frozen=True)
class ThresholdAndScale(_Transform):
    method: Literal["threshold_and_scale"] = option("threshold_and_scale", "public code: clamped, to [0.7, 1.3]")


@dataclasses.dataclass(frozen=True)
class Threshold(_Transform):
    method: Literal["threshold"] = option("threshold", "public code: log-ratios clamped to [-1, 1] as they are")


@dataclasses.dataclass(frozen=True)
class Origin(_Transform):
    method: Literal["origin"] = option("origin", "public code: log-ratios as they are")


def _contrast(values: Values) -> tuple[Array, Array]:
    return values[PLUS.column], values[MINUS.column]


def _drawn(
    function: Callable[..., Array],
    seed: int,
    positive: Array,
    negative: Array,
    mask: Array,
    record: Array,
    **options: Any,
) -> Array:
    """A random control, each pair with a key of its own."""
    keys = jax.vmap(lambda number: jax.random.fold_in(jax.random.key(seed), number))(record)
    return jax.vmap(lambda p, n, m, key: function(p, n, m, key=key, **options))(positive, negative, mask, keys)
