"""Prompts that wait for answers: where they come from, how a model reads them, and what ends an answer to them."""

from __future__ import annotations

import importlib.resources
import logging
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import jax

from tisdpo_jax import interchange
from tisdpo_jax.config import SamplingSection
from tisdpo_jax.data import (
    HH_MARKS,
    EncodedGroup,
    InvalidRecord,
    Message,
    Prompt,
    PromptView,
    Template,
    Unusable,
    check_views,
    count_reasons,
    frame,
    open_template,
    prompt_ids,
    read_prompts,
    render,
    show_as,
)
from tisdpo_jax.errors import DataError
from tisdpo_jax.generation.decoding import SamplingParams
from tisdpo_jax.generation.sampler import Options, Request

log = logging.getLogger(__name__)


def open_prompts(source: str, limit: int | None) -> tuple[tuple[Prompt, ...], tuple[InvalidRecord, ...]]:
    """Prompts of a file, or of the package (`demo:prompts`, `demo:prompts-eval`), and the records that hold none."""
    path = source
    if source in ("demo:prompts", "demo:prompts-eval"):
        name = source.removeprefix("demo:") + ".jsonl"
        path = str(importlib.resources.files("tisdpo_jax.data") / "demo" / name)
    prompts, invalid = read_prompts(path, limit=limit or 0)
    if not prompts:
        raise DataError(f"{source}: none of its {len(invalid)} records is a prompt ({count_reasons(invalid)})")
    if invalid and jax.process_index() == 0:
        log.warning("%s: %d records hold no prompt (%s)", source, len(invalid), count_reasons(invalid))
    return prompts, invalid


def prompts_of(groups: Iterable[EncodedGroup], limit: int = 0) -> list[Prompt]:
    """The prompts of pairs, each once; the first `limit` of them, 0 takes all."""
    once: dict[tuple[Message, ...], Prompt] = {}
    for group in groups:
        once.setdefault(group.messages, Prompt(group.id, group.messages, group.origin))
        if len(once) == limit:
            break
    return list(once.values())


def show_prompts(
    prompts: Sequence[Prompt],
    views: Sequence[PromptView],
    names: Sequence[str],
    samples: int,
    *,
    template: Template,
    tokenizer: Any,
) -> tuple[list[Prompt], list[InvalidRecord]]:
    """Every prompt in the views `names` ("main", "plus", "minus"), `samples` times: ids are `prompt/view/number`.

    Returns: the prompts to answer, and those that the template cannot write.
    """
    check_views(template, views)
    chosen = [view for view in views if view.name in names]
    asked: list[Prompt] = []
    invalid: list[InvalidRecord] = []
    for prompt in prompts:
        try:
            for view in chosen:
                prompt_ids(prompt.messages, tokenizer, template, system=view.default_system, max_length=2**30)
            shown = [(view.name, show_as(view, prompt.messages)) for view in chosen]
        except Unusable as problem:
            invalid.append(InvalidRecord(prompt.origin, problem.reason, problem.detail))
            continue
        asked += [
            Prompt(f"{prompt.id}/{name}/{number}", messages, prompt.origin)
            for name, messages in shown
            for number in range(samples)
        ]
    return asked, invalid


def read_by_model(prompts: Sequence[Prompt], template: Template, tokenizer: Any) -> list[Request]:
    """The prompts of `show_prompts` as token ids."""
    requests = []
    for prompt in prompts:
        name, _, number = prompt.id.rpartition("/")
        ids = prompt_ids(prompt.messages, tokenizer, template, max_length=2**30)
        requests.append(Request(name, ids.tolist(), int(number)))
    return requests


def options_of(section: SamplingSection, template: str, eos_ids: Sequence[int] = ()) -> Options:
    """How a configuration wants answers drawn. A base model that was shown plain turns may go on with the next one."""
    return Options(
        draw=SamplingParams(section.temperature, section.top_k or 0, section.top_p, section.min_p),
        max_new_tokens=section.max_new_tokens,
        max_prompt=section.max_prompt,
        batch_size=section.batch_size,
        seed=section.seed,
        eos_ids=tuple(eos_ids),
        stop=tuple(dict.fromkeys([*section.stop, *(sorted(HH_MARKS) if template == "hh" else [])])),
    )


def end_tokens(tokenizer: Any, template: str, model: str | Path) -> list[int]:
    """Tokens that end an answer: all that the files of `model` say, the tokenizer's EOS, and what ends a turn."""
    opened, messages = open_template(template, tokenizer), [Message("user", "a")]
    written = render(opened, frame(opened, messages), messages, "b").text
    return sorted({*interchange.stop_ids(model, tokenizer), tokenizer(written, add_special_tokens=False).input_ids[-1]})
