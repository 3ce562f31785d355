"""What an objective is: a frozen dataclass of its options that says what it needs, and what it makes of it.

Nothing else in the package compares names of objectives. Which models are on the devices, which columns are made,
which sides a batch has: all follows from `Needs`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, Literal, NamedTuple, Protocol

import jax
import jax.numpy as jnp

from tisdpo_jax.losses import PairLoss

Array = jax.Array

Direction = Literal["policy||reference", "reference||policy"]
Reference = Literal["none", "logps", "policy||reference", "reference||policy"]


@dataclasses.dataclass(frozen=True)
class Needs:
    """What an objective reads of the trained model, and beside that.

    reference   "none"; "logps": its log-likelihoods, cached or made in the step; or the direction of a full-vocabulary
                KL, for which both models are in the step
    columns     values by group that a stage makes or the records bring: "token_weights" `[B, 2, N]`,
                "self_reward" `[B]`, "target" `[B]`
    sides       the responses of a group that the step shows to the model: (0,) the chosen one alone
    reads       what the trained model says of a response: log-likelihoods of its tokens, or a reward, by another head
    """

    reference: Reference = "logps"
    columns: tuple[str, ...] = ()
    sides: tuple[int, ...] = (0, 1)
    reads: Literal["logps", "rewards"] = "logps"

    @property
    def direction(self) -> Direction | None:
        """Of the KL, where one is needed."""
        return None if self.reference == "none" or self.reference == "logps" else self.reference


class Inputs(NamedTuple):
    """What a loss is given. float32, natural logarithms."""

    logps: Array  # [B, K, N], of the policy; NaN where the objective reads rewards
    mask: Array  # [B, K, N]
    reference_logps: Array | None = None  # [B, K, N]
    kl: Array | None = None  # [B, K, N], in the direction that was asked for
    columns: Mapping[str, Array] = {}  # never written to
    rewards: Array | None = None  # [B, K], of the reward model that is trained


class Loss(NamedTuple):
    """A sum to differentiate and what it is divided by, so that micro-batches and hosts can be added first."""

    total: Array  # []
    denominator: Array  # []
    pairs: PairLoss | None = None  # of each group, where the objective is one of pairs


class Objective(Protocol):
    """A training objective; an instance is hashable, and a section of the configuration."""

    title: ClassVar[str]  # for people
    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def name(self) -> str: ...

    @property
    def needs(self) -> Needs: ...

    def loss(self, inputs: Inputs) -> Loss: ...


def implicit_beta(objective: Objective) -> float:
    """Scale of the implicit reward `beta (log pi - log pi_ref)` that a policy is measured by.

    That of its training where it had a reference, else 0.1: SimPO's, for one, scales means, not sums.
    """
    return float(getattr(objective, "beta", 0.1)) if objective.needs.reference != "none" else 0.1


def over_pairs(result: PairLoss, mask: Array) -> Loss:
    """The sum over real pairs, and their number: a filler, without any token, counts nowhere."""
    real = (mask > 0).any((-1, -2)).astype(jnp.float32)
    return Loss((result.loss * real).sum(), real.sum(), result)


def given(value: Array | None, what: str) -> Array:
    """The value. Raises: ValueError where a caller left out what the objective needs."""
    if value is None:
        raise ValueError(f"this objective needs {what}")
    return value
