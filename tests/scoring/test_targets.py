"""Targets outside the vocabulary, the shift by one, and rows of chosen and rejected: what other loops bring."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tisdpo_jax import losses, scoring

B, N, D, V = 3, 5, 4, 200  # more than 100: -100 read from the end would be a token
RANDOM = np.random.default_rng(0)
HIDDEN = RANDOM.normal(0, 1, (B, 2, N, D)).astype(np.float32)
HEAD = RANDOM.normal(0, 1, (D, V)).astype(np.float32)
REAL = RANDOM.random((B, 2, N)) < 0.6
TOKENS = RANDOM.integers(0, V, (B, 2, N)).astype(np.int32)
LABELS = np.where(REAL, TOKENS, np.int32(-100))


def log_softmax(x: np.ndarray) -> np.ndarray:
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


Logps = Callable[..., jax.Array]
FUNCTIONS: dict[str, Logps] = {
    "logps_from_logits": lambda hidden, head, targets, **options: scoring.logps_from_logits(
        jnp.asarray(hidden) @ head, targets, **options
    ),
    "fused_logps": scoring.fused_logps,
    "fused_logps_and_kl": lambda hidden, head, targets, **options: scoring.fused_logps_and_kl(
        hidden, head, hidden, 0.5 * head, targets, **options
    )[0],
}
EVERY = pytest.mark.parametrize("name", FUNCTIONS)


def compiled(name: str) -> Any:
    """Log-likelihoods and the gradients of their sum, everything traced."""

    def total(hidden: Any, head: Any, targets: Any, mask: Any) -> Any:
        logps = FUNCTIONS[name](hidden, head, targets, mask=mask)
        return logps.sum(), logps

    return jax.jit(jax.grad(total, argnums=(0, 1), has_aux=True))


@EVERY
def test_labels_under_the_mask_are_0_and_leave_no_trace(name: str) -> None:
    """Nothing of a masked token is looked at, its hidden state neither; the others are as if it were not there."""
    function = compiled(name)
    # a NaN of hidden states spoils the product with a head, which is none of the plain function's
    spoilt = HIDDEN if name == "logps_from_logits" else np.where(REAL[..., None], HIDDEN, np.nan)
    (hidden_grad, head_grad), logps = function(spoilt, HEAD, LABELS, REAL)
    (expected_hidden, expected_head), expected = function(HIDDEN, HEAD, np.where(REAL, TOKENS, 7), REAL)
    np.testing.assert_array_equal(np.asarray(logps)[~REAL], 0.0)
    np.testing.assert_array_equal(np.asarray(hidden_grad)[~REAL], 0.0)
    for one, other in ((logps, expected), (hidden_grad, expected_hidden), (head_grad, expected_head)):
        assert np.isfinite(one).all()
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)
    of_all = np.take_along_axis(log_softmax(HIDDEN @ HEAD), TOKENS[..., None], -1)[..., 0]
    np.testing.assert_allclose(np.asarray(logps)[REAL], of_all[REAL], rtol=1e-5)


@EVERY
@pytest.mark.parametrize("target", [-100, -1, V, 2**31 - 1])
def test_a_target_outside_the_vocabulary_is_an_error_where_it_is_seen(name: str, target: int) -> None:
    targets = TOKENS.copy()
    targets[1, 0, 2] = target
    message = rf"^{name}: targets\[1, 0, 2\] is {target}, outside the vocabulary of {V} .*mask=targets != -100"
    for options in ({}, {"mask": np.ones_like(REAL)}):
        with pytest.raises(ValueError, match=message):
            FUNCTIONS[name](HIDDEN, HEAD, targets, **options)
    with pytest.raises(ValueError, match=message):  # the other arrays may be traced
        jax.eval_shape(lambda hidden: FUNCTIONS[name](hidden, HEAD, targets), HIDDEN)


@EVERY
def test_where_it_is_traced_it_is_no_number(name: str) -> None:
    """NaN in all of them, in a loss too; masked by the loss alone, the gradient stays finite."""
    logps = jax.jit(FUNCTIONS[name])(HIDDEN, HEAD, LABELS)
    np.testing.assert_array_equal(np.isnan(logps), ~REAL)

    def loss(hidden: Any, head: Any, labels: Any, mask: Any) -> jax.Array:
        logps = FUNCTIONS[name](hidden, head, labels)
        return losses.dpo_loss(logps, 0.9 * logps, mask).loss.sum()

    gradient = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))
    value, grads = gradient(HIDDEN, HEAD, LABELS, REAL)
    assert np.isfinite(value) and all(np.isfinite(x).all() and np.any(x) for x in grads)
    assert np.isnan(gradient(HIDDEN, HEAD, LABELS, np.ones_like(REAL))[0])


def test_logits_under_the_mask_are_not_looked_at() -> None:
    def total(logits: Any) -> jax.Array:
        return scoring.logps_from_logits(logits, LABELS, mask=REAL).sum()

    logits = HIDDEN @ HEAD
    grad = jax.jit(jax.grad(total))
    np.testing.assert_array_equal(grad(np.where(REAL[..., None], logits, np.nan)), grad(logits))


def test_the_kl_is_0_under_the_mask() -> None:
    spoilt = np.where(REAL[..., None], HIDDEN, np.nan)
    out = jax.jit(functools.partial(scoring.fused_logps_and_kl))(
        spoilt, HEAD, 2.0 * spoilt, HEAD, LABELS, mask=REAL.astype(np.float32)
    )
    for x in out:
        np.testing.assert_array_equal(np.asarray(x)[~REAL], 0.0)
        assert (np.asarray(x)[REAL] != 0).all() and np.isfinite(x).all()


def test_the_shift_by_one_scores_each_token_by_what_stands_before_it() -> None:
    """Of a table of bigrams the log-likelihood of a token is known without any shift."""
    table = log_softmax(RANDOM.normal(0, 1, (V, V)).astype(np.float32))
    ids = RANDOM.integers(0, V, (B, 2, N)).astype(np.int32)
    targets, mask = jax.jit(scoring.next_token)(np.where(REAL, ids, -100), REAL)  # labels will do
    assert targets.shape == mask.shape == (B, 2, N - 1) and mask.dtype == jnp.float32
    np.testing.assert_array_equal(mask, REAL[..., 1:])
    np.testing.assert_array_equal(targets, np.where(REAL, ids, 0)[..., 1:])
    logps = jax.jit(scoring.logps_from_logits)(table[ids][..., :-1, :], targets, mask=mask)
    expected = table[ids[..., :-1], ids[..., 1:]] * REAL[..., 1:]
    np.testing.assert_allclose(logps, expected, rtol=1e-5, atol=1e-6)


def test_rows_and_sides_are_each_others_inverse() -> None:
    rows = np.arange(2 * B * N).reshape(2 * B, N)
    sides = scoring.pairs(rows)
    np.testing.assert_array_equal(sides[:, 0], rows[:B])
    np.testing.assert_array_equal(sides[:, 1], rows[B:])
    np.testing.assert_array_equal(scoring.unpairs(sides), rows)
    np.testing.assert_array_equal(scoring.pairs(scoring.unpairs(TOKENS)), TOKENS)
    np.testing.assert_array_equal(jax.jit(scoring.pairs)(rows[:, 0]), sides[:, :, 0])  # any axes behind, none too
