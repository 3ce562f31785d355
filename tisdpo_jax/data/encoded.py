"""Groups of responses as token ids: K responses behind one prompt; a preference pair is a group of two."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from tisdpo_jax.data.records import InvalidRecord, Message, summarise

Ids = npt.NDArray[np.int32]
SIDES = ("chosen", "rejected")


def response_names(count: int) -> tuple[str, ...]:
    """What people call the responses of a group of `count`."""
    return SIDES if count == 2 else ("response",) if count == 1 else tuple(f"response {k}" for k in range(count))


@dataclasses.dataclass(frozen=True, eq=False)
class EncodedGroup:
    """One prompt and K responses to it; a conversation is prompt + response.

    The responses end with the end-of-turn token unless they were cut; one may be empty, and its mask is 0. In the
    contrastive views the same responses stand behind the prompts "plus" and "minus".
    """

    id: str
    origin: str  # "file:line"
    prompts: Mapping[str, Ids]  # by view, "main" always; [P] each, at least one token
    responses: tuple[Ids, ...]  # K times [n]; of a pair, the chosen one first
    truncated: tuple[bool, ...] = ()  # of each response: its end was cut, the end-of-turn token with it; (): of none
    truncated_prompt: bool = False  # its beginning was cut
    parts: bool = False  # its prompt ends before what sampling begins from: what is answered is tokenised otherwise
    margin: float | None = None
    strength: str | float | None = None
    weights: tuple[npt.NDArray[np.float32], ...] | None = None  # of the tokens of each response
    subset: str | None = None
    messages: tuple[Message, ...] = ()  # the prompt as it was written

    @property
    def prompt(self) -> Ids:
        """That of the main view."""
        return self.prompts["main"]

    @property
    def chosen(self) -> Ids:
        """The preferred response of a pair."""
        return self.responses[0]

    @property
    def rejected(self) -> Ids:
        return self.responses[1]

    def flipped(self) -> EncodedGroup:
        """The same with its responses in reversed order, without what was said of the first against the others."""
        weights = self.weights and self.weights[::-1]
        turned = {"responses": self.responses[::-1], "truncated": self.truncated[::-1], "weights": weights}
        return dataclasses.replace(self, **turned, margin=None, strength=None)  # type: ignore[arg-type]  # fields by name


class Ragged(NamedTuple):
    """Arrays of many lengths, one behind the other."""

    values: Ids
    starts: npt.NDArray[np.int64]  # [...] where each begins
    sizes: npt.NDArray[np.int64]  # [...]


def ragged(arrays: Sequence[Ids], *shape: int) -> Ragged:
    sizes = np.asarray([len(array) for array in arrays], np.int64)
    values = np.concatenate([np.zeros(0, np.int32), *arrays])
    return Ragged(values, (np.cumsum(sizes) - sizes).reshape(shape), sizes.reshape(shape))


@dataclasses.dataclass(frozen=True, eq=False)
class EncodedSet:
    """All groups of a source as token ids, each of K responses, and every record that was left out on the way."""

    groups: tuple[EncodedGroup, ...]
    invalid: tuple[InvalidRecord, ...]  # those of the `PairSet` first
    source: str
    unread: Mapping[str, int] = dataclasses.field(default_factory=dict)  # names in records that nothing reads: records

    def __post_init__(self) -> None:
        odd = next((one for one in self.groups if len(one.responses) != self.size), None)
        if odd is not None or not self.size:
            raise ValueError(
                f"{odd.origin if odd else self.source}: {len(odd.responses) if odd else 0} responses in a group, where "
                f"others have {self.size or 'at least 1'}"
            )

    def __len__(self) -> int:
        return len(self.groups)

    @property
    def size(self) -> int:
        """K, responses of a group; 2 where there is no group."""
        return len(self.groups[0].responses) if self.groups else 2

    @functools.cached_property
    def responses(self) -> Ragged:
        """The tokens of all responses, [n, K]."""
        return ragged([ids for group in self.groups for ids in group.responses], len(self), self.size)

    @functools.cached_property
    def _prompts(self) -> dict[str, Ragged]:
        return {}

    def prompts(self, view: str = "main") -> Ragged:
        """The tokens of all prompts of a view, [n]. Raises: KeyError where a group has none."""
        if view not in self._prompts:
            self._prompts[view] = ragged([group.prompts[view] for group in self.groups], len(self))
        return self._prompts[view]

    def elements(self, multiple: int = 8) -> int:
        """N: the longest response, rounded up to a multiple."""
        longest = int(self.responses.sizes.max(initial=1))
        return -(-longest // multiple) * multiple

    def lengths(self, view: str = "main", sides: Sequence[int] | None = None) -> npt.NDArray[np.int64]:
        """Tokens of each group, the prompt of the view counted once, [n]; of all responses, or those of `sides`."""
        sizes = self.responses.sizes
        return self.prompts(view).sizes + (sizes if sides is None else sizes[:, list(sides)]).sum(1)

    def mask(self, elements: int) -> npt.NDArray[np.float32]:
        """1 on the response tokens of each group, [n, K, N]."""
        return (np.arange(elements) < self.responses.sizes[..., None]).astype(np.float32)

    def fingerprint(self) -> str:
        """Hex digest of all token ids, in order: what a cache of scores depends on besides the models."""
        digest, empty = hashlib.sha256(), np.zeros(0, np.int32)
        for group in self.groups:
            behind = (group.prompts.get(view, empty) for view in ("plus", "minus"))
            for array in (group.prompt, *group.responses, *behind):
                digest.update(len(array).to_bytes(8, "little"))
                digest.update(np.ascontiguousarray(array, dtype="<i4").tobytes())
        return digest.hexdigest()

    def counts(self) -> dict[str, int]:
        """How many there are of records, usable and invalid ones, and groups whose prompt or response was cut."""
        counts = {"records": len(self) + len(self.invalid), "usable": len(self), "invalid": len(self.invalid)}
        counts["parts"] = sum(group.parts for group in self.groups)
        counts["truncated_prompt"] = sum(group.truncated_prompt for group in self.groups)
        for k, name in enumerate(response_names(self.size)):
            counts[f"truncated_{name}"] = sum(group.truncated[k : k + 1] == (True,) for group in self.groups)
        return counts

    def summary(self) -> str:
        """Counts of records, of invalid ones by reason, of what nothing reads and of what was cut, a line each."""
        lines, counts = [summarise(self.source, len(self), self.invalid, self.unread)], self.counts()
        if counts["parts"]:
            lines.append(f"  {counts['parts']:6d}  pairs whose prompt ends before what sampling begins from")
        for name in ("prompt", *response_names(self.size)):
            if counts[f"truncated_{name}"]:
                part = "beginning" if name == "prompt" else "end"
                lines.append(f"  {counts[f'truncated_{name}']:6d}  pairs with the {part} of the {name} cut")
        return "\n".join(lines)
