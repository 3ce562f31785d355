"""Values by pair that a step takes beside the tokens: what records bring, what was read of models, what follows."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from tisdpo_jax.artifacts import Run, Stage, Unkept
from tisdpo_jax.config import Experiment
from tisdpo_jax.data import EncodedSet, recorded_columns
from tisdpo_jax.errors import ConfigError
from tisdpo_jax.estimators import CONTRAST, Estimator
from tisdpo_jax.scoring import contrast_scores
from tisdpo_jax.stages.frozen import Columns
from tisdpo_jax.stages.scores import REFERENCE_LOGPS, CachedScores

BROUGHT = {"token_weights": "chosen_weights and rejected_weights", "self_reward": "margin"}  # fields of records


@dataclasses.dataclass(frozen=True)
class PairColumns(Unkept):
    """Columns of a split: what its records bring, what was read of models, and what follows from that."""

    split: str
    scores: tuple[CachedScores, ...]
    derived: bool  # whether token weights and self-rewards are made of the scores
    pairs: Stage

    @property
    def name(self) -> str:
        return f"columns {self.split}"

    @property
    def inputs(self) -> tuple[Stage, ...]:
        return (self.pairs, *self.scores)

    def make(self, run: Run) -> Columns:
        config, pairs = run.context.config, run(self.pairs)
        encoded, elements = pairs.split(self.split), pairs.elements
        columns: Columns = dict(recorded_columns(encoded, elements))
        if "target" in config.loss.needs.columns:
            columns["target"] = targets(config.strengths, encoded)
        columns |= {one.read.column: run(one) for one in self.scores if one.read != REFERENCE_LOGPS}
        if self.derived:
            derive(config, encoded, elements, columns)
        columns |= {one.read.column: run(one) for one in self.scores if one.read == REFERENCE_LOGPS}
        check_columns(config, encoded, columns)
        return columns


def targets(strengths: Any, encoded: EncodedSet) -> np.ndarray:
    """Probabilities `[n]` that the chosen response is the better one, by what records say of their strength.

    1 where a record says nothing; a number is meant itself.
    """
    named: dict[Any, Any] = {
        None: 1.0,
        "significantly": strengths.significantly,
        "better": strengths.better,
        "slightly": strengths.slightly,
        "negligibly": strengths.negligibly,
    }
    return np.asarray([named.get(one.strength, one.strength) for one in encoded.groups], np.float32)


def derive(config: Experiment, encoded: EncodedSet, elements: int, columns: Columns) -> None:
    """Token weights from what the estimator reads, and the self-reward of the pair from the contrast of pi+ and pi-.

    Each is made where its reads are among the columns.
    """
    estimator, mask = config.weights, encoded.mask(elements)
    new: Columns = {}
    wanted = "token_weights" in config.loss.needs.columns or estimator.reads
    if wanted and all(read.column in columns for read in estimator.reads):
        new["token_weights"] = weights_of_pairs(estimator, columns, mask)
    if all(read.column in columns for read in CONTRAST):
        scores = contrast_scores(columns["plus_logps"], columns["minus_logps"], mask)
        new["self_reward"] = (scores[:, 0] - scores[:, 1]).astype(np.float32)
    if new and ("token_weights" in columns or "self_reward" in columns):
        raise ConfigError(
            f"{encoded.source}: brings its own weights or margin, which a contrast would overwrite; "
            "set contrast.construction none, or take these fields out"
        )
    if "token_weights" in new and not new["token_weights"].any():
        raise ConfigError(f"{encoded.source}: weights.method {estimator.method} gives weight 0 to all tokens")
    columns |= new


def weights_of_pairs(estimator: Estimator, columns: Mapping[str, Any], mask: np.ndarray) -> np.ndarray:
    """An estimator's weights `[n, 2, N]` of all pairs, some hundreds at a time."""
    parts, record = [], np.arange(len(mask))
    for rows in np.array_split(record, max(-(-len(record) // 256), 1)):
        values = {read.column: jnp.asarray(columns[read.column][rows]) for read in estimator.reads}
        parts.append(np.asarray(estimator.weights(values, jnp.asarray(mask[rows]), jnp.asarray(rows))))
    return np.concatenate(parts)


def check_columns(config: Experiment, encoded: EncodedSet, columns: Columns) -> None:
    """Raises: ConfigError where records were to bring what the objective needs, and do not."""
    loss, construction = config.loss, config.contrast.construction
    for column in (name for name in loss.needs.columns if construction == "none" and name not in columns):
        raise ConfigError(
            f"loss.name {loss.name} needs {column}: set contrast.construction to prompts, sft or dpo, "
            f"or give every record of {encoded.source} the fields {BROUGHT[column]}"
        )
