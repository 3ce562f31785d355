"""Many small models at once: pretraining, training, scoring and sampling, vectorised over seeds and learning rates.

The step is the library's own (`training.step`), mapped; an axis of replicas stands before all others.

    S  seed: data, parameters and order of its own      G  learning rate of the grid      K  step
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.testbed import world as language
from tisdpo_jax.config import OptimizerSection
from tisdpo_jax.data import EncodedGroup, EncodedSet, Layout, fit, make_batch
from tisdpo_jax.models import Model, empty_cache, head_of, hidden_states_with_cache, init_params, logits
from tisdpo_jax.roles import Frozen
from tisdpo_jax.scoring import score
from tisdpo_jax.training import optim
from tisdpo_jax.training.objective import StepSpec
from tisdpo_jax.training.step import init_state, train_step
from tisdpo_jax.types import Batch, Params

Array = jax.Array
Columns = dict[str, np.ndarray]


class Drawn(NamedTuple):
    """What policies said, `[S, G, n, ...]`."""

    tokens: np.ndarray  # [..., N], 0 behind the end token
    mask: np.ndarray  # [..., N], 1 up to and with the end token
    kl: np.ndarray  # [...], log-ratio of policy and reference, summed over the response


def encode(pairs: language.Pairs) -> EncodedSet:
    """The pairs as any data source would give them, with views behind steering tokens for contrastive prompts."""
    groups = []
    for number, (prompt, responses, mask) in enumerate(zip(pairs.prompts, pairs.responses, pairs.mask, strict=True)):
        steered = {"plus": language.steered(prompt, language.GOOD), "minus": language.steered(prompt, language.BAD)}
        spoken = tuple(tokens[real > 0] for tokens, real in zip(responses, mask, strict=True))
        groups.append(EncodedGroup(f"pair-{number}", f"testbed:{number}", {"main": prompt, **steered}, spoken))
    return EncodedSet(tuple(groups), (), "testbed")


def layout(
    encoded: Sequence[EncodedSet],
    size: int,
    *,
    elements: int,
    sides: tuple[int, ...] = (0, 1),
    views: tuple[str, ...] = ("main",),
) -> Layout:
    """A layout that batches of all seeds share: padded rows, whose shape depends on the longest response alone."""
    longest = max(encoded, key=lambda one: one.elements(1))
    indices = [np.arange(start, start + size) % len(longest) for start in range(0, len(longest), size)]
    return fit(longest, indices, elements=elements, sides=sides, views=views, packed=False)


def stack_batches(
    encoded: Sequence[EncodedSet], indices: Sequence[np.ndarray], made: Layout, columns: Sequence[Columns] | None = None
) -> Batch:
    """One batch a seed, stacked: `[S, ...]` numpy arrays."""
    given = columns or [{} for _ in encoded]
    batches = [
        make_batch(one, where, layout=made, columns=values)
        for one, where, values in zip(encoded, indices, given, strict=True)
    ]
    return jax.tree.map(lambda *leaves: np.stack(leaves), *batches)


def pretrain(
    model: Model, corpora: Sequence[tuple[Any, Any, Any]], seeds: Sequence[int], *, steps: int, batch: int
) -> Params:
    """Tiny Llamas that speak their languages: next-token training on responses behind prompts. `[S, ...]`."""
    optimizer = optim.optimizer(OptimizerSection(learning_rate=3e-3, schedule="cosine", clip_norm=1.0), steps)
    prompts, responses, mask = (np.stack(parts) for parts in zip(*corpora, strict=True))
    width = prompts.shape[-1]
    tokens = np.concatenate([prompts, responses], -1)

    def loss(params: Params, rows: Array, real: Array) -> Array:
        logps = jax.nn.log_softmax(logits(model, {"params": params}, rows[:, :-1])[:, width - 1 :])
        taken = jnp.take_along_axis(logps, rows[:, width:, None], -1)[..., 0]
        return -(taken * real).sum() / real.sum()

    def one(key: Array, rows: Array, real: Array) -> Params:
        params = init_params(key, model.config)

        def step(carry: Any, number: Array) -> tuple[Any, None]:
            params, state = carry
            start = (number * batch) % (len(rows) - batch + 1)
            part = [jax.lax.dynamic_slice_in_dim(x, start, batch) for x in (rows, real)]
            updates, state = optimizer.update(jax.grad(loss)(params, *part), state, params)
            return (jax.tree.map(jnp.add, params, updates), state), None

        return jax.lax.scan(step, (params, optimizer.init(params)), jnp.arange(steps))[0][0]

    keys = jnp.stack([jax.random.key(seed) for seed in seeds])
    return jax.jit(jax.vmap(one))(keys, tokens, mask)


def train(
    plan: StepSpec,
    section: OptimizerSection,
    rates: Sequence[float],
    start: Params,
    frozen: Frozen,
    batches: Batch,
    *,
    cuts: Sequence[int],
) -> list[Params]:
    """Trains from `start` at every learning rate, and keeps the policies after each of `cuts` steps.

    Args:
      start: `[S, ...]`.
      frozen: `[S, ...]` trees.
      batches: `[K, S, ...]`.

    Returns: parameters `[S, G, ...]`, one for each cut.
    """
    total = int(batches.mask.shape[0])
    widen = lambda x: jnp.repeat(x[:, None], len(rates), 1)  # noqa: E731 (one line says it)
    state = _begin(section, total, jax.tree.map(widen, start))
    found, done = [], 0
    grid = jnp.asarray(rates, jnp.float32)
    for cut in cuts:
        part = jax.tree.map(lambda x, a=done, b=cut: x[a:b], batches)
        state = _advance(plan, section, total, state, frozen, part, grid)
        found.append(state.trained)
        done = cut
    return found


def _optimizer(section: OptimizerSection, total: int, rate: Any) -> Any:
    return optim.optimizer(dataclasses.replace(section, learning_rate=rate), total)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _begin(section: OptimizerSection, total: int, params: Params) -> Any:
    init = functools.partial(init_state, optimizer=_optimizer(section, total, 1.0))
    return jax.vmap(jax.vmap(init))(params)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _advance(
    plan: StepSpec, section: OptimizerSection, total: int, state: Any, frozen: Frozen, batches: Batch, rates: Array
) -> Any:
    def one(state: Any, frozen: Frozen, batch: Batch, rate: Array) -> Any:
        return train_step(state, frozen, batch, plan=plan, optimizer=_optimizer(section, total, rate))[0]

    mapped = jax.vmap(jax.vmap(one, in_axes=(0, None, None, 0)), in_axes=(0, 0, 0, None))
    return jax.lax.scan(lambda state, batch: (mapped(state, frozen, batch, rates), None), state, batches)[0]


@functools.partial(jax.jit, static_argnums=(0, 3))
def scores(model: Model, params: Params, batch: Batch, view: str = "main") -> Array:
    """Log-likelihoods of response tokens, `[S, B, 2, N]`, of parameters `[S, ...]` and a batch `[S, ...]`."""
    return jax.vmap(lambda p, b: score(model, {"params": p}, b, view=view).logps)(params, batch)


def draw(model: Model, params: Params, reference: Params, prompts: np.ndarray, *, width: int, seed: int = 0) -> Drawn:
    """One response to each of `prompts [S, n, P]` from policies `[S, G, ...]`, at temperature 1."""
    tokens, logps, base = _draw(model, width, params, reference, prompts, jax.random.key(seed))
    tokens = np.asarray(tokens)
    ended = np.cumsum(tokens == language.END, -1) - (tokens == language.END)
    mask = (ended == 0).astype(np.float64)
    kl = ((np.asarray(logps, np.float64) - np.asarray(base, np.float64)) * mask).sum(-1)
    return Drawn(np.where(mask > 0, tokens, 0), mask, kl)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _draw(
    model: Model, width: int, params: Params, reference: Params, prompts: Array, key: Array
) -> tuple[Array, Array, Array]:
    before, config = prompts.shape[-1], model.config
    slots = jnp.arange(before + width)

    def one(params: Params, reference: Params, prompts: Array, key: Array) -> tuple[Array, Array, Array]:
        count = len(prompts)
        head = head_of(config, {"params": params}).kernel

        def read(tokens: Array, start: Any, cache: Any) -> tuple[Array, Any]:
            """Tokens `[n, T]` from place `start` on: what comes behind the last of them, and the cache."""
            places = jnp.broadcast_to(start + jnp.arange(tokens.shape[1]), tokens.shape)
            seen = jnp.where(slots < start + tokens.shape[1], slots, -1)
            seen = jnp.broadcast_to(seen, (count, len(slots)))
            hidden, cache = hidden_states_with_cache(model, {"params": params}, tokens, places, cache, seen)
            return jax.nn.log_softmax(hidden[:, -1] @ head), cache

        def step(carry: Any, place: Array) -> tuple[Any, tuple[Array, Array]]:
            said, cache = carry
            token = jax.random.categorical(jax.random.fold_in(key, place), said).astype(prompts.dtype)
            logp = jnp.take_along_axis(said, token[:, None], -1)[:, 0]
            return read(token[:, None], before + place, cache), (token, logp)

        begun = read(prompts, 0, empty_cache(config, count, len(slots), jnp.float32))
        _, (tokens, logps) = jax.lax.scan(step, begun, jnp.arange(width))
        rows = jnp.concatenate([prompts, tokens.T], 1)
        base = jax.nn.log_softmax(logits(model, {"params": reference}, rows[:, :-1])[:, before - 1 :])
        return tokens.T, logps.T, jnp.take_along_axis(base, rows[:, before:, None], -1)[..., 0]

    across = jax.vmap(one, in_axes=(0, None, None, None))  # the same draws at every learning rate
    return jax.vmap(across)(params, reference, prompts, jax.random.split(key, len(prompts)))
