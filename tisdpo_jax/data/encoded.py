"""Preference pairs as token ids."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from tisdpo_jax.data.records import Message, Rejection, summarise

Ids = npt.NDArray[np.int32]


@dataclasses.dataclass(frozen=True, eq=False)
class EncodedPair:
    """One prompt and two responses; a row of the model is prompt + response.

    The responses end with the end-of-turn token unless they were cut. In the contrastive views the
    same responses stand behind `plus_prompt` and `minus_prompt`.
    """

    id: str
    origin: str  # "file:line"
    prompt: Ids  # [P]
    chosen: Ids  # [C]
    rejected: Ids  # [R]
    plus_prompt: Ids | None = None
    minus_prompt: Ids | None = None
    parts: bool = False  # its prompt ends before what sampling begins from: what is answered is tokenised otherwise
    truncated_prompt: bool = False  # its beginning was cut
    truncated_chosen: bool = False  # its end was cut, the end-of-turn token with it
    truncated_rejected: bool = False
    margin: float | None = None
    chosen_weights: npt.NDArray[np.float32] | None = None  # [C]
    rejected_weights: npt.NDArray[np.float32] | None = None  # [R]
    group: str | None = None  # its subset
    messages: tuple[Message, ...] = ()  # the prompt as it was written

    @property
    def prompts(self) -> dict[str, Ids]:
        """Prompt of every view that the pair has: "main", and "plus" and "minus" with contrastive prompts."""
        views = {"main": self.prompt, "plus": self.plus_prompt, "minus": self.minus_prompt}
        return {name: ids for name, ids in views.items() if ids is not None}


@dataclasses.dataclass(frozen=True, eq=False)
class EncodedSet:
    """All pairs of a source as token ids, and every record that was left out on the way."""

    pairs: tuple[EncodedPair, ...]
    rejections: tuple[Rejection, ...]  # those of the `PairSet` first
    source: str
    counts: Mapping[
        str, int
    ]  # records, usable, rejected, parts, truncated_prompt, truncated_chosen, truncated_rejected
    unread: Mapping[str, int] = dataclasses.field(default_factory=dict)  # names in records that nothing reads: records

    def elements(self, multiple: int = 8) -> int:
        """N: the longest response, rounded up to a multiple."""
        longest = max((max(len(pair.chosen), len(pair.rejected)) for pair in self.pairs), default=1)
        return -(-longest // multiple) * multiple

    def lengths(self, view: str = "main", sides: Sequence[int] = (0, 1)) -> npt.NDArray[np.int64]:
        """Tokens of each pair, the prompt of the view counted once, [n]."""
        sizes = [[len(pair.prompts[view]), len(pair.chosen), len(pair.rejected)] for pair in self.pairs]
        return np.asarray(sizes, np.int64).reshape(-1, 3)[:, [0, *(1 + side for side in sides)]].sum(1)

    def mask(self, elements: int) -> npt.NDArray[np.float32]:
        """1 on the response tokens of each pair, [n, 2, N]."""
        sizes = np.asarray([[len(pair.chosen), len(pair.rejected)] for pair in self.pairs], np.int64).reshape(-1, 2)
        return (np.arange(elements) < sizes[..., None]).astype(np.float32)

    def fingerprint(self) -> str:
        """Hex digest of all token ids, in order: what a cache of scores depends on besides the models."""
        digest = hashlib.sha256()
        for array in self._arrays():
            digest.update(len(array).to_bytes(8, "little"))
            digest.update(np.ascontiguousarray(array, dtype="<i4").tobytes())
        return digest.hexdigest()

    def _arrays(self) -> Iterator[Ids]:
        empty = np.zeros(0, np.int32)
        for pair in self.pairs:
            yield pair.prompt
            yield pair.chosen
            yield pair.rejected
            yield empty if pair.plus_prompt is None else pair.plus_prompt
            yield empty if pair.minus_prompt is None else pair.minus_prompt

    def summary(self) -> str:
        """Counts of records, of each reason of rejection, of what nothing reads and of what was cut, a line each."""
        lines = [summarise(self.source, len(self.pairs), self.rejections, self.unread)]
        if self.counts.get("parts"):
            lines.append(f"  {self.counts['parts']:6d}  pairs whose prompt ends before what sampling begins from")
        for name in ("prompt", "chosen", "rejected"):
            if self.counts[f"truncated_{name}"]:
                part = "beginning" if name == "prompt" else "end"
                lines.append(f"  {self.counts[f'truncated_{name}']:6d}  pairs with the {part} of the {name} cut")
        return "\n".join(lines)
