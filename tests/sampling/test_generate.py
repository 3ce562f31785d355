"""Generation with a cache says what a model without one says, row by row."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest

from tisdpo_jax.models import Model, logits
from tisdpo_jax.sampling import continuations
from tisdpo_jax.testing import device_mesh, random_params, tiny_config

CONFIG = tiny_config(sliding_window=9)
PROMPTS = [[3, 9, 4, 1, 22], [7], [5, 6, 7, 8, 9, 10, 11, 12, 13]]


@pytest.fixture(scope="module")
def variables():
    return {"params": random_params(0, CONFIG)}


def plainly(variables, prompt, count):
    ids, model = list(prompt), Model(CONFIG)
    step = jax.jit(lambda tokens, last: jnp.argmax(logits(model, variables, tokens)[0, last]))
    for _ in range(count):
        tokens = jnp.zeros((1, 32), jnp.int32).at[0, : len(ids)].set(jnp.asarray(ids))
        ids.append(int(step(tokens, len(ids) - 1)))
    return ids[len(prompt) :]


def test_greedy_equals_the_model_without_a_cache(variables):
    expected = [plainly(variables, prompt, 12) for prompt in PROMPTS]
    assert continuations(Model(CONFIG), variables, PROMPTS, max_new_tokens=12, eos_ids=[]) == expected
    alone = [continuations(Model(CONFIG), variables, [prompt], max_new_tokens=12, eos_ids=[])[0] for prompt in PROMPTS]
    assert alone == expected


def test_an_end_token_ends_its_row_alone(variables):
    full = continuations(Model(CONFIG), variables, PROMPTS, max_new_tokens=12, eos_ids=[])
    end = full[0][4]
    cut = continuations(Model(CONFIG), variables, PROMPTS, max_new_tokens=12, eos_ids=[end])
    for short, long in zip(cut, full, strict=True):
        assert short == (long[: long.index(end)] if end in long else long)


def test_sampling_depends_on_the_seed_and_the_row(variables):
    draw = lambda seed: continuations(  # noqa: E731
        Model(CONFIG), variables, [PROMPTS[0]] * 2, max_new_tokens=8, eos_ids=[], temperature=1.0, seed=seed
    )
    assert draw(0) == draw(0) != draw(1)
    assert draw(0)[0] != draw(0)[1]


def test_rows_that_do_not_divide_the_mesh(variables):
    with jax.set_mesh(device_mesh(2, 2, 2)):
        found = continuations(Model(CONFIG), variables, PROMPTS, max_new_tokens=6, eos_ids=[])
    assert found == continuations(Model(CONFIG), variables, PROMPTS, max_new_tokens=6, eos_ids=[])


def test_an_empty_prompt_is_refused(variables):
    with pytest.raises(ValueError, match="at least one token"):
        continuations(Model(CONFIG), variables, [[]], max_new_tokens=1, eos_ids=[])


class Stop(Exception):
    pass


def test_a_request_to_stop_is_heard_before_each_batch(variables):
    def stop():
        raise Stop

    with pytest.raises(Stop):
        continuations(Model(CONFIG), variables, [[1]], max_new_tokens=1, eos_ids=[], on_batch=stop)
