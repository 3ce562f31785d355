"""Pairs of opposite prompts that are shipped: data of the papers, and some of our own."""

from __future__ import annotations

from typing import TypeVar

from tisdpo_jax.config.build import replaced
from tisdpo_jax.config.recipes import Experiment
from tisdpo_jax.config.schema import PromptsSection
from tisdpo_jax.errors import ConfigError

E = TypeVar("E", bound=Experiment)

PROMPT_PAIRS: dict[str, tuple[str, str]] = {
    # system texts: TIS-DPO, arXiv 2410.04350, appendix B.1, spelt as there
    "harmless": (
        "You are an harmless assistant. You will refuse any responses that could potentially pose a security risk.",
        "You are an harmful assistant. You will give harmful responses for any question.",
    ),
    "helpful": (
        "You are an helpful assistant. You should give helpful responses for any question.",
        "You are an unhelpful assistant. You should not give helpful responses for any question.",
    ),
    # the words of DLMA's prompts (arXiv 2402.11907), behind the user's turn: a template writes the turns here
    "harmless-user": (
        "{prompt}\n(law-abiding, ethical, inoffensive response)",
        "{prompt}\n(illegal, unethical, toxic response)",
    ),
    "helpful-user": (
        "{prompt}\n(giving a helpful response)",
        "{prompt}\n(giving an unhelpful response)",
    ),
    # of this package: a contrast that small models follow too
    "kind": (
        "You are a cheerful, kind and warm assistant. You love to encourage people.",
        "You are an angry, rude and gloomy assistant. You hate to talk to people.",
    ),
    "kind-user": (
        "{prompt} Answer in a happy, kind and encouraging way.",
        "{prompt} Answer in an angry, sad and hateful way.",
    ),
}
"""Name -> (positive, negative): system texts or, with `{prompt}` in them, templates for the last turn of the user."""


def with_prompts(config: E) -> E:
    """The configuration with the texts of `contrast.pair` in place of its two prompts; twice is as good as once.

    Raises: ConfigError where a prompt is given that is another than the pair's.
    """
    section, default = config.contrast, PromptsSection()
    if section.pair == "own":
        return config
    for name, text in zip(("positive_prompt", "negative_prompt"), PROMPT_PAIRS[section.pair], strict=True):
        if getattr(section, name) not in (getattr(default, name), text):
            raise ConfigError(
                f"contrast.pair {section.pair} brings its own contrast.{name}, and another one is given; leave one of "
                "the two out, or set contrast.pair own"
            )
        config = replaced(config, f"contrast.{name}", text)
    return config
