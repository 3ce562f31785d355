"""The paper's token weights, the controls, and the public code's transforms: ranges, signs, edges."""

from __future__ import annotations

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from weight_cases import COMPILED, RANDOM

from tisdpo_jax import losses, weights
from tisdpo_jax.testing import random_pairs

few = settings(max_examples=20)
SEEDS = st.integers(0, 2**31 - 1)


def arrays(seed: int, shape: tuple[int, ...] = (4, 2, 7)) -> tuple[jax.Array, jax.Array, jax.Array]:
    p = random_pairs(seed, shape)
    return p.positive_logps, p.negative_logps, p.mask


def real(values: jax.Array, mask: jax.Array, side: int) -> np.ndarray:
    return np.asarray(values)[:, side][np.asarray(mask)[:, side] > 0]


# The paper's formula.


def test_the_formula_on_numbers_worked_by_hand() -> None:
    positive = jnp.asarray([[[-1.0, -2.0, -9.0], [-1.0, -2.0, -9.0]]])
    negative = jnp.asarray([[[-2.0, -2.0, -1.0], [-2.0, -2.0, -1.0]]])
    got = weights.importance_weights(positive, negative, jnp.ones((1, 2, 3)), scale=2.0)
    e = math.e
    # log-ratios 1, 0, -8 (clamped to -0.5); the sign turns on the rejected side, after the clamp
    np.testing.assert_allclose(got, [[[2 * e, 2, 2 * e**-0.5], [2 / e, 2, 2 * e**0.5]]], rtol=1e-6)


@few
@given(SEEDS)
def test_weights_lie_where_the_paper_says(seed: int) -> None:
    positive, negative, mask = arrays(seed)
    w = weights.importance_weights(4.0 * positive, 4.0 * negative, mask)
    chosen, rejected = real(w, mask, 0), real(w, mask, 1)
    edge = 1e-6
    assert chosen.min() >= math.exp(-0.5) - edge and chosen.max() <= math.exp(1.5) + edge
    assert rejected.min() >= math.exp(-1.5) - edge and rejected.max() <= math.exp(0.5) + edge


def test_both_ends_of_the_clamp_are_reached() -> None:
    positive, negative, mask = jnp.zeros((1, 2, 2)), jnp.asarray([[[9.0, -9.0]] * 2]), jnp.ones((1, 2, 2))
    w = weights.importance_weights(positive, negative, mask)
    np.testing.assert_allclose(w, np.exp([[[-0.5, 1.5], [0.5, -1.5]]]), rtol=1e-6)
    w = weights.importance_weights(positive, negative, mask, lower=-1.0, upper=2.0, mu=0.5)
    np.testing.assert_allclose(w, np.exp([[[-0.5, 1.0], [0.5, -1.0]]]), rtol=1e-6)


@few
@given(SEEDS)
def test_equal_models_give_weight_k(seed: int) -> None:
    positive, _, mask = arrays(seed)
    np.testing.assert_array_equal(weights.importance_weights(positive, positive, mask, scale=3.0), 3.0 * mask)


@few
@given(SEEDS)
def test_mu_zero_is_the_uniform_control(seed: int) -> None:
    args = arrays(seed)
    np.testing.assert_array_equal(weights.importance_weights(*args, mu=0.0), weights.uniform(*args))


@few
@given(SEEDS)
def test_a_larger_log_ratio_never_weighs_less_on_chosen_nor_more_on_rejected(seed: int) -> None:
    positive, negative, mask = arrays(seed)
    before = weights.importance_weights(positive, negative, mask)
    after = weights.importance_weights(positive + 0.3, negative, mask)
    change = np.asarray(after - before)
    assert (change[:, 0] >= 0).all() and (change[:, 1] <= 0).all() and change.any()


@few
@given(SEEDS)
def test_token_rewards_sum_to_the_self_reward_of_dlma(seed: int) -> None:
    """One contrastive pass serves both methods: R of method DLMA is a sum of what TIS-DPO's weights are made of."""
    p = random_pairs(seed)
    rewards = weights.token_rewards(p.positive_logps, p.negative_logps, p.mask)
    log_pi = [(x * p.mask).sum(-1) for x in (p.positive_logps, p.negative_logps)]
    expected = (log_pi[0] - log_pi[1])[:, 0] - (log_pi[0] - log_pi[1])[:, 1]
    np.testing.assert_allclose(rewards.sum(-1)[:, 0] - rewards.sum(-1)[:, 1], expected, rtol=1e-5, atol=1e-5)
    out = losses.dlma_loss(p.policy_logps, p.policy_logps, p.mask, self_reward=expected)
    np.testing.assert_allclose(out.loss, np.log1p(np.exp(0.02 * np.asarray(expected))), rtol=1e-5)


