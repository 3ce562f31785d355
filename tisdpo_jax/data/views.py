"""The ways in which one conversation is shown to a model: as it is, and behind a contrastive prompt."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from tisdpo_jax.data.records import SETTINGS, Message, Unusable, turns_of
from tisdpo_jax.data.rendering import turn_end
from tisdpo_jax.data.template import Template, check_marks, takes_system
from tisdpo_jax.errors import ConfigError

SLOT = "{prompt}"


@dataclasses.dataclass(frozen=True)
class PromptView:
    """`text` is put before the system text of the conversation or, with `{prompt}` in it, around its last turn."""

    name: str  # "main", "plus" or "minus"
    default_system: str  # for conversations that have no system text of their own
    text: str  # "" shows the conversation as it is
    field: str  # the configuration field that `text` came from


def make_views(system: str, contrast: tuple[str, str] | None) -> tuple[PromptView, ...]:
    """The main view and, with contrastive prompts, "plus" and "minus"."""
    main = PromptView("main", system, "", "data.system")
    if contrast is None:
        return (main,)
    plus = PromptView("plus", system, contrast[0], "contrast.positive_prompt")
    return main, plus, PromptView("minus", system, contrast[1], "contrast.negative_prompt")


def check_views(template: Template, views: Sequence[PromptView]) -> None:
    """Raise `ConfigError` where no conversation could be shown this way."""
    for view in views:
        if view.text.count(SLOT) > 1:
            raise ConfigError(f"{view.field}: holds {SLOT} more than once")
        try:
            check_marks(template, view.text, view.field)
            check_marks(template, view.default_system, "data.system")
        except Unusable as problem:
            raise ConfigError(f"{view.field}: {problem.reason}: {problem.detail}") from None
        no_place = f"template {template.name} has no place for a system text"
        if view.text and SLOT not in view.text and not takes_system(template):
            raise ConfigError(f"{view.field}: {no_place}; write the prompt around the user's turn, with {SLOT} in it")
        if view.default_system and not takes_system(template):
            raise ConfigError(f"data.system: {no_place}; leave it empty")


def show_as(view: PromptView, messages: Sequence[Message]) -> tuple[Message, ...]:
    """The messages of a conversation as this view has them."""
    settings = [message for message in messages if message.role in SETTINGS]
    own = [message for message in messages if message.role == "system"]
    turns = [message for message in turns_of(messages) if message.role != "system"]
    system = own or ([Message("system", view.default_system)] if view.default_system else [])
    if SLOT in view.text:
        last = _last_of_user(turns)
        turns[last] = dataclasses.replace(turns[last], content=view.text.replace(SLOT, turns[last].content))
    elif view.text:
        text = "\n\n".join([view.text, *(message.content for message in system if message.content)])
        system = [dataclasses.replace(system[0] if system else Message("system", ""), content=text)]
    return (*settings, *system, *turns)


def _last_of_user(turns: Sequence[Message]) -> int:
    return max(place for place, message in enumerate(turns) if message.role == "user")


def contrast_ranges(
    template: Template, view: PromptView, head: str, messages: Sequence[Message]
) -> list[tuple[int, int]]:
    """Character ranges of the written prompt that cutting must leave in place.

    Around a system text these are all that stands before it, and the end of its turn.

    Args:
        template: what wrote the conversation.
        view: how the conversation was shown.
        head: what the template wrote before the response.
        messages: the conversation as `show_as` returned it.
    """
    if not view.text:
        return []
    turns, around = turns_of(messages), SLOT in view.text
    shown = turns[_last_of_user(turns) if around else 0].content
    start = head.rfind(shown.strip()) if around else head.find(shown.strip())
    if start < 0:
        raise Unusable("template breaks the record", f"it alters the text of {view.field}")
    end = start + len(shown.strip())
    if not around:
        gap = head[end : max(end, head.find(turns[1].content.strip(), end))]
        return [(0, start + len(view.text.strip())), (end, end + turn_end(template, gap))]
    before, after = map(len, view.text.split(SLOT))
    before -= len(shown) - len(shown.lstrip())  # the template may trim the turn
    after -= len(shown) - len(shown.rstrip())
    return [(start, start + max(0, before)), (end - max(0, after), end)]
