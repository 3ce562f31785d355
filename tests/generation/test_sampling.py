"""Answers are a function of model, prompt, seed, id and sample number: not of the batch, its order or the devices."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tisdpo_jax.generation import Options, Request, SamplingParams, sample
from tisdpo_jax.generation.decoding import advance, begin
from tisdpo_jax.generation.sampler import plan_batches, stop_at
from tisdpo_jax.models import ComputeConfig, Model, logits, merge
from tisdpo_jax.partitioning import param_shardings
from tisdpo_jax.testing import device_mesh, random_adapters, random_params, tiny_config

CONFIG = tiny_config(sliding_window=9, num_layers=1)
MODEL = Model(CONFIG, ComputeConfig(lora_scale=0.5))
OPTIONS = Options(SamplingParams(), max_new_tokens=8, max_prompt=40, seed=3, eos_ids=(2,))
RANDOM = np.random.default_rng(0)
PROMPTS = [RANDOM.integers(3, 64, length).tolist() for length in (5, 1, 36, 13, 33, 7, 2)]
REQUESTS = [Request(f"p{number}", ids, draw) for number, ids in enumerate(PROMPTS) for draw in (0, 1)]
NARROW = REQUESTS[:4]  # of the one width


@functools.cache
def variables():
    return {"params": random_params(0, CONFIG)}


def decode(ids):
    return "".join(chr(33 + int(token)) for token in ids if token != 2)


def run(requests=REQUESTS, options=OPTIONS, weights=None):
    """Answers by (id, sample number)."""
    batches = sample(MODEL, weights or variables(), requests, options, decode=decode)
    answers = {answer.id: answer for batch in batches for answer in batch}
    assert len(answers) == len(requests)
    return {(request.id, request.sample): answers[f"{request.id}/{request.sample}"] for request in requests}


@functools.cache
def usual():
    return run()


def list_of(start, end):
    return [(request.id, request.sample) for request in REQUESTS[start:end]]


def test_batch_and_order_do_not_matter():
    order = np.random.default_rng(1).permutation(len(REQUESTS))
    assert run([REQUESTS[i] for i in order]) == usual()
    assert run(REQUESTS[4:5]) == {("p2", 0): usual()["p2", 0]}  # alone: the same to the last bit
    assert run(REQUESTS[3:6], dataclasses.replace(OPTIONS, batch_size=1)) == {k: usual()[k] for k in list_of(3, 6)}
    one_at_a_time = {}
    for request in REQUESTS:
        one_at_a_time |= run([request])
    assert one_at_a_time == usual()


@pytest.mark.parametrize("mesh", [(2, 2, 2), pytest.param((1, 8, 1), marks=pytest.mark.slow)])
def test_devices_do_not_matter(mesh):
    devices = device_mesh(*mesh)
    params = jax.device_put(variables()["params"], param_shardings(variables()["params"], devices))
    with jax.set_mesh(devices):
        found = run(REQUESTS[2:6], weights={"params": params})
    assert found.keys() == {("p1", 0), ("p1", 1), ("p2", 0), ("p2", 1)}
    for key, answer in found.items():
        assert answer.ids == usual()[key].ids
        np.testing.assert_allclose(answer.logps, usual()[key].logps, atol=2e-5)


def test_samples_differ_by_seed_id_and_number():
    other_seed = run(options=Options(SamplingParams(), max_new_tokens=8, max_prompt=40, seed=4, eos_ids=(2,)))
    renamed = run([request._replace(id="x" + request.id) for request in REQUESTS])
    for (name, number), answer in usual().items():
        assert answer.ids != other_seed[name, number].ids
        assert answer.ids != renamed["x" + name, number].ids
        assert answer.ids != usual()[name, 1 - number].ids


def test_log_likelihoods_and_greedy_tokens_are_those_of_the_model_without_cache_and_filters():
    warm, greedy = SamplingParams(1.7, top_k=9), SamplingParams(0.0)
    plain = jax.jit(lambda tokens: jax.nn.log_softmax(logits(MODEL, variables(), tokens), axis=-1))
    for draw in (OPTIONS.draw, warm, greedy):
        options = dataclasses.replace(OPTIONS, draw=draw, eos_ids=(2,))
        for (name, number), answer in run(REQUESTS[2:6] if draw == OPTIONS.draw else NARROW, options).items():
            prompt = next(request.ids for request in REQUESTS if request.id == name)
            tokens = jnp.zeros((1, 48), jnp.int32).at[0, : len(prompt) + len(answer.ids)].set([*prompt, *answer.ids])
            steps = np.asarray(plain(tokens)[0][np.arange(len(answer.ids)) + len(prompt) - 1])
            expected = steps[np.arange(len(answer.ids)), np.asarray(answer.ids)]
            np.testing.assert_allclose(answer.logps, expected, atol=2e-5, err_msg=f"{name}/{number}")
            assert draw != greedy or answer.ids == tuple(steps.argmax(-1).tolist())


def test_adapters_are_applied_without_merging():
    adapters = random_adapters(1, variables()["params"])
    greedy = Options(draw=SamplingParams(0.0), max_new_tokens=8, max_prompt=40)
    apart = run(NARROW, greedy, weights={**variables(), "lora": adapters})
    merged = jax.jit(functools.partial(merge, scale=0.5))(variables()["params"], adapters)
    whole = run(NARROW, greedy, weights={"params": merged})
    plain = run(NARROW, greedy)
    assert [answer.ids for answer in apart.values()] == [answer.ids for answer in whole.values()]
    assert [answer.ids for answer in apart.values()] != [answer.ids for answer in plain.values()]


def test_an_end_token_finishes_and_its_absence_is_told():
    ended = [answer for answer in usual().values() if answer.finish == "stop"]
    unfinished = [answer for answer in usual().values() if answer.finish == "length"]
    # the end token is the likeliest that these seeds draw somewhere; if none did, choose another
    options = Options(SamplingParams(), max_new_tokens=8, max_prompt=40, seed=3, eos_ids=(usual()["p0", 0].ids[3],))
    now = run(options=options)["p0", 0]
    assert now.ids == usual()["p0", 0].ids[: now.ids.index(options.eos_ids[0]) + 1] and now.finish == "stop"
    assert now.response == decode(now.ids[:-1])
    assert all(answer.ids[-1] == 2 and 2 not in answer.ids[:-1] for answer in ended)
    assert unfinished and all(len(answer.ids) == 8 and 2 not in answer.ids for answer in unfinished)


def test_a_stop_string_ends_the_text_before_it_and_the_tokens_with_it():
    long = Options(SamplingParams(), max_new_tokens=40, max_prompt=40, seed=3)
    free = run(NARROW, long)
    target = free["p0", 0]
    stop = target.response[20:22]
    stopped = run(
        NARROW, Options(SamplingParams(), max_new_tokens=40, max_prompt=40, seed=3, stop=("never seen", stop))
    )
    for key, answer in stopped.items():
        place = free[key].response.find(stop)
        if place < 0:
            assert answer == free[key]
        else:
            assert answer.response == free[key].response[:place] and answer.finish == "stop"
            assert answer.ids == free[key].ids[: place + 2] and len(answer.logps) == len(answer.ids)
    assert stopped["p0", 0].finish == "stop"
    assert stop_at("abcb", ("c", "b")) == 1 and stop_at("a", ("b",)) == stop_at("a", ()) == -1


def test_an_over_long_prompt_is_flagged_and_an_empty_answer_too():
    found = run([Request("long", [5] * 41), *REQUESTS[:2]])
    assert found["long", 0].finish == "too long" and not found["long", 0].ids and not found["long", 0].empty
    assert found["p0", 0] == usual()["p0", 0]
    first = usual()["p0", 0].ids[0]
    options = Options(SamplingParams(), max_new_tokens=8, max_prompt=40, seed=3, eos_ids=(first,))
    empty = run(REQUESTS[:1], options)["p0", 0]
    assert empty.ids == (first,) and empty.response == "" and empty.empty and empty.finish == "stop"
    with pytest.raises(ValueError, match="'none' has no tokens"):
        run([Request("none", [])])


def test_a_shape_is_compiled_once():
    begin.clear_cache()
    advance.clear_cache()
    run()
    assert begin._cache_size() == advance._cache_size() == 2  # prompts of 32 and of up to 40
    run(REQUESTS[::-1], Options(SamplingParams(), max_new_tokens=8, max_prompt=40, seed=9, eos_ids=(2,)))
    run(REQUESTS[3:5])
    assert begin._cache_size() == advance._cache_size() == 2


def test_every_request_is_in_one_batch_whose_width_follows_from_its_length():
    lengths = RANDOM.integers(1, 600, 300).tolist()
    batches = plan_batches(lengths, rows=16, longest=500)
    planned = sorted(index for _, indices in batches for index in indices)
    assert planned == [index for index, length in enumerate(lengths) if length <= 500]
    for width, indices in batches:
        assert len(indices) <= 16
        for index in indices:
            assert width == min(max(32, 2 ** int(np.ceil(np.log2(lengths[index])))), 500) >= lengths[index]
    assert {width for width, _ in batches} == {32, 64, 128, 256, 500}
    assert plan_batches([500], rows=1, longest=500) == plan_batches([400], rows=1, longest=500) == [(500, [0])]