# What holds for every kind of weight.


@pytest.mark.parametrize("name", COMPILED)
def test_masked_tokens_weigh_nothing_and_are_not_looked_at(name: str) -> None:
    positive, negative, mask = arrays(1)
    clean = COMPILED[name](positive, negative, mask)
    np.testing.assert_array_equal(np.asarray(clean)[np.asarray(mask) == 0], 0.0)
    for garbage in (math.nan, math.inf, -math.inf):
        spoilt = (jnp.where(mask > 0, x, garbage) for x in (positive, negative))
        np.testing.assert_array_equal(COMPILED[name](*spoilt, mask), clean)


@pytest.mark.parametrize("name", COMPILED)
def test_no_gradient_flows_through(name: str) -> None:
    p = random_pairs(1)
    grad = jax.jit(jax.grad(lambda p: COMPILED[name](p.positive_logps, p.negative_logps, p.mask).sum()))(p)
    for field, value in grad._asdict().items():
        np.testing.assert_array_equal(value, 0.0, err_msg=field)


@pytest.mark.parametrize("name", COMPILED)
def test_impossible_tokens_and_empty_responses_give_finite_weights(name: str) -> None:
    positive, negative, mask = arrays(2)
    mask = mask.at[0].set(0.0).at[1, 1].set(0.0)
    positive = positive.at[2, :, 0].set(-jnp.inf)
    negative = negative.at[2, 1, 0].set(-jnp.inf).at[3, 0, 0].set(-jnp.inf)
    w = COMPILED[name](positive, negative, mask)
    assert np.isfinite(w).all()
    np.testing.assert_array_equal(w[0], 0.0)
    np.testing.assert_array_equal(w[1, 1], 0.0)


@pytest.mark.parametrize("name", COMPILED)
def test_low_precision_in_float32_out(name: str) -> None:
    low = tuple(x.astype("bfloat16") for x in arrays(3))
    w = COMPILED[name](*low)
    assert w.dtype == jnp.float32
    # two programs: one may fuse a multiplication with an addition, and so round once less
    np.testing.assert_allclose(w, COMPILED[name](*(x.astype("float32") for x in low)), rtol=2e-7)


# Controls.


def test_log_uniform_draws_the_logarithm() -> None:
    args = arrays(4, (16, 2, 160))
    w = weights.log_uniform(*args, key=jax.random.key(0))
    mask = args[2]
    for side, (low, high) in enumerate([(-0.5, 1.5), (-1.5, 0.5)]):
        logs = np.log(real(w, mask, side))
        assert logs.min() >= low - 1e-6 and logs.max() <= high + 1e-6
        np.testing.assert_allclose([logs.mean(), logs.var()], [(low + high) / 2, 4 / 12], atol=0.05)


@few
@given(SEEDS)
def test_shuffled_keeps_the_weights_of_each_response_and_moves_them(seed: int) -> None:
    args = arrays(seed)
    mask = np.asarray(args[2]) > 0
    estimate = np.asarray(weights.importance_weights(*args))
    moved = np.asarray(weights.shuffled(*args, key=jax.random.key(seed)))
    for pair in range(4):
        for side in range(2):
            where = mask[pair, side]
            np.testing.assert_array_equal(np.sort(estimate[pair, side][where]), np.sort(moved[pair, side][where]))
    assert (estimate != moved).any()
    np.testing.assert_array_equal(moved[~mask], 0.0)


def test_shuffled_moves_real_tokens_wherever_they_stand() -> None:
    positive, negative, _ = arrays(5)
    mask = jnp.zeros((4, 2, 7)).at[..., jnp.asarray([1, 2, 4, 6])].set(1.0)  # holes, as behind a tool call
    estimate = weights.importance_weights(positive, negative, mask)
    moved = weights.shuffled(positive, negative, mask, key=jax.random.key(0))
    np.testing.assert_array_equal(np.asarray(moved)[np.asarray(mask) == 0], 0.0)
    np.testing.assert_array_equal(np.sort(estimate, axis=-1), np.sort(moved, axis=-1))


