"""How the records of a run become tokens: tokenizer, template, limits, and the prompts of pi+ and pi-."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

from tisdpo_jax.artifacts import digest
from tisdpo_jax.config import Experiment
from tisdpo_jax.data import (
    EncodedSet,
    PairSet,
    Prompt,
    Template,
    encode_groups,
    encode_pairs,
    open_template,
    tokenizer_identity,
)


@dataclasses.dataclass(frozen=True, eq=False)
class Encoder:
    """One way from text to tokens for all that a run reads, scores and is evaluated on."""

    tokenizer: Any
    section: Any  # `data` of the configuration
    contrast: tuple[str, str] | None  # prompts of pi+ and pi-, where the construction has them

    @classmethod
    def of(cls, config: Experiment, tokenizer: Any) -> Encoder:
        section = config.contrast
        prompts = (section.positive_prompt, section.negative_prompt)
        return cls(tokenizer, config.data, prompts if section.construction == "prompts" else None)

    @functools.cached_property
    def template(self) -> Template:
        return open_template(self.section.template, self.tokenizer)

    def pairs(self, records: PairSet) -> EncodedSet:
        """Pairs as tokens; those that cannot be used are among the invalid."""
        return encode_pairs(records, self.tokenizer, contrast=self.contrast, **self._options())

    def groups(self, prompts: Sequence[Prompt], responses: Sequence[Sequence[str]], source: str) -> EncodedSet:
        """Responses to prompts as tokens."""
        options = self._options() | {"contrast": self.contrast, "source": source}
        return encode_groups(prompts, [tuple(one) for one in responses], self.tokenizer, **options)

    def plain(self) -> Encoder:
        """The same without the prompts of pi+ and pi-."""
        return dataclasses.replace(self, contrast=None)

    @functools.cached_property
    def identity(self) -> dict[str, str]:
        """What the tokens depend on, by its content: a difference in the data is told by these first."""
        return {
            "tokenizer": tokenizer_identity(self.tokenizer)[:16],
            "template": digest([self.section.system, self.template.identity]),
        }

    def _options(self) -> dict[str, Any]:
        limits = {"max_length": self.section.max_length, "max_response": self.section.max_response}
        return {"template": self.template, "system": self.section.system, **limits}
