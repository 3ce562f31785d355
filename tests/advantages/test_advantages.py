"""The identities of advantages, and by enumeration of all samples of a small world, whether a gradient is unbiased."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from tisdpo_jax import advantages, losses
from tisdpo_jax.testing import device_mesh, random_pairs

BY_GROUP: dict[str, Callable[..., jax.Array]] = {
    name: jax.jit(getattr(advantages, name))
    for name in ("leave_one_out", "group_mean", "group_normalised", "batch_normalised")
}
trust_gamma, prefix_baseline, prefix_coef, leave_one_out_by_position = map(
    jax.jit,
    (
        advantages.trust_gamma,
        advantages.prefix_baseline,
        advantages.prefix_coef,
        advantages.leave_one_out_by_position,
    ),
)
OF_THE_BATCH = {"batch_normalised"}
NAN = np.nan


def rewards(seed: int = 0, shape: tuple[int, ...] = (5, 4)) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 2, shape).astype(np.float32)


@pytest.mark.parametrize("name", BY_GROUP)
def test_they_sum_to_nothing_and_do_not_see_a_constant(name: str) -> None:
    r = rewards()
    a = BY_GROUP[name](r)
    assert a.dtype == jnp.float32
    np.testing.assert_allclose(a.sum(-1), 0.0, atol=2e-6)
    np.testing.assert_allclose(BY_GROUP[name](r + np.float32(64.0)), a, rtol=1e-4, atol=1e-5)
    by_group = r + np.arange(5, dtype=np.float32)[:, None] * 16  # another constant for each prompt
    np.testing.assert_allclose(BY_GROUP[name](by_group), a, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("c", [0.01, 25.0])
def test_what_the_scale_of_the_reward_does(c: float) -> None:
    r = rewards()
    for name, power in {"leave_one_out": 1, "group_mean": 1, "group_normalised": 0, "batch_normalised": 0}.items():
        a, scaled = BY_GROUP[name](r), BY_GROUP[name](np.float32(c) * r)
        np.testing.assert_allclose(scaled, c**power * a, rtol=1e-3, atol=1e-6, err_msg=name)
    np.testing.assert_allclose(trust_gamma(np.float32(c) * r), c * trust_gamma(r), rtol=1e-5)


@pytest.mark.parametrize("k", [2, 3, 8])
def test_leave_one_out_is_more_of_the_group_mean(k: int) -> None:
    r = rewards(shape=(5, k))
    np.testing.assert_allclose(BY_GROUP["leave_one_out"](r), k / (k - 1) * BY_GROUP["group_mean"](r), rtol=1e-5)


@pytest.mark.parametrize("step_kl", [0.02, 0.3])
def test_gamma_is_that_of_the_advantages_without_what_leaving_one_out_adds(step_kl: float) -> None:
    r = rewards(shape=(6, 4))
    a = np.asarray(BY_GROUP["leave_one_out"](r), np.float64)
    expected = np.sqrt(3 / 4) * a.std() / np.sqrt(2 * step_kl)
    np.testing.assert_allclose(trust_gamma(r, step_kl=step_kl), expected, rtol=1e-5)
    alone = np.concatenate([r, np.full((2, 4), NAN, np.float32)])
    alone[-1, 0] = 100.0  # a group of one reward says nothing
    np.testing.assert_allclose(trust_gamma(alone, step_kl=step_kl), expected, rtol=1e-5)


@pytest.mark.parametrize("name", BY_GROUP)
def test_a_response_without_a_reward_has_no_part(name: str) -> None:
    r = rewards()
    r[1, 2] = r[3, 0] = r[3, 1] = NAN
    a = np.asarray(BY_GROUP[name](r))
    np.testing.assert_array_equal(a[np.isnan(r)], 0.0)
    if name not in OF_THE_BATCH:
        np.testing.assert_allclose(np.delete(a[1], 2), BY_GROUP[name](np.delete(r[1], 2)), rtol=1e-5)
        np.testing.assert_allclose(a[3, 2:], BY_GROUP[name](r[3, 2:]), rtol=1e-5)
        np.testing.assert_array_equal(a[0], np.asarray(BY_GROUP[name](rewards()))[0])  # nobody else notices


@pytest.mark.parametrize("name", BY_GROUP)
def test_groups_that_say_nothing_give_exactly_nothing(name: str) -> None:
    """Fewer than two rewards, and equal ones, whose mean may round: a std of rounding errors would blow them up."""
    r = np.float32([[NAN, NAN, 3.0, NAN], [NAN] * 4, [0.1] * 4, [1000.1] * 4, [0.1, 0.1, 0.1, NAN]])
    np.testing.assert_array_equal(BY_GROUP[name](r), 0.0)
    equal = np.broadcast_to(rewards(shape=(30, 1)), (30, 7))
    np.testing.assert_array_equal(BY_GROUP[name](equal), 0.0)
    np.testing.assert_array_equal(trust_gamma(r), 0.0)


@pytest.mark.parametrize("name", BY_GROUP)
def test_permuting_prompts_and_responses_permutes(name: str) -> None:
    r, prompts, responses = rewards(), [3, 0, 4, 1, 2], [2, 0, 3, 1]
    there = BY_GROUP[name](r[prompts][:, responses])
    np.testing.assert_allclose(there, BY_GROUP[name](r)[jnp.asarray(prompts)][:, jnp.asarray(responses)], rtol=1e-5)


def test_the_penalty_is_a_sum_over_tokens_and_nan_stays_nan() -> None:
    p = random_pairs(0, (3, 4, 7))
    r = rewards(shape=(3, 4))
    r[1, 1] = NAN
    spoilt = jnp.where(p.mask > 0, p.policy_logps, jnp.nan)
    out = advantages.penalised(r, spoilt, p.reference_logps, p.mask, beta=0.2)
    expected = r - 0.2 * ((p.policy_logps - p.reference_logps) * p.mask).sum(-1)
    np.testing.assert_allclose(out, expected, rtol=1e-5)
    assert np.isnan(out).sum() == 1
    np.testing.assert_array_equal(advantages.penalised(r, p.policy_logps, p.reference_logps, p.mask, beta=0.0), r)
    impossible = p.reference_logps.at[0, 0, 0].set(-jnp.inf)
    assert np.isfinite(advantages.penalised(r, p.policy_logps, impossible, p.mask, beta=0.2)[0]).all()


def every(r: jax.Array, contrast: jax.Array, mask: jax.Array) -> dict[str, jax.Array]:
    """Each public function of it, on `[B, K]` rewards and `[B, K, N]` values by token."""
    to_go = advantages.return_to_go(contrast, mask)
    a = advantages.leave_one_out(r)
    return {
        **{name: getattr(advantages, name)(r) for name in BY_GROUP},
        "trust_gamma": advantages.trust_gamma(r),
        "penalised": advantages.penalised(r, contrast, 0.5 * contrast, mask, beta=0.3),
        "return_to_go": to_go,
        "leave_one_out_by_position": advantages.leave_one_out_by_position(to_go, mask),
        "prefix_baseline": advantages.prefix_baseline(a, contrast, mask),
        "prefix_coef": advantages.prefix_coef(a, contrast, mask),
    }


@functools.cache
def arrays() -> tuple[jax.Array, ...]:
    p = random_pairs(0, (2, 3, 4, 7))  # two batches
    return jnp.asarray(rewards(shape=(2, 3, 4))), p.policy_logps, p.mask


@functools.cache
def expected() -> dict[str, Any]:
    """One batch after the other, not compiled."""
    return jax.tree.map(lambda *x: np.stack(x), *(every(*(x[i] for x in arrays())) for i in range(2)))


@pytest.mark.parametrize("how", ["jit", "vmap", "shard_map"])
def test_transformations(how: str) -> None:
    def local(*x: jax.Array) -> dict[str, jax.Array]:
        return jax.tree.map(lambda y: y[None], every(*(y[0] for y in x)))

    rows = PartitionSpec("data")
    if how == "jit":
        one = jax.jit(every)
        out = jax.tree.map(lambda *x: np.stack(x), *(one(*(x[i] for x in arrays())) for i in range(2)))
    elif how == "vmap":
        out = jax.jit(jax.vmap(every))(*arrays())
    else:
        mesh = device_mesh(data=2)
        out = jax.jit(jax.shard_map(local, mesh=mesh, in_specs=rows, out_specs=rows))(*arrays())
    assert set(expected()) == set(advantages.__all__) == set(out)
    for name, values in expected().items():
        np.testing.assert_allclose(out[name], values, rtol=2e-5, atol=1e-6, err_msg=name)


def test_nothing_lets_a_gradient_through() -> None:
    r, contrast, mask = (x[0] for x in arrays())

    def total(r: jax.Array, contrast: jax.Array) -> jax.Array:
        return sum((x.sum() for x in every(r, contrast, mask).values()), jnp.float32(0.0))

    for grad in jax.jit(jax.grad(total, argnums=(0, 1)))(r, contrast):
        np.testing.assert_array_equal(grad, 0.0)


def test_low_precision_padding_and_what_stands_behind_the_mask() -> None:
    r, contrast, mask = (x[0] for x in arrays())
    whole = jax.jit(every)
    clean = whole(r, contrast, mask)
    spoilt = whole(r, jnp.where(mask > 0, contrast, jnp.nan), mask)
    longer = whole(r, *(jnp.pad(x, ((0, 0), (0, 0), (0, 3))) for x in (contrast, mask)))
    low = (r.astype("bfloat16"), contrast.astype("bfloat16"))
    for name, values in clean.items():
        np.testing.assert_array_equal(spoilt[name], values, err_msg=name)
        padded = longer[name][..., :7] if values.shape == mask.shape else longer[name]
        np.testing.assert_allclose(padded, values, rtol=1e-5, atol=1e-6, err_msg=name)
    exact = whole(*(x.astype("float32") for x in low), mask)
    for name, values in whole(*low, mask).items():
        assert values.dtype == jnp.float32
        np.testing.assert_allclose(values, exact[name], rtol=1e-5, atol=1e-6, err_msg=name)


# One advantage a token.


def test_returns_to_go_fall_by_the_reward_of_each_token() -> None:
    _, r, mask = (x[0] for x in arrays())
    g = advantages.return_to_go(r, mask)
    np.testing.assert_allclose(g[..., 0], (r * mask).sum(-1), rtol=1e-5)
    np.testing.assert_allclose(
        (g - jnp.pad(g[..., 1:], ((0, 0), (0, 0), (0, 1)))) * mask, r * mask, rtol=1e-4, atol=1e-5
    )


def test_an_empty_response_has_no_part_in_dense_baselines() -> None:
    r, values, mask = (x[0] for x in arrays())
    mask = mask.at[1, 2].set(0.0)
    alone = [jnp.delete(x, 2, axis=1) for x in (values, mask)]
    by_position = leave_one_out_by_position(values, mask)
    np.testing.assert_allclose(
        jnp.delete(by_position[1], 2, axis=0), leave_one_out_by_position(*alone)[1], rtol=1e-5, atol=1e-6
    )
    prefix = prefix_baseline(r, values, mask, coef=0.4)
    fewer = prefix_baseline(jnp.delete(r, 2, axis=1), *alone, coef=0.4)
    np.testing.assert_allclose(jnp.delete(prefix[1], 2, axis=0), fewer[1], rtol=1e-5, atol=1e-6)
    for out in (by_position, prefix):
        np.testing.assert_array_equal(out[1, 2], 0.0)
    missing = leave_one_out_by_position(values.at[0, 1, 0].set(jnp.nan), mask.at[0, 1, 0].set(1.0))
    without = leave_one_out_by_position(values, mask.at[0, 1].set(0.0))
    np.testing.assert_allclose(missing, without, rtol=1e-5, atol=1e-6)  # a return of NaN likewise


def test_a_coefficient_of_nothing_leaves_the_advantages_and_of_none_is_the_fitted_one() -> None:
    a, contrast, mask = (x[0] for x in arrays())
    none = prefix_baseline(a, contrast, mask, coef=0.0)
    np.testing.assert_array_equal(none, a[..., None] * mask)
    coef = prefix_coef(a, contrast, mask)
    np.testing.assert_array_equal(prefix_baseline(a, contrast, mask), prefix_baseline(a, contrast, mask, coef=coef))
    assert len(set(np.asarray(coef).tolist())) == 3


def test_a_prompt_has_no_part_in_its_own_coefficient() -> None:
    """However large it is; and where the others have no contrast there is none to speak of."""
    a, contrast, mask = (x[0] for x in arrays())
    coef = prefix_coef(a, contrast, mask)
    loud = prefix_coef(a.at[1].multiply(1e6), contrast.at[1].multiply(1e6), mask)
    np.testing.assert_array_equal(loud[1], coef[1])
    assert float(loud[0]) != float(coef[0])
    np.testing.assert_array_equal(prefix_coef(a, contrast, mask.at[1:].set(0.0))[0], 0.0)


# By enumeration: words of one or two letters out of three, the first letter of which may end them.

LETTERS, END = 3, 0
WORDS = [(END,), *((a, b) for a in (1, 2) for b in range(LETTERS))]
RANDOM = np.random.default_rng(1)
FIRST, SECOND = RANDOM.normal(size=LETTERS), RANDOM.normal(size=(LETTERS, LETTERS))
OF_FIRST, OF_SECOND = 1.5 * RANDOM.normal(size=LETTERS), RANDOM.normal(size=(LETTERS, LETTERS))  # true rewards
NOISE = RANDOM.normal(size=LETTERS)
WORD_MASK = np.asarray([[1.0, len(word) > 1] for word in WORDS], np.float32)
BY_LETTER = np.asarray([[OF_FIRST[w[0]], OF_SECOND[w] if len(w) > 1 else 0.0] for w in WORDS], np.float32)
CONTRAST = BY_LETTER + 0.5 * np.asarray([[NOISE[w[0]], 0.0] for w in WORDS], np.float32)
Theta = tuple[jax.Array, jax.Array]


def logps(theta: Theta) -> jax.Array:
    """`[words, 2]`, by letter; some number behind the end."""
    first, second = (jax.nn.log_softmax(x) for x in theta)
    return jnp.stack([jnp.stack([first[w[0]], second[w] if len(w) > 1 else -1.0 + 0.0 * first[0]]) for w in WORDS])


def exact() -> np.ndarray:
    """The gradient of the expected reward, in float64 by hand."""
    p, q = (np.exp(x) / np.exp(x).sum(-1, keepdims=True) for x in (FIRST, SECOND))
    second_stage = (q * OF_SECOND).sum(-1) * (np.arange(LETTERS) != END)
    value = OF_FIRST + second_stage  # of each first letter
    of_first = p * (value - (p * value).sum())
    of_second = (p * (np.arange(LETTERS) != END))[:, None] * q * (OF_SECOND - (q * OF_SECOND).sum(-1, keepdims=True))
    return np.concatenate([of_first, of_second.ravel()])


def dense(kind: str, r: np.ndarray, index: np.ndarray) -> jax.Array:
    """Advantages of all groups of words `index` `[B, K]`."""
    mask, total = WORD_MASK[index], r[index].sum(-1)
    a = advantages.leave_one_out(total)
    if kind == "sequence":
        return a
    if kind == "group mean":
        return advantages.group_mean(total)
    if kind == "by position":
        return advantages.leave_one_out_by_position(advantages.return_to_go(r[index], mask), mask)
    return advantages.prefix_baseline(a, CONTRAST[index], mask, coef=0.7)


@functools.cache
def moments(kind: str, k: int) -> tuple[np.ndarray, float]:
    """Mean and trace of the variance of the gradient of `reinforce_loss`, over all groups of k words."""
    index = np.asarray(list(itertools.product(range(len(WORDS)), repeat=k)))
    a = dense(kind, BY_LETTER, index)
    theta = (jnp.asarray(FIRST, jnp.float32), jnp.asarray(SECOND, jnp.float32))

    def by_group(theta: Theta) -> jax.Array:
        out = losses.reinforce_loss(logps(theta)[index], WORD_MASK[index], advantages=a)
        return -out.loss.mean(-1)

    jacobian = jax.jit(jax.jacfwd(by_group))(theta)
    gradients = np.concatenate([np.asarray(x, np.float64).reshape(len(index), -1) for x in jacobian], -1)
    words = np.exp(np.asarray(logps(theta), np.float64) * WORD_MASK).prod(-1)
    share = words[index].prod(-1)
    np.testing.assert_allclose(share.sum(), 1.0, rtol=1e-6)
    mean = share @ gradients
    return mean, float((share @ gradients**2 - mean**2).sum())


@pytest.mark.parametrize(
    ("kind", "k"), [("sequence", 2), ("sequence", 3), ("by position", 2), ("prefix", 2), ("prefix", 3)]
)
def test_the_gradient_is_unbiased(kind: str, k: int) -> None:
    np.testing.assert_allclose(moments(kind, k)[0], exact(), atol=1e-6)


def test_the_mean_of_the_group_is_a_smaller_step() -> None:
    np.testing.assert_allclose(moments("group mean", 3)[0], 2 / 3 * exact(), atol=1e-6)


def test_the_contrast_of_the_prefix_takes_variance_away() -> None:
    assert moments("prefix", 3)[1] < 0.9 * moments("sequence", 3)[1]