def test_another_key_is_another_draw_and_the_same_key_the_same() -> None:
    args = arrays(6)
    for function in (weights.log_uniform, weights.shuffled, weights.TRANSFORMS["random"]):
        one, again, other = (function(*args, key=jax.random.key(k)) for k in (0, 0, 1))
        np.testing.assert_array_equal(one, again)
        assert (np.asarray(one) != np.asarray(other)).any()


def test_rank_keeps_the_order_and_forgets_the_size() -> None:
    positive = jnp.asarray([[[0.1, 5.0, -3.0, 0.2, 9.0]] * 2])
    mask = jnp.asarray([[[1.0, 1.0, 1.0, 1.0, 0.0]] * 2])
    w = weights.rank(positive, jnp.zeros_like(positive), mask)
    steps = np.exp(np.asarray([-0.5, -0.5 + 2 / 3, -0.5 + 4 / 3, 1.5]))
    np.testing.assert_allclose(w[0, 0], [steps[1], steps[3], steps[0], steps[2], 0.0], rtol=1e-6)
    np.testing.assert_allclose(w[0, 1, :4], 1.0 / w[0, 0, :4], rtol=1e-6)


def test_position_knows_places_and_nothing_else() -> None:
    positive, negative, mask = arrays(6)
    w = np.asarray(weights.position(positive, negative, mask, gamma=0.5))
    np.testing.assert_array_equal(w, weights.position(negative, positive, mask, gamma=0.5))
    for row, real in zip(w.reshape(-1, w.shape[-1]), np.asarray(mask).reshape(-1, w.shape[-1]), strict=True):
        np.testing.assert_allclose(row[real > 0], 0.5 ** np.arange((real > 0).sum()), rtol=1e-6)
        assert (row[real == 0] == 0).all()
    np.testing.assert_array_equal(weights.position(positive, negative, mask, gamma=1.0), np.asarray(mask) > 0)


# The public code's transforms, on a response of four tokens with log-ratios -2.004, 0.126, 0.3, 1.2.

D = np.asarray([-2.0, 0.13, 0.3, 1.2])  # as it stores them: rounded to two decimals


def transformed(name: str, **options: object) -> tuple[np.ndarray, np.ndarray]:
    positive = jnp.asarray([[[-2.004, 0.126, 0.3, 1.2, 7.0]] * 2])
    mask = jnp.asarray([[[1.0, 1.0, 1.0, 1.0, 0.0]] * 2])
    w = np.asarray(weights.TRANSFORMS[name](positive, jnp.zeros_like(positive), mask, **options))
    np.testing.assert_array_equal(w[..., 4], 0.0)
    return w[0, 0, :4], w[0, 1, :4]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("origin", lambda d: d),
        ("threshold", lambda d: np.clip(d, -1, 1)),
        ("threshold_and_scale", lambda d: 1.0 + 0.2 * np.clip(d, -1.5, 1.5)),
        ("rank_based", lambda d: 0.7 + 0.2 * np.argsort(np.argsort(d))),
        ("binary", np.ones_like),
    ],
)
def test_transforms(name: str, expected: Callable[[np.ndarray], np.ndarray]) -> None:
    chosen, rejected = transformed(name)
    np.testing.assert_allclose(chosen, expected(D), rtol=1e-6)
    np.testing.assert_allclose(rejected, expected(-D), rtol=1e-6)


def test_random_lies_between_0_7_and_1_3() -> None:
    args = arrays(7, (16, 2, 160))
    w = np.asarray(weights.TRANSFORMS["random"](*args, key=jax.random.key(0)))[np.asarray(args[2]) > 0]
    assert 0.7 <= w.min() < 0.71 and 1.29 < w.max() <= 1.3
    np.testing.assert_allclose(w.mean(), 1.0, atol=0.02)


@pytest.mark.parametrize(
    ("percent", "kept"), [(0.0, []), (25.0, [3]), (26.0, [2, 3]), (50.0, [2, 3]), (100.0, [0, 1, 2, 3])]
)
def test_binary_keeps_the_top(percent: float, kept: list[int]) -> None:
    chosen, rejected = transformed("binary", top_percent=percent)
    np.testing.assert_array_equal(np.flatnonzero(chosen), kept)
    np.testing.assert_array_equal(np.flatnonzero(rejected), sorted(3 - i for i in kept))


