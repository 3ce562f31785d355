"""Answers to a handful of prompts, as token ids: for reports and for a look."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tisdpo_jax.models import Model
from tisdpo_jax.sampling._draw import SamplingParams
from tisdpo_jax.sampling._sample import Options, Request, sample
from tisdpo_jax.types import Variables

MOST_ROWS = 32  # prompts that are continued at a time: what a request to stop waits for


def continuations(
    model: Model,
    variables: Variables,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    eos_ids: Sequence[int],
    temperature: float = 0.0,
    seed: int = 0,
    on_batch: Callable[[], None] = lambda: None,
) -> list[list[int]]:
    """Continues prompts, greedily at temperature 0. What is returned ends before the end token, if one came.

    Args:
      prompts: token ids, each at least one.
      max_new_tokens: tokens after which an answer is left unfinished.
      eos_ids: tokens that end an answer.
      temperature: above 0, tokens are drawn; prompt i draws from (seed, i), whatever the batch.
      on_batch: called before each batch of up to MOST_ROWS prompts; may raise to stop.

    Returns: the new token ids of each prompt.
    """
    if not prompts or any(len(prompt) == 0 for prompt in prompts):
        raise ValueError("generate: needs at least one prompt, and each needs at least one token")
    requests = [Request(str(number), list(map(int, prompt))) for number, prompt in enumerate(prompts)]
    ends = tuple(map(int, eos_ids))
    options = Options(
        draw=SamplingParams(temperature),
        max_new_tokens=max_new_tokens,
        max_prompt=2**30,  # none is too long
        batch_size=min(len(prompts), MOST_ROWS),
        seed=seed,
        eos_ids=ends,
    )
    found: list[list[int]] = [[] for _ in prompts]
    for index, answer in sample(model, variables, requests, options, decode=lambda ids: "", on_batch=on_batch):
        ids = answer.ids
        found[index] = ids[:-1] if ids and ids[-1] in ends else ids
    return found
