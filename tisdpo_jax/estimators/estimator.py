"""What an estimator of token weights is: a frozen dataclass of its options that says what it reads of which models."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, Literal, NamedTuple, Protocol

import jax

Array = jax.Array


class Read(NamedTuple):
    """Values by response token `[B, 2, N]` that a model gives, each `[B, 2, N]` float32."""

    role: Literal["reference", "plus", "minus"]
    kind: Literal["logps", "entropy"] = "logps"  # a method of the scorer

    @property
    def column(self) -> str:
        """What they are called among the columns of a batch, and on disk."""
        return f"{self.role}_{self.kind}"


PLUS, MINUS = Read("plus"), Read("minus")
CONTRAST = (PLUS, MINUS)
"""What the self-reward of a pair is made of, and the weights of the paper."""


class Estimator(Protocol):
    """An estimator; an instance is hashable, and a section of the configuration."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def method(self) -> str: ...

    @property
    def reads(self) -> tuple[Read, ...]: ...

    def weights(self, values: Mapping[str, Array], mask: Array, record: Array) -> Array:
        """Token weights `[B, 2, N]`, a constant.

        Args:
          values: what `reads` asks for, by column.
          mask: `[B, 2, N]`, 1 on real response tokens.
          record: `[B]`, numbers of the pairs in their data set: what is drawn at random depends on them alone, so a
            pair has the same weights in every batch, cached or made in the step.
        """
        ...


def reads_of(columns: Iterable[str], estimator: Estimator) -> tuple[Read, ...]:
    """What has to be read of which models to make these columns of a batch."""
    reads = dict.fromkeys(CONTRAST if "self_reward" in columns else ())
    return tuple(reads | dict.fromkeys(estimator.reads if "token_weights" in columns else ()))