def test_binary_keeps_a_whole_share_exactly() -> None:
    """A share that is a whole number of tokens is not rounded up by one through a rounding error."""
    counts = np.arange(1, 101)
    mask = jnp.asarray(np.arange(100) < counts[:, None], jnp.float32)[:, None].repeat(2, 1)
    values = jnp.broadcast_to(jnp.arange(100.0), mask.shape)
    for percent in range(0, 101):
        w = weights.TRANSFORMS["binary"](values, 0.0 * values, mask, top_percent=float(percent))
        kept = np.asarray(w).sum(-1)[:, 0]
        np.testing.assert_array_equal(kept, -(-counts * percent // 100), err_msg=f"{percent} %")


@pytest.mark.parametrize("name", weights.TRANSFORMS)
def test_zero_last_takes_the_weight_of_the_end_of_turn(name: str) -> None:
    positive, negative, mask = arrays(8)
    options = {"key": jax.random.key(0)} if name == "random" else {}
    kept = np.asarray(weights.TRANSFORMS[name](positive, negative, mask, **options))
    zeroed = np.asarray(weights.TRANSFORMS[name](positive, negative, mask, zero_last=True, **options))
    last = np.asarray(mask).sum(-1).astype(int) - 1
    is_last = np.arange(7) == last[..., None]
    np.testing.assert_array_equal(zeroed[is_last], 0.0)
    np.testing.assert_array_equal(zeroed[~is_last], kept[~is_last])


def test_every_name_of_the_configuration_has_a_function() -> None:
    from tisdpo_jax.estimators import ESTIMATORS

    assert set(ESTIMATORS) == {"importance", "entropy", *weights.CONTROLS, *weights.TRANSFORMS}


@pytest.mark.parametrize("name", COMPILED)
def test_any_axes_may_stand_before_the_sides(name: str) -> None:
    p = random_pairs(9, (3, 4, 2, 7))
    w = COMPILED[name](p.positive_logps, p.negative_logps, p.mask)
    assert w.shape == (3, 4, 2, 7)
    if name not in RANDOM:
        part = COMPILED[name](p.positive_logps[1], p.negative_logps[1], p.mask[1])
        np.testing.assert_allclose(w[1], part, rtol=1e-6)


def test_dpo_of_weighted_sums_is_tisdpo_without_its_kl() -> None:
    """In whatever trainer takes one number a response; the gradient to the policy is the same too."""
    p, smoothing = random_pairs(10), 0.1
    w = weights.importance_weights(p.positive_logps, p.negative_logps, p.mask)

    def of_sums(policy: jax.Array) -> jax.Array:
        policy, reference = (weights.weighted_sums(x, w, p.mask) for x in (policy, p.reference_logps))
        z = 0.1 * ((policy[:, 0] - policy[:, 1]) - (reference[:, 0] - reference[:, 1]))
        return (-(1 - smoothing) * jax.nn.log_sigmoid(z) - smoothing * jax.nn.log_sigmoid(-z)).sum()

    def ours(policy: jax.Array) -> jax.Array:
        out = losses.tisdpo_loss(policy, p.reference_logps, p.mask, weights=w, label_smoothing=smoothing)
        return out.loss.sum()

    for one, other in zip(*(jax.jit(jax.value_and_grad(f))(p.policy_logps) for f in (of_sums, ours)), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-7)


def test_weighted_sums_look_at_real_tokens_alone_and_weights_are_constants() -> None:
    logps, w, mask = map(np.array, arrays(11))
    mask[1, 1] = 0.0
    sums = np.asarray(weights.weighted_sums(logps, w, mask))
    np.testing.assert_allclose(sums, (w * logps * mask).sum(-1), rtol=1e-6)
    assert sums.shape == (4, 2) and float(sums[1, 1]) == 0.0
    for garbage in (math.nan, -math.inf):
        spoilt = (np.where(mask > 0, x, garbage) for x in (logps, w))
        np.testing.assert_array_equal(weights.weighted_sums(*spoilt, mask), sums)
    grads = jax.jit(jax.grad(lambda x, w: weights.weighted_sums(x, w, mask).sum(), argnums=(0, 1)))(logps, w)
    np.testing.assert_array_equal(grads[0], w * mask)
    np.testing.assert_array_equal(grads[1], 0.0)
    logps[0, 0, 0], w[0, 0, 0] = -math.inf, 0.0
    assert np.isfinite(weights.weighted_sums(logps, w, mask)).all(), "a weight of 0 takes an impossible token out"
