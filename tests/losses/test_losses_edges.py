"""Empty responses, impossible tokens, garbage behind the mask, low precision: losses finite, gradients zero."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from loss_cases import ALL, LOSSES, OF_THE_BATCH

from tisdpo_jax import losses
from tisdpo_jax.losses import PairLoss, PolicyLoss
from tisdpo_jax.testing import Pairs, random_pairs

INF = jnp.inf
LOGISTIC = sorted(name for name in LOSSES if not any(other in name for other in ("kto", "ipo", "simpo", "orpo")))


@functools.cache
def compiled(name: str) -> Callable[[Pairs], tuple[PairLoss | PolicyLoss, Pairs]]:
    """A loss and the gradient of its sum with respect to everything; compiled once a shape."""

    def total(p: Pairs) -> tuple[jax.Array, PairLoss | PolicyLoss]:
        out = ALL[name](p)
        return out.loss.sum(), out

    gradient = jax.grad(total, has_aux=True)
    return jax.jit(lambda p: gradient(p)[::-1])


def loss_and_gradient(name: str, p: Pairs) -> tuple[PairLoss | PolicyLoss, Pairs]:
    out, grad = compiled(name)(p)
    for field, value in (*out._asdict().items(), *grad._asdict().items()):
        assert np.isfinite(value).all(), f"{field} is not finite: {value}"
    return out, grad


def edit(p: Pairs, **values: float) -> Pairs:
    """One field or several, with another value at token 0 of the rejected response of pair 1; that token is real."""
    assert bool((p.mask[1, 1, :1] == 1).all())
    return p._replace(**{name: getattr(p, name).at[1, 1, 0].set(value) for name, value in values.items()})


@pytest.mark.parametrize("name", ALL)
def test_a_pair_without_tokens_has_a_finite_loss_and_no_gradient(name: str) -> None:
    p = random_pairs(0)
    p = p._replace(mask=p.mask.at[2].set(0.0))
    out, grad = loss_and_gradient(name, p)
    np.testing.assert_array_equal(grad.policy_logps[2], 0.0)
    if isinstance(out, PolicyLoss):
        for value, expected in zip(out, (0.0, 1.0, 0.0, 0.0), strict=True):
            np.testing.assert_array_equal(value[2], expected)
    else:
        np.testing.assert_array_equal([out.chosen_reward[2], out.rejected_reward[2]], 0.0)
    if name in LOGISTIC:
        np.testing.assert_allclose(out.loss[2], math.log(2.0), rtol=1e-7)


@pytest.mark.parametrize("name", ALL)
def test_one_empty_response_leaves_the_other(name: str) -> None:
    p = random_pairs(0)
    p = p._replace(mask=p.mask.at[2, 1].set(0.0).at[2, 0, 0].set(1.0))
    out, grad = loss_and_gradient(name, p)
    np.testing.assert_array_equal(grad.policy_logps[2, 1], 0.0)
    assert float(grad.policy_logps[2, 0, 0]) != 0.0
    assert float(out.loss[2, 1] if isinstance(out, PolicyLoss) else out.rejected_reward[2]) == 0.0


@pytest.mark.parametrize("name", ALL)
def test_a_batch_without_any_token(name: str) -> None:
    p = random_pairs(0)
    _, grad = loss_and_gradient(name, p._replace(mask=jnp.zeros_like(p.mask)))
    for field, value in grad._asdict().items():
        np.testing.assert_array_equal(value, 0.0, err_msg=field)


@pytest.mark.parametrize("name", ALL)
def test_an_impossible_token_under_the_policy(name: str) -> None:
    p = random_pairs(0)
    out, grad = loss_and_gradient(name, edit(p, policy_logps=-INF))
    assert float(grad.policy_logps[1, 1, 0]) == 0.0
    if name not in OF_THE_BATCH:  # the other pairs do not notice
        others = np.asarray([0, 2, 3])
        np.testing.assert_array_equal(out.loss[others], compiled(name)(p)[0].loss[others])


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize(
    "fields",
    [
        {"reference_logps": -INF},
        {"policy_logps": -INF, "reference_logps": -INF},
        {"positive_logps": -INF},
        {"negative_logps": -INF},
        {"positive_logps": -INF, "negative_logps": -INF},
        {"token_kl": INF},
    ],
    ids=lambda fields: "+".join(fields),
)
def test_an_impossible_token_under_others(name: str, fields: dict[str, float]) -> None:
    loss_and_gradient(name, edit(random_pairs(0), **fields))


def test_a_token_impossible_under_both_counts_as_equally_likely() -> None:
    p = random_pairs(0)
    both = edit(p, policy_logps=-INF, reference_logps=-INF)
    equal = edit(p, policy_logps=-1.0, reference_logps=-1.0)
    np.testing.assert_array_equal(LOSSES["dpo"](both).loss, LOSSES["dpo"](equal).loss)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("garbage", [math.nan, math.inf, -math.inf])
def test_what_stands_behind_the_mask_is_not_looked_at(name: str, garbage: float) -> None:
    p = random_pairs(1)
    spoilt = Pairs(*(jnp.where(p.mask > 0, x, garbage) for x in p[:-1]), p.mask)
    out, grad = loss_and_gradient(name, spoilt)
    clean, clean_grad = loss_and_gradient(name, p)
    for one, other in zip((*out, *grad), (*clean, *clean_grad), strict=True):
        np.testing.assert_array_equal(one, other)


def test_weights_behind_the_mask_are_not_looked_at() -> None:
    p = random_pairs(1)
    arrays = (p.policy_logps, p.reference_logps)

    def loss(garbage: float) -> PairLoss:
        return losses.tisdpo_loss(*arrays, p.mask, weights=jnp.where(p.mask > 0, 1.5, garbage), token_kl=p.token_kl)

    for garbage in (math.nan, math.inf):
        for one, other in zip(loss(garbage), loss(0.0), strict=True):
            np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("name", ALL)
def test_nan_of_a_model_is_not_hidden(name: str) -> None:
    spoilt = edit(random_pairs(0), policy_logps=math.nan)
    out = compiled(name)(spoilt)[0]
    assert not np.isfinite(out.loss[(1, 1) if isinstance(out, PolicyLoss) else 1])


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_low_precision_in_float32_inside_and_out(name: str, dtype: str) -> None:
    p = random_pairs(2)
    low = Pairs(*(x.astype(dtype) for x in p))
    out, grad = loss_and_gradient(name, low)
    # the same numbers, given in float32: nothing was computed in less (two programs may differ in the last bit)
    exact, _ = compiled(name)(Pairs(*(x.astype("float32") for x in low)))
    for one, other in zip(out, exact, strict=True):
        assert one.dtype == jnp.float32
        np.testing.assert_allclose(one, other, rtol=5e-7)
    assert grad.policy_logps.dtype == jnp.dtype(dtype)


@pytest.mark.parametrize("name", ALL)
def test_the_mask_may_be_boolean(name: str) -> None:
    p = random_pairs(2)
    np.testing.assert_array_equal(ALL[name](p._replace(mask=p.mask > 0)).loss, ALL[name](p).loss)


@pytest.mark.parametrize("name", ALL)
def test_numpy_arrays_are_taken(name: str) -> None:
    p = random_pairs(2)
    host = Pairs(*(np.asarray(x) for x in p))
    np.testing.assert_array_equal(ALL[name](host).loss, ALL[name](p).loss)


def test_sft_edges() -> None:
    p = random_pairs(3)
    total, count = losses.sft_loss(p.policy_logps, jnp.zeros_like(p.mask))
    assert float(total) == float(count) == 0.0
    impossible = edit(p, policy_logps=-INF)
    value, grad = jax.value_and_grad(lambda x: losses.sft_loss(x, p.mask)[0])(impossible.policy_logps)
    assert np.isfinite(value) and np.isfinite(grad).all() and float(grad[1, 1, 0]) == 0.0
    spoilt = jnp.where(p.mask > 0, p.policy_logps, jnp.nan)
    np.testing.assert_array_equal(losses.sft_loss(spoilt, p.mask)[0], losses.sft_loss(p.policy_logps, p.mask)[0])
    total, count = losses.sft_loss(p.policy_logps.astype("bfloat16"), p.mask.astype("bfloat16"))
    assert total.dtype == count.dtype == jnp.float32
