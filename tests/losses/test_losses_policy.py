"""The identities of the losses of online reinforcement learning, of reward models and of distillation."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from loss_cases import GROUP_LOSSES, by_response, by_token

from tisdpo_jax import advantages, losses
from tisdpo_jax.losses import PolicyLoss
from tisdpo_jax.testing import Pairs, random_pairs

INFINITE = math.inf
clipped_loss = jax.jit(losses.clipped_loss, static_argnames=("low", "high", "dual", "level"))
mdloo_loss = jax.jit(losses.mdloo_loss, static_argnames=("level", "cap"))
reward_loss, grade_loss, reinforce_loss = map(jax.jit, (losses.reward_loss, losses.grade_loss, losses.reinforce_loss))
GROUP = (3, 4, 7)  # prompts, responses, tokens


@pytest.fixture(scope="module")
def group() -> Pairs:
    return random_pairs(0, GROUP)


def gradient(p: Pairs, function: Any, **options: Any) -> jax.Array:
    def total(policy: jax.Array) -> jax.Array:
        if function is losses.reinforce_loss:
            return function(policy, p.mask, **options).loss.sum()
        return function(policy, p.reference_logps, p.mask, **options).loss.sum()

    grad: jax.Array = jax.jit(jax.grad(total))(p.policy_logps)
    return grad


@pytest.mark.parametrize(("gamma", "level"), [(0.0, "sequence"), (0.3, "token"), (40.0, "sequence")])
@pytest.mark.parametrize("exact", [False, True])
def test_at_the_behaviour_mdloo_is_reinforce(group: Pairs, gamma: float, level: str, exact: bool) -> None:
    p = group._replace(reference_logps=group.policy_logps)
    a = by_response(p)
    # the exact KL and its gradient to the policy are 0 there
    options = {"token_kl": jnp.zeros_like(p.mask)} if exact else {}
    grad = gradient(p, losses.mdloo_loss, advantages=a, gamma=gamma, level=level, **options)
    np.testing.assert_array_equal(grad, gradient(p, losses.reinforce_loss, advantages=a))
    np.testing.assert_array_equal(grad, -a[..., None] * p.mask)


@pytest.mark.parametrize("level", ["token", "sequence"])
@pytest.mark.parametrize("bounds", [{}, {"low": 0.0, "high": 0.0}, {"dual": 3.0}])
def test_at_the_behaviour_the_clipped_loss_is_reinforce(group: Pairs, level: str, bounds: dict[str, float]) -> None:
    """With bounds of 0 too: what is at a bound is not beyond it."""
    p = group._replace(reference_logps=group.policy_logps)
    a = by_response(p)
    grad = gradient(p, losses.clipped_loss, advantages=a, level=level, **bounds)
    np.testing.assert_array_equal(grad, -a[..., None] * p.mask)


@pytest.mark.parametrize("level", ["sequence", "token"])
def test_without_kl_and_without_bounds_they_are_one(group: Pairs, level: str) -> None:
    a = by_response(group)
    arrays = group[:2]
    mdloo = mdloo_loss(*arrays, group.mask, advantages=a, gamma=0.0, level=level)
    clipped = clipped_loss(*arrays, group.mask, advantages=a, low=INFINITE, high=INFINITE, level=level)
    for one, other in zip(mdloo, clipped, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(
        gradient(group, losses.mdloo_loss, advantages=a, gamma=0.0, level=level),
        gradient(group, losses.clipped_loss, advantages=a, low=INFINITE, high=INFINITE, level=level),
        rtol=1e-5,
        atol=1e-7,
    )


def test_a_response_of_one_token_is_the_same_at_all_levels(group: Pairs) -> None:
    one = Pairs(*(x[..., :1] for x in group))
    a = by_response(one)
    for function, levels, options in (
        (losses.mdloo_loss, ("sequence", "token"), {"gamma": 0.6}),
        (losses.clipped_loss, ("token", "sequence", "mean"), {}),
    ):
        out = [function(*one[:2], one.mask, advantages=a, level=level, **options) for level in levels]
        for other in out[1:]:
            for x, y in zip(out[0], other, strict=True):
                np.testing.assert_allclose(x, y, rtol=1e-6)


@pytest.mark.parametrize("c", [0.01, 30.0])
@pytest.mark.parametrize("level", ["sequence", "token"])
def test_scaling_rewards_beta_and_gamma_scales_the_loss(group: Pairs, level: str, c: float) -> None:
    r = np.random.default_rng(0).normal(size=GROUP[:2]).astype(np.float32)

    def loss(c: float) -> jax.Array:
        penalised = advantages.penalised(c * r, *group[1:3], group.mask, beta=c * 0.2)
        a = advantages.leave_one_out(penalised)
        gamma = advantages.trust_gamma(penalised)
        return mdloo_loss(*group[:2], group.mask, advantages=a, gamma=gamma, level=level).loss

    np.testing.assert_allclose(loss(c), c * loss(1.0), rtol=2e-5, atol=2e-5 * c)


def test_advantages_by_response_are_those_of_each_token(group: Pairs) -> None:
    a = by_response(group)
    dense = jnp.where(group.mask > 0, a[..., None], jnp.nan)  # what stands behind the mask is not looked at
    for name, of in {
        "mdloo": lambda a: mdloo_loss(*group[:2], group.mask, advantages=a, gamma=0.5, level="token"),
        "clipped": lambda a: clipped_loss(*group[:2], group.mask, advantages=a),
        "reinforce": lambda a: reinforce_loss(group.policy_logps, group.mask, advantages=a),
    }.items():
        for one, other in zip(of(a), of(dense), strict=True):
            np.testing.assert_array_equal(one, other, err_msg=name)


def test_permuting_responses_permutes_the_results(group: Pairs) -> None:
    order = np.asarray([2, 0, 3, 1])
    shuffled = Pairs(*(x[:, order] for x in group))
    for name, function in GROUP_LOSSES.items():
        for one, other in zip(function(group), function(shuffled), strict=True):
            np.testing.assert_array_equal(one[:, order], other, err_msg=name)


def test_a_response_without_a_reward_has_no_loss_and_changes_nobody_elses_ratio(group: Pairs) -> None:
    r = np.random.default_rng(1).normal(size=GROUP[:2]).astype(np.float32)
    r[1, 2] = np.nan
    a = advantages.leave_one_out(r)
    out = clipped_loss(*group[:2], group.mask, advantages=a)
    assert float(out.loss[1, 2]) == 0.0
    rest = np.delete(r[1], 2)
    alone = Pairs(*(jnp.delete(x[1], 2, axis=0) for x in group))
    again = clipped_loss(*alone[:2], alone.mask, advantages=advantages.leave_one_out(rest))
    np.testing.assert_allclose(np.delete(out.loss[1], 2), again.loss, rtol=1e-6)


@pytest.mark.parametrize("name", losses.REDUCE)
def test_reductions_add_over_parts_of_a_batch(group: Pairs, name: str) -> None:
    """Filler prompts and responses without tokens do not count; parts are summed before they are divided."""
    p = group._replace(mask=group.mask.at[1, 3].set(0.0))
    loss, reduce = mdloo_loss(*p[:2], p.mask, advantages=by_response(p), gamma=0.5).loss, losses.REDUCE[name]
    whole, count = reduce(loss, p.mask)
    parts = [reduce(loss[i : i + 1], p.mask[i : i + 1]) for i in range(3)]
    filler = reduce(jnp.zeros((2, 4)), jnp.zeros((2, 4, 7)))
    assert float(filler[1]) == 0.0
    np.testing.assert_allclose(sum(part[0] for part in parts), whole, rtol=1e-6)
    assert float(sum(part[1] for part in parts)) == float(count)


def test_reductions_are_the_means_that_they_say(group: Pairs) -> None:
    p = group._replace(mask=group.mask.at[1, 3].set(0.0))
    loss = clipped_loss(*p[:2], p.mask, advantages=by_response(p)).loss
    x, lengths = np.asarray(loss, np.float64), np.asarray(p.mask).sum(-1)
    real = lengths > 0
    expected = {
        "response": x[real].mean(),
        "token": x.sum() / lengths.sum(),
        "constant": (x[real] / 7).mean(),
        "mean": (x[real] / lengths[real]).mean(),
    }
    assert expected.keys() == losses.REDUCE.keys()
    for name, value in expected.items():
        numerator, denominator = losses.REDUCE[name](loss, p.mask)
        np.testing.assert_allclose(numerator / denominator, value, rtol=1e-5, err_msg=name)


# The KL.


def test_the_sample_form_is_unbiased_and_never_negative_where_the_ratio_alone_is_noise() -> None:
    """Exact expectations over an alphabet of five; both the value and the gradient."""
    random = np.random.default_rng(3)
    theta, other = (jnp.asarray(random.normal(size=5), jnp.float32) for _ in range(2))
    behaviour = jax.nn.log_softmax(other)

    def parts(theta: jax.Array) -> PolicyLoss:
        logps = jax.nn.log_softmax(theta)[:, None]  # each letter, a response of one token
        return mdloo_loss(logps, behaviour[:, None], jnp.ones((5, 1)), advantages=jnp.zeros(5), gamma=1.0)

    def sampled(theta: jax.Array) -> jax.Array:
        return (jnp.exp(behaviour) * parts(theta).loss).sum()

    def exact(theta: jax.Array) -> jax.Array:
        policy = jax.nn.log_softmax(theta)
        return (jnp.exp(policy) * (policy - behaviour)).sum()

    both = jax.jit(lambda theta: [jax.value_and_grad(function)(theta) for function in (sampled, exact)])(theta)
    for one, same in zip(*both, strict=True):
        np.testing.assert_allclose(one, same, rtol=1e-5, atol=1e-7)
    kl, at_the_behaviour = jax.jit(lambda x, y: (parts(x).kl, jax.jacrev(lambda y: parts(y).loss)(y)))(theta, other)
    assert (np.asarray(kl) > 0).all()
    np.testing.assert_array_equal(at_the_behaviour, 0.0)  # on every sample


def test_the_kl_near_nothing_keeps_its_digits() -> None:
    """A float32 difference of `rho log rho` and `rho - 1` has none left at 1e-4; exactly x^2 / 2 to lowest order."""
    x = np.float32([1e-6, -1e-4, 1e-3, -0.02, 0.29, -0.31, 2.0, -8.0, 19.0])
    zero = jnp.zeros((len(x), 1))

    def both(policy: jax.Array) -> jax.Array:
        arrays = policy[:, None, None], zero[..., None], zero[..., None] + 1
        sample = mdloo_loss(*arrays, advantages=zero, gamma=1.0).loss
        return jnp.stack([sample, losses.reference_kl(*arrays)])[..., 0]

    values, slopes = jax.jit(lambda x: jax.jvp(both, (x,), (jnp.ones_like(x),)))(x)
    exact = x.astype(np.longdouble)
    near = exact**2 / 2 - exact**3 / 6 + exact**4 / 24
    k3 = np.where(np.abs(exact) > 1e-3, np.expm1(-exact) + exact, near)
    np.testing.assert_allclose(values, np.asarray([np.exp(exact) * k3, k3], np.float64), rtol=2e-6)
    np.testing.assert_allclose(slopes, np.asarray([exact * np.exp(exact), -np.expm1(-exact)], np.float64), rtol=2e-6)


# Bounds.


def test_beyond_the_cap_there_is_no_gradient_but_that_of_an_exact_kl(group: Pairs) -> None:
    a = by_response(group)
    far = group._replace(reference_logps=group.policy_logps - 2.0)  # 2 nats a token
    for level in ("sequence", "token"):
        out = mdloo_loss(*far[:2], far.mask, advantages=a, gamma=0.5, level=level, cap=1.0)
        np.testing.assert_array_equal(out.clipped, 1.0)
        np.testing.assert_allclose(out.ratio, math.e, rtol=1e-6)
        grad = gradient(far, losses.mdloo_loss, advantages=a, gamma=0.5, level=level, cap=1.0)
        np.testing.assert_array_equal(grad, 0.0)
    grad = jax.grad(
        lambda kl: mdloo_loss(*far[:2], far.mask, advantages=a, gamma=0.5, token_kl=kl, cap=1.0).loss.sum()
    )(far.token_kl)
    np.testing.assert_array_equal(grad, 0.5 * far.mask)


def test_the_clip_takes_the_gradient_where_it_says_so(group: Pairs) -> None:
    a = by_token(group)
    for options in ({}, {"low": 0.1, "high": 0.3}, {"dual": 1.4}, {"low": INFINITE}, {"high": INFINITE}):
        out = clipped_loss(*group[:2], group.mask, advantages=a, **options)
        grad = gradient(group, losses.clipped_loss, advantages=a, **options)
        gone = (np.asarray(grad) == 0) & (np.asarray(group.mask) > 0)
        np.testing.assert_allclose(out.clipped, gone.sum(-1) / group.mask.sum(-1), rtol=1e-6)
    assert 0 < float(out.clipped.mean()) < 1


def test_a_dual_bound_holds_the_loss_of_what_is_bad_and_became_likely(group: Pairs) -> None:
    a = -jnp.ones(GROUP[:2])
    arrays = group.policy_logps, group.policy_logps - 3.0, group.mask
    lengths = group.mask.sum(-1)
    without = clipped_loss(*arrays, advantages=a)
    np.testing.assert_allclose(without.loss, math.exp(3.0) * lengths, rtol=1e-5)
    held = clipped_loss(*arrays, advantages=a, dual=3.0)
    np.testing.assert_allclose(held.loss, 3.0 * lengths, rtol=1e-6)
    np.testing.assert_array_equal(held.clipped, 1.0)
    same = clipped_loss(*arrays, advantages=-a, dual=3.0)
    np.testing.assert_array_equal(same.loss, clipped_loss(*arrays, advantages=-a).loss)


# Sampler and trainer.


@pytest.mark.parametrize("level", ["token", "sequence"])
@pytest.mark.parametrize("mode", ["truncate", "mask"])
def test_where_sampler_and_trainer_agree_nothing_is_corrected(group: Pairs, level: str, mode: str) -> None:
    w = losses.sampler_weights(group.policy_logps, group.policy_logps, group.mask, level=level, mode=mode)
    np.testing.assert_array_equal(w, group.mask)


def test_sampler_weights_make_the_sampler_s_samples_unbiased() -> None:
    """By enumeration, without bounds: the mean under the sampler is the one under the behaviour."""
    random = np.random.default_rng(4)
    sampler, behaviour = (np.asarray(jax.nn.log_softmax(random.normal(size=6))) for _ in range(2))
    value = random.normal(size=6)
    w = losses.sampler_weights(behaviour[:, None], sampler[:, None], np.ones((6, 1)), cap=INFINITE)[:, 0]
    np.testing.assert_allclose((np.exp(sampler) * w * value).sum(), (np.exp(behaviour) * value).sum(), rtol=1e-5)


def test_sampler_weights_multiply_token_losses(group: Pairs) -> None:
    a = by_response(group)
    w = losses.sampler_weights(*group[1:3], group.mask)
    for out, by_hand in (
        (
            reinforce_loss(group.policy_logps, group.mask, advantages=a[..., None] * w),
            -(a[..., None] * w * group.policy_logps * group.mask),
        ),
        (
            clipped_loss(*group[:2], group.mask, advantages=a[..., None] * w, low=INFINITE, high=INFINITE),
            -(a[..., None] * w * jnp.exp(group.policy_logps - group.reference_logps)),
        ),
    ):
        np.testing.assert_allclose(out.loss, by_hand.sum(-1), rtol=1e-5, atol=1e-6)


def test_what_the_engine_does_not_know_stays_nan(group: Pairs) -> None:
    sampler = group.reference_logps.at[1, 2, 0].set(jnp.nan)
    for mode in ("truncate", "mask"):
        w = losses.sampler_weights(group.policy_logps, sampler, group.mask, mode=mode)
        assert np.argwhere(np.isnan(w)).tolist() == [[1, 2, 0]]


# Reward models and distillation.


@pytest.mark.parametrize("p", [0.5, 0.65, 0.95, 1.0])
def test_a_head_of_zeros_gives_log_2_and_log_levels(p: float) -> None:
    np.testing.assert_allclose(reward_loss(jnp.zeros((3, 2)), target=p).loss, math.log(2.0), rtol=1e-6)
    loss = grade_loss(jnp.zeros((3, 2, 4, 5)), jnp.full((3, 2, 4), 4))
    np.testing.assert_allclose(loss, 8 * math.log(5.0), rtol=1e-6)


def test_swapping_sides_and_labels_changes_nothing() -> None:
    rewards = np.random.default_rng(5).normal(0, 2, (6, 2)).astype(np.float32)
    p = np.linspace(0, 1, 6, dtype=np.float32)
    there = reward_loss(rewards, target=p, center_coef=0.1)
    back = reward_loss(rewards[:, ::-1], target=1 - p, center_coef=0.1)
    np.testing.assert_allclose(there.loss, back.loss, rtol=1e-6)
    np.testing.assert_array_equal(there.chosen_reward, back.rejected_reward)


@pytest.mark.parametrize(("name", "least"), [("negligibly", 0.619), ("slightly", 1.0986), ("significantly", 2.944)])
def test_the_loss_is_least_at_the_logit_of_the_target(name: str, least: float) -> None:
    slope = jax.grad(lambda d: reward_loss(jnp.stack([d, 0.0 * d]), target=losses.TARGETS[name]).loss)
    assert float(slope(jnp.float32(least - 2e-3))) < 0 < float(slope(jnp.float32(least + 2e-3)))


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.5])
def test_smoothed_dpo_is_the_reward_loss_of_its_rewards(smoothing: float) -> None:
    p = random_pairs(6)
    dpo = losses.dpo_loss(p.policy_logps, p.reference_logps, p.mask, beta=0.3, label_smoothing=smoothing)
    reward = reward_loss(jnp.stack(dpo[1:], -1), target=1 - smoothing)
    for one, other in zip(dpo, reward, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6)


def test_a_margin_moves_the_loss_and_centring_sees_the_sum_alone() -> None:
    rewards = np.random.default_rng(7).normal(0, 2, (6, 2)).astype(np.float32)
    m = np.linspace(0, 2, 6, dtype=np.float32)
    moved = rewards - np.stack([m, 0 * m], -1)
    np.testing.assert_allclose(reward_loss(rewards, margin=m).loss, reward_loss(moved).loss, rtol=1e-6, atol=1e-7)
    plain, centred = (reward_loss(rewards, center_coef=c).loss for c in (0.0, 0.3))
    np.testing.assert_allclose(centred - plain, 0.3 * rewards.sum(-1) ** 2, rtol=1e-4, atol=1e-6)


def test_labels_are_constants_and_rewards_of_nan_are_seen() -> None:
    rewards = jnp.asarray([[1.0, 0.5], [jnp.nan, 0.0], [2.0, 3.0]])
    out = reward_loss(rewards)
    assert np.isnan(out.loss).tolist() == [False, True, False]
    grad = jax.grad(lambda p, m: reward_loss(rewards[::2], target=p, margin=m).loss.sum(), argnums=(0, 1))
    for value in grad(jnp.full(2, 0.7), jnp.full(2, 0.1)):
        np.testing.assert_array_equal(value, 0.0)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_rewards_and_grades_of_low_precision(dtype: str) -> None:
    random = np.random.default_rng(8)
    rewards, logits = (
        jnp.asarray(random.normal(size=(3, 2)), dtype),
        jnp.asarray(random.normal(size=(3, 2, 2, 4)), dtype),
    )
    grades = random.integers(-1, 4, (3, 2, 2))
    for low, high in (
        (
            reward_loss(rewards, target=0.75).loss,
            reward_loss(rewards.astype("float32"), target=0.75).loss,
        ),
        (grade_loss(logits, grades), grade_loss(logits.astype("float32"), grades)),
    ):
        assert low.dtype == jnp.float32
        np.testing.assert_array_equal(low, high)


def test_a_grade_that_is_not_there_is_not_looked_at() -> None:
    random = np.random.default_rng(9)
    logits, grades = jnp.asarray(random.normal(size=(3, 2, 2, 4)), jnp.float32), random.integers(0, 4, (3, 2, 2))
    missing = np.array(grades)
    missing[1, 0, 1] = -1
    for garbage in (0.0, jnp.nan, jnp.inf):
        spoilt = logits.at[1, 0, 1].set(garbage)
        loss, grad = jax.value_and_grad(lambda x: grade_loss(x, missing).sum())(spoilt)
        np.testing.assert_array_equal(grad[1, 0, 1], 0.0)
        assert np.isfinite(loss) and np.isfinite(grad).all()
    without = grade_loss(logits, grades)[1] + jax.nn.log_softmax(logits[1, 0, 1])[grades[1, 0, 1]]
    np.testing.assert_allclose(grade_loss(logits, missing)[1], without, rtol=1e-6)
    np.testing.assert_array_equal(grade_loss(logits, np.full((3, 2, 2), -1)), 0.0)


@pytest.mark.parametrize("weight", [0.0, 0.9, 1.0])
def test_distillation_from_the_label_itself_is_cross_entropy(group: Pairs, weight: float) -> None:
    total, _ = losses.sft_loss(group.policy_logps, group.mask)
    loss = losses.top1_distillation(group.policy_logps, group.policy_logps, group.mask, weight=weight)
    assert loss.shape == GROUP
    np.testing.assert_allclose(loss.sum(), total, rtol=1e-6)
    np.testing.assert_array_equal(np.asarray(loss)[np.asarray(group.mask) == 0], 0.0)


def test_distillation_at_the_ends_sees_one_of_the_two(group: Pairs) -> None:
    teacher, label = group[:2]
    for weight, only in ((1.0, teacher), (0.0, label)):
        loss = losses.top1_distillation(teacher, label, group.mask, weight=weight)
        np.testing.assert_allclose(loss, -only * group.mask, rtol=1e-6)
    spoilt = [jnp.where(group.mask > 0, x, jnp.nan) for x in (teacher, label)]
    value, grad = jax.value_and_grad(lambda x: losses.top1_distillation(x, spoilt[1], group.mask).sum())(spoilt[0])
    assert np.isfinite(value)
    np.testing.assert_allclose(grad, -0.9 * group.mask, rtol=1e-6)
    impossible = losses.top1_distillation(teacher.at[0, 0, 0].set(-INFINITE), label, group.mask)
    assert np.isfinite(impossible).all() and float(impossible[0, 0, 0]) > 1e8
