"""The pairs that a round of DLMA trains on: candidates that the model's own contrast selects and labels."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import jax
import numpy as np

from tisdpo_jax.artifacts import Run, Stage, Stored, Unkept, write_text
from tisdpo_jax.errors import DataError
from tisdpo_jax.scoring import contrast_scores
from tisdpo_jax.stages import selection_counts, self_reward
from tisdpo_jax.stages.columns import derive
from tisdpo_jax.stages.frozen import Columns
from tisdpo_jax.stages.pairs import Splits
from tisdpo_jax.stages.rounds import Candidates
from tisdpo_jax.stages.scores import CachedScores
from tisdpo_jax.stages.session import Session
from tisdpo_jax.stages.trained import stored_result

SELECTION = "selection.json"


@dataclasses.dataclass(frozen=True, eq=False)
class Chosen(Splits):
    """The pairs that train, each the right way round."""

    selection: self_reward.Selection = dataclasses.field(kw_only=True)
    rewards: np.ndarray = dataclasses.field(kw_only=True)  # [n] R of all candidates
    margins: np.ndarray = dataclasses.field(kw_only=True)  # [m] R of these pairs


@dataclasses.dataclass(frozen=True)
class Selected:
    """The candidates that R selects: selection.json, pairs.jsonl. Its value is `Chosen`."""

    candidates: Candidates
    scores: tuple[CachedScores, ...]  # of pi+ and pi-

    @property
    def place(self) -> str:
        return self.candidates.responses.place

    @property
    def name(self) -> str:
        return f"{self.place} pairs"

    @property
    def inputs(self) -> tuple[Stage, ...]:
        return (self.candidates, *self.scores)

    def key(self, run: Run) -> dict[str, Any]:
        section = run.context.config.dlma
        return {f"dlma.{name}": getattr(section, name) for name in self_reward.OPTIONS}

    def stored(self, context: Session) -> Stored | None:
        path = context.run_dir / self.place / SELECTION
        try:
            key = json.loads(path.read_text(encoding="utf-8"))["key"]
            trained = stored_result(path.parent, "policy") is not None
            return Stored(path, key, remade=not trained)
        except (OSError, KeyError, ValueError):
            return None  # made again, from scores that are kept

    def make(self, run: Run) -> Chosen:
        session, offered, encoded = run.context, run(self.candidates), run(self.candidates).train
        plus, minus = (run(one) for one in self.scores)
        config, mask = session.config, encoded.mask(offered.elements)
        scores = contrast_scores(plus, minus, mask, average=config.dlma.score == "mean")
        rewards = scores[:, 0] - scores[:, 1]
        selection = self_reward.select(scores, mask.sum(-1).astype(np.int64), config.dlma)
        counts = selection_counts.selection_counts(encoded.invalid, selection, scores)
        counts["unfinished_kept"] = selection_counts.unfinished(
            encoded.groups, selection, run(self.candidates.responses)
        )
        session.say(selection_counts.summary_text(counts))
        directory = session.run_dir / self.place
        if jax.process_index() == 0:
            write_text(directory / SELECTION, json.dumps({**counts, "key": self.key(run)}, indent=2) + "\n")
        taken = self_reward.taken(encoded, selection)
        if not len(selection.indices):
            raise DataError(f"{self.place}: {selection_counts.nothing_left(taken.invalid)}")
        margins = (rewards[selection.indices] * np.where(selection.flipped, -1.0, 1.0)).astype(np.float32)
        chosen = Chosen(taken, width=offered.elements, selection=selection, rewards=rewards, margins=margins)
        if jax.process_index() == 0:
            write_text(directory / "pairs.jsonl", self_reward.as_lines(offered.records, taken, selection, margins))
        return chosen


@dataclasses.dataclass(frozen=True)
class SelectedColumns(Unkept):
    """What the training of a round takes beside its pairs: weights, R, and the reference where it is a column."""

    selected: Selected
    reference: CachedScores | None

    @property
    def name(self) -> str:
        return f"{self.selected.place} columns"

    @property
    def inputs(self) -> tuple[Stage, ...]:
        return (self.selected, *([self.reference] if self.reference else []))

    def make(self, run: Run) -> Columns:
        chosen: Chosen = run(self.selected)
        scores = {one.read.column: run(one) for one in self.selected.scores}
        columns = self_reward.turned_columns(scores, chosen.selection)
        derive(run.context.config, chosen.train, chosen.elements, columns)
        columns["self_reward"] = chosen.margins
        if self.reference is not None:
            columns[self.reference.read.column] = run(self.reference)
        return columns
