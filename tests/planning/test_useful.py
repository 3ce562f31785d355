"""Useful flops: what a program without padding and without recomputing does, and nothing else."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tisdpo_jax.models import Model, abstract_params, hidden_states
from tisdpo_jax.planning import useful
from tisdpo_jax.planning.program import read_program
from tisdpo_jax.testing import tiny_config

CONFIG = dataclasses.replace(tiny_config(), hidden_size=64, intermediate_size=160, num_layers=3)
TOKENS = 48


def test_a_forward_pass_over_one_full_row_is_all_useful() -> None:
    tokens = jax.ShapeDtypeStruct((1, TOKENS), jnp.int32)
    run = jax.jit(lambda params, tokens: hidden_states(Model(CONFIG), {"params": params}, tokens))
    compiled = read_program(run.lower(abstract_params(CONFIG), tokens).compile()).matmul_flops
    needed = useful.forward(CONFIG, np.asarray([[TOKENS - 8, 8]]))
    # the back end computes the half above the diagonal too
    dense = 4 * CONFIG.num_layers * CONFIG.num_heads * CONFIG.head_dim * TOKENS**2
    assert compiled == needed.matrices + dense
    assert needed.attention == dense * (TOKENS + 1) / (2 * TOKENS)
    assert needed.head == 2 * CONFIG.hidden_size * CONFIG.vocab_size * 8


def test_a_shared_prompt_counts_once() -> None:
    both = useful.forward(CONFIG, np.asarray([[30, 5, 7]]))
    one, other = (useful.forward(CONFIG, np.asarray([[30, n]])) for n in (5, 7))
    prompt = useful.forward(CONFIG, np.asarray([[30, 0]]))
    assert both.total == pytest.approx(one.total + other.total - prompt.total)


def test_training_all_parameters_is_three_forwards_and_one_for_each_frozen_model() -> None:
    lengths = np.asarray([[30, 5, 7], [10, 3, 2]])
    once = useful.forward(CONFIG, lengths).total
    assert useful.training(CONFIG, lengths, [], adapters=0).total == pytest.approx(3 * once)
    assert useful.training(CONFIG, lengths, [useful.forward(CONFIG, lengths)] * 2, adapters=0).total == pytest.approx(
        5 * once
    )


def test_frozen_matrices_have_no_gradient() -> None:
    lengths = np.asarray([[30, 5, 7]])
    once, adapters = useful.forward(CONFIG, lengths), 1000
    found = useful.training(CONFIG, lengths, [], adapters=adapters)
    assert found.matrices == pytest.approx(2 * once.matrices + 6 * adapters * 42)
    assert (found.attention, found.head) == (3 * once.attention, 2 * once.head)


def test_remat_full_is_one_more_forward_of_the_layers() -> None:
    lengths = np.asarray([[30, 5, 7]])
    once = useful.forward(CONFIG, lengths)
    assert useful.recomputed(CONFIG, lengths, "full").total == once.matrices + once.attention
    assert useful.recomputed(CONFIG, lengths, "none").total == 0
