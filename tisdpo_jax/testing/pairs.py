"""Random preference pairs: as log-likelihoods for losses and weights, as tokens for scoring and training."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from tisdpo_jax.data import EncodedGroup, EncodedSet, fit, make_batch
from tisdpo_jax.types import Batch

Array = jax.Array


class Pairs(NamedTuple):
    """What losses and weights take; each `[..., 2, N]` float32."""

    policy_logps: Array
    reference_logps: Array
    positive_logps: Array  # of the same tokens under pi+ ...
    negative_logps: Array  # ... and pi-
    token_kl: Array
    mask: Array


def random_pairs(seed: int, shape: tuple[int, ...] = (4, 2, 7)) -> Pairs:
    """Pairs of responses of 1 to N tokens, `shape` being `[..., 2, N]`.

    Values behind the end of a response are as plausible as the others, so what does not look at the mask is found.
    Drawn with numpy: nothing is compiled.
    """
    random = np.random.default_rng(seed)
    policy = -random.exponential(1.5, shape)
    reference, positive, negative = (np.minimum(policy + random.normal(0.0, s, shape), 0.0) for s in (0.5, 1.0, 1.0))
    token_kl = random.exponential(0.2, shape)
    length = random.integers(1, shape[-1] + 1, shape[:-1])
    mask = np.arange(shape[-1]) < length[..., None]
    return Pairs(*(jnp.asarray(x, jnp.float32) for x in (policy, reference, positive, negative, token_kl, mask)))


def random_encoded(
    seed: int,
    *,
    pairs: int = 4,
    responses: int = 2,
    prompt: int = 9,
    elements: int = 6,
    vocab_size: int = 64,
    prompts: Mapping[str, int] | None = None,
) -> EncodedSet:
    """Pairs of random tokens, or groups of more `responses` than two, as a data source would be encoded.

    Args:
      prompt: prompts have 1 to this many tokens; `elements`: responses 1 to this many.
      prompts: the prompt's length in some views, "main", "plus" or "minus"; the main one is random without.
    """
    random = np.random.default_rng(seed)
    fixed = dict(prompts or {})

    def ids(count: int) -> np.ndarray:
        return random.integers(1, vocab_size, count).astype(np.int32)

    groups = []
    for number in range(pairs):
        sizes = {"main": fixed["main"] if "main" in fixed else int(random.integers(1, prompt + 1)), **fixed}
        shown: dict[str, np.ndarray] = {view: ids(sizes[view]) for view in ("main", "plus", "minus") if view in sizes}
        answers = tuple(ids(int(random.integers(1, elements + 1))) for _ in range(responses))
        groups.append(EncodedGroup(f"pair-{number}", f"random:{number}", shown, answers))
    return EncodedSet(tuple(groups), (), "random")


def batch_of(encoded: EncodedSet, *, elements: int = 0, indices: Any = None, **layout: Any) -> Batch:
    """All pairs, or some, as one batch of host arrays; `layout` as `data.fit` takes it, all views by default."""
    indices = np.arange(len(encoded)) if indices is None else indices
    layout.setdefault("views", tuple(encoded.groups[0].prompts))
    made = fit(encoded, [indices], elements=elements or encoded.elements(1), **layout)
    return make_batch(encoded, indices, layout=made)


def random_batch(seed: int, *, elements: int = 6, layout: Mapping[str, Any] | None = None, **options: Any) -> Batch:
    """A batch of `random_encoded` pairs: what a data pipeline would deliver, packed unless `layout` says otherwise."""
    return batch_of(random_encoded(seed, elements=elements, **options), elements=elements, **(layout or {}))
