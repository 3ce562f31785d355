"""Reading with a cache gives, token for token, what reading whole rows gives."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tisdpo_jax.models import (
    ComputeConfig,
    LayerCache,
    Model,
    empty_cache,
    hidden_states,
    hidden_states_with_cache,
)
from tisdpo_jax.testing import FAMILIES, random_adapters, random_params
from tisdpo_jax.types import Variables

LENGTHS = np.asarray([5, 2, 8])  # prompts of different lengths
STEPS, SLOTS = 4, 12
TOKENS = np.random.default_rng(0).integers(0, 64, (3, SLOTS), np.int32)

whole = jax.jit(hidden_states, static_argnums=0)
cached = jax.jit(hidden_states_with_cache, static_argnums=0)


@functools.cache
def variables(family: str) -> Variables:
    params = random_params(0, FAMILIES[family])
    return {"params": params, "lora": random_adapters(0, params)} if family == "llama2" else {"params": params}


def prefill(model: Model, rows: np.ndarray, dtype: str = "float32") -> tuple[jax.Array, LayerCache]:
    """The prompts, left-aligned, padded with a token that must not matter."""
    width = int(LENGTHS.max())
    positions = np.broadcast_to(np.arange(width, dtype=np.int32), (3, width))
    prompt = np.where(positions < LENGTHS[:, None], rows[:, :width], 63)
    slots = np.arange(SLOTS)
    seen = np.where(slots < LENGTHS[:, None], slots, -1).astype(np.int32)
    cache = empty_cache(model.config, 3, SLOTS, dtype)
    return cached(model, variables(family_of(model)), prompt, positions, cache, seen)


def family_of(model: Model) -> str:
    return next(name for name, config in FAMILIES.items() if config == model.config)


@pytest.mark.parametrize("family", ["llama3", "mistral", "gemma2", "gemma3"])
def test_token_for_token(family: str) -> None:
    model = Model(FAMILIES[family])
    expected = np.asarray(whole(model, variables(family), TOKENS))
    hidden, cache = prefill(model, TOKENS)
    for row, length in enumerate(LENGTHS):
        np.testing.assert_allclose(hidden[row, :length], expected[row, :length], atol=1e-5)
    slots = np.arange(SLOTS)
    for step in range(STEPS):
        positions = (LENGTHS + step).astype(np.int32)[:, None]
        seen = np.where(slots <= positions, slots, -1).astype(np.int32)
        now = np.take_along_axis(TOKENS, positions, axis=1)
        hidden, cache = cached(model, variables(family), now, positions, cache, seen)
        for row in range(3):
            np.testing.assert_allclose(hidden[row, 0], expected[row, positions[row, 0]], atol=2e-5)


def test_several_tokens_at_a_time_are_one_at_a_time() -> None:
    """Two blocks of six: what stands in the second sees the first through the cache."""
    model, rows = Model(FAMILIES["mistral"]), TOKENS
    cache, parts = empty_cache(model.config, 3, SLOTS, "float32"), []
    for first in (0, 6):
        positions = np.broadcast_to(np.arange(first, first + 6, dtype=np.int32), (3, 6))
        seen = np.where(np.arange(SLOTS) < first + 6, np.arange(SLOTS), -1).astype(np.int32)
        seen = np.broadcast_to(seen, (3, SLOTS))
        hidden, cache = cached(model, variables("mistral"), rows[:, first : first + 6], positions, cache, seen)
        parts.append(np.asarray(hidden))
    np.testing.assert_allclose(np.concatenate(parts, 1), whole(model, variables("mistral"), rows), atol=2e-5)


def test_slots_that_are_not_seen_may_hold_anything() -> None:
    model = Model(FAMILIES["llama2"])
    _, cache = prefill(model, TOKENS)
    positions = LENGTHS.astype(np.int32)[:, None]
    seen = np.where(np.arange(SLOTS) <= positions, np.arange(SLOTS), -1).astype(np.int32)
    unseen = (seen < 0)[None, :, :, None, None]
    spoilt = LayerCache(*(jnp.where(unseen, 1e4, x) for x in cache))
    now = np.take_along_axis(TOKENS, positions, axis=1)
    clean = cached(model, variables("llama2"), now, positions, cache, seen)[0]
    np.testing.assert_array_equal(cached(model, variables("llama2"), now, positions, spoilt, seen)[0], clean)


def test_the_cache_is_as_long_and_as_wide_as_said() -> None:
    config = FAMILIES["smollm2"]
    cache = empty_cache(config, 3, 7, "bfloat16")
    assert cache.k.shape == cache.v.shape == (config.num_layers, 3, 7, 1, 12)
    assert cache.k.dtype == jnp.bfloat16


@pytest.mark.parametrize(("attention", "remat", "loop"), [("splash", "none", "scan"), ("xla", "full", "unroll")])
def test_how_training_computes_does_not_matter_to_decoding(attention: str, remat: str, loop: str) -> None:
    """Decoding needs explicit positions, which one back end has; a model set up for training still decodes."""
    compute = ComputeConfig(attention=attention, remat=remat, layer_loop=loop)  # type: ignore[arg-type]
    expected, _ = prefill(Model(FAMILIES["llama2"]), TOKENS)
    got, _ = prefill(Model(FAMILIES["llama2"], compute), TOKENS)
    np.testing.assert_allclose(got, expected, atol=1e-5)


@pytest.mark.parametrize(("compute", "stored"), [("bfloat16", "float32"), ("float32", "bfloat16")])
def test_the_cache_may_have_another_dtype_than_the_computation(compute: str, stored: str) -> None:
    exact, _ = prefill(Model(FAMILIES["qwen2"]), TOKENS)
    got, cache = prefill(Model(FAMILIES["qwen2"], ComputeConfig(dtype=compute)), TOKENS, stored)
    assert cache.k.dtype == jnp.dtype(stored) and got.dtype == jnp.dtype(compute)
    for row, length in enumerate(LENGTHS):
        np.testing.assert_allclose(got[row, :length].astype(jnp.float32), exact[row, :length], atol=0.15)
