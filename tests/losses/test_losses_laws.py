"""The identities of the losses, on random pairs."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from loss_cases import ALL, CLIPS, GROUP_LOSSES, LOSSES, OF_THE_BATCH, TAKES_KL

from tisdpo_jax import losses, weights
from tisdpo_jax.losses import PairLoss
from tisdpo_jax.testing import Pairs, random_pairs

SEEDS = st.integers(0, 2**31 - 1)
few = settings(max_examples=20)
LOG_2 = np.float32(math.log(2.0))


def ones(p: Pairs) -> jax.Array:
    return jnp.ones_like(p.mask)


def same_bits(one: PairLoss, other: PairLoss) -> None:
    for field, a, b in zip(PairLoss._fields, one, other, strict=True):
        np.testing.assert_array_equal(a, b, err_msg=field)


def swapped(p: Pairs) -> Pairs:
    """Chosen and rejected change places."""
    return Pairs(*(x[..., ::-1, :] for x in p))


@few
@given(SEEDS, st.floats(-100.0, 100.0, width=32))
def test_policy_equal_to_reference_gives_log_2_whatever_the_weights(seed: int, size: float) -> None:
    p = random_pairs(seed)
    w = size * jax.random.normal(jax.random.key(seed), p.mask.shape)
    out = losses.tisdpo_loss(p.reference_logps, p.reference_logps, p.mask, weights=w, token_kl=jnp.zeros_like(p.mask))
    np.testing.assert_array_equal(out.loss, LOG_2)
    np.testing.assert_array_equal(out.chosen_reward, 0.0)
    np.testing.assert_array_equal(out.rejected_reward, 0.0)


@pytest.mark.parametrize("name", ["dpo", "dpo smoothed", "tdpo 1", "tdpo 2", "tisdpo", "tisdpo with KL"])
def test_policy_equal_to_reference_gives_log_2(name: str) -> None:
    p = random_pairs(0)
    p = p._replace(policy_logps=p.reference_logps, token_kl=jnp.zeros_like(p.mask))
    # (1 - e) log 2 + e log 2 may round once
    np.testing.assert_allclose(LOSSES[name](p).loss, LOG_2, rtol=1e-7)


@few
@given(SEEDS, st.sampled_from([0.0, 0.1]))
def test_unit_weights_without_kl_are_dpo_to_the_last_bit(seed: int, smoothing: float) -> None:
    p = random_pairs(seed)
    arrays, options = (p.policy_logps, p.reference_logps), {"beta": 0.1, "label_smoothing": smoothing}
    for w in (ones(p), weights.uniform(p.positive_logps, p.negative_logps, p.mask)):
        same_bits(
            losses.tisdpo_loss(*arrays, p.mask, weights=w, **options), losses.dpo_loss(*arrays, p.mask, **options)
        )


def test_unit_weights_without_kl_are_dpo_to_the_last_bit_compiled() -> None:
    tis = jax.jit(lambda p, w: losses.tisdpo_loss(p.policy_logps, p.reference_logps, p.mask, weights=w))
    dpo = jax.jit(lambda p: losses.dpo_loss(p.policy_logps, p.reference_logps, p.mask))
    tis_grad = jax.jit(jax.grad(lambda p, w: tis(p, w).loss.sum()))
    dpo_grad = jax.jit(jax.grad(lambda p: dpo(p).loss.sum()))
    for seed in range(20):
        p = random_pairs(seed, (4, 2, 37))
        same_bits(tis(p, ones(p)), dpo(p))
        np.testing.assert_array_equal(tis_grad(p, ones(p)).policy_logps, dpo_grad(p).policy_logps)


@few
@given(SEEDS, st.floats(0.1, 10.0))
def test_scaling_k_is_scaling_beta(seed: int, c: float) -> None:
    p = random_pairs(seed)

    def out(scale: float, beta: float) -> PairLoss:
        w = weights.importance_weights(p.positive_logps, p.negative_logps, p.mask, scale=scale)
        return losses.tisdpo_loss(p.policy_logps, p.reference_logps, p.mask, weights=w, beta=beta, token_kl=p.token_kl)

    for one, other in zip(out(c, 0.1), out(1.0, c * 0.1), strict=True):
        np.testing.assert_allclose(one, other, rtol=2e-5, atol=1e-6)


@few
@given(SEEDS)
def test_swapping_sides_and_weights_of_tisdpo_turns_the_sign_of_its_logit(seed: int) -> None:
    p = random_pairs(seed)
    w = weights.importance_weights(p.positive_logps, p.negative_logps, p.mask)

    def out(p: Pairs, w: jax.Array, share: float) -> PairLoss:
        return losses.tisdpo_loss(
            p.policy_logps, p.reference_logps, p.mask, weights=w, token_kl=p.token_kl, label_smoothing=share
        )

    there, back = out(p, w, 0.0), out(swapped(p), w[:, ::-1], 0.0)
    np.testing.assert_array_equal(there.chosen_reward, back.rejected_reward)
    # half of the labels flipped: the mean of loss(z) and loss(-z)
    np.testing.assert_allclose(out(p, w, 0.5).loss, (there.loss + back.loss) / 2, rtol=1e-6)
    z = back.loss - there.loss  # as -log sigmoid(-z) + log sigmoid(z) = z
    np.testing.assert_allclose(out(p, w, 0.0).loss, jnp.log1p(jnp.exp(-z)), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["dpo", "tdpo 1", "tdpo 2", "dlma"])
def test_swapping_sides_turns_the_sign_of_the_logit(name: str) -> None:
    p = random_pairs(1)
    there, back = LOSSES[name](p), LOSSES[name](swapped(p))
    np.testing.assert_allclose(jnp.exp(-there.loss) + jnp.exp(-back.loss), 1.0, rtol=1e-6)  # sigmoid(z) + sigmoid(-z)
    np.testing.assert_array_equal(there.chosen_reward, back.rejected_reward)


@few
@given(SEEDS, st.floats(0.0, 0.5))
def test_label_smoothing_mixes_the_two_labels(seed: int, share: float) -> None:
    p = random_pairs(seed)

    def out(p: Pairs, share: float) -> jax.Array:
        return losses.dpo_loss(p.policy_logps, p.reference_logps, p.mask, label_smoothing=share).loss

    mixed = (1 - share) * out(p, 0.0) + share * out(swapped(p), 0.0)
    np.testing.assert_allclose(out(p, share), mixed, rtol=1e-6)


@pytest.mark.parametrize("name", ALL)
def test_gradient_reaches_the_policy_and_nothing_that_is_a_constant(name: str) -> None:
    p = random_pairs(2)
    grad = jax.grad(lambda p: ALL[name](p).loss.sum())(p)
    real = p.mask > 0
    reached = np.asarray(grad.policy_logps)[real] != 0
    assert reached.any() if name in CLIPS else reached.all()
    assert (np.asarray(grad.policy_logps)[~real] == 0).all()
    for field in ("reference_logps", "positive_logps", "negative_logps", "mask"):
        np.testing.assert_array_equal(getattr(grad, field), 0.0, err_msg=field)
    assert bool((grad.token_kl != 0).any()) == (name in TAKES_KL)


@pytest.mark.parametrize("name", ALL)
def test_nothing_but_the_loss_carries_a_gradient(name: str) -> None:
    p = random_pairs(2)
    grad = jax.grad(lambda p: sum(x.sum() for x in ALL[name](p)[1:]))(p)
    for field, value in grad._asdict().items():
        np.testing.assert_array_equal(value, 0.0, err_msg=field)


def test_weights_given_as_an_argument_get_no_gradient() -> None:
    p = random_pairs(3)
    grad = jax.grad(
        lambda w: losses.tisdpo_loss(
            p.policy_logps, p.reference_logps, p.mask, weights=w, token_kl=p.token_kl
        ).loss.sum()
    )(ones(p))
    np.testing.assert_array_equal(grad, 0.0)


@pytest.mark.parametrize("name", ALL)
def test_padding_of_responses_changes_nothing(name: str) -> None:
    p = random_pairs(4)
    longer = Pairs(*(jnp.pad(x, ((0, 0), (0, 0), (0, 5)), constant_values=-3.0) for x in p))
    longer = longer._replace(mask=jnp.maximum(longer.mask, 0.0))
    for one, other in zip(ALL[name](p), ALL[name](longer), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", ALL)
def test_filler_pairs_change_nothing_for_the_others(name: str) -> None:
    p, filler = random_pairs(5), random_pairs(6)
    filler = filler._replace(mask=jnp.zeros_like(filler.mask))
    both = Pairs(*(jnp.concatenate(pair) for pair in zip(p, filler, strict=True)))
    for one, other in zip(ALL[name](p), ALL[name](both), strict=True):
        np.testing.assert_allclose(one, other[:4], rtol=1e-6)


@pytest.mark.parametrize("name", ALL)
def test_permuting_pairs_permutes_the_results(name: str) -> None:
    p, order = random_pairs(7), jnp.asarray([2, 0, 3, 1])
    for one, other in zip(ALL[name](p), ALL[name](Pairs(*(x[order] for x in p))), strict=True):
        if name in OF_THE_BATCH:  # a mean over pairs, taken in another order
            np.testing.assert_allclose(one[order], other, rtol=1e-6)
        else:
            np.testing.assert_array_equal(one[order], other)


@pytest.mark.parametrize("name", sorted(set(ALL) - OF_THE_BATCH))
def test_any_axes_may_stand_before_the_sides(name: str) -> None:
    p = random_pairs(8, (3, 4, 2, 7))
    loss = jax.jit(lambda p: ALL[name](p).loss)
    whole = loss(p)
    assert whole.shape == ((3, 4, 2) if name in GROUP_LOSSES else (3, 4))
    np.testing.assert_allclose(whole[1, 2], loss(Pairs(*(x[1, 2] for x in p))), rtol=1e-6)


# One loss each.


def test_ipo_average_divides_by_the_tokens_of_each_response() -> None:
    p = random_pairs(9)
    counts = p.mask.sum(-1, keepdims=True)
    averaged = losses.ipo_loss(p.policy_logps, p.reference_logps, p.mask, average=True)
    by_hand = losses.ipo_loss(p.policy_logps / counts, p.reference_logps / counts, p.mask)
    for one, other in zip(averaged, by_hand, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-7)


def test_ipo_is_zero_at_its_target() -> None:
    policy = jnp.asarray([[[-1.0, -1.0], [-4.0, -3.0]]])
    reference = jnp.asarray([[[-3.0, -2.0], [-3.0, -2.0]]])
    out = losses.ipo_loss(policy, reference, jnp.ones((1, 2, 2)), beta=0.1)  # h = 3 - (-2) = 1 / (2 beta)
    np.testing.assert_allclose(out.loss, 0.0, atol=1e-10)
    np.testing.assert_allclose([out.chosen_reward, out.rejected_reward], [[0.3], [-0.2]], rtol=1e-6)


def test_tdpo_1_is_tisdpo_with_unit_weights_and_the_opposite_sign_of_the_kl() -> None:
    p = random_pairs(10)
    arrays = (p.policy_logps, p.reference_logps)
    tdpo = losses.tdpo_loss(*arrays, p.mask, token_kl=p.token_kl, variant=1).loss
    tis = losses.tisdpo_loss(*arrays, p.mask, weights=ones(p), token_kl=-p.token_kl).loss
    np.testing.assert_allclose(tdpo, tis, rtol=1e-6)


def test_tdpo_2_stops_the_gradient_of_the_chosen_kl_only() -> None:
    p = random_pairs(11)

    def loss(kl: jax.Array, variant: int) -> jax.Array:
        return losses.tdpo_loss(
            p.policy_logps,
            p.reference_logps,
            p.mask,
            token_kl=kl,
            alpha=1.0,
            variant=variant,  # type: ignore[arg-type]  # 1 or 2
        ).loss.sum()

    first, second = (jax.value_and_grad(loss)(p.token_kl, variant) for variant in (1, 2))
    np.testing.assert_allclose(first[0], second[0], rtol=1e-6)
    np.testing.assert_array_equal(second[1][:, 0], 0.0)
    np.testing.assert_allclose(second[1][:, 1], first[1][:, 1], rtol=1e-6)
    assert (np.asarray(first[1][:, 0])[np.asarray(p.mask[:, 0]) > 0] != 0).all()


def test_tdpo_rewards_hold_the_kl() -> None:
    p = random_pairs(11)
    dpo = losses.dpo_loss(p.policy_logps, p.reference_logps, p.mask)
    tdpo = losses.tdpo_loss(p.policy_logps, p.reference_logps, p.mask, token_kl=p.token_kl)
    totals = 0.1 * (p.token_kl * p.mask).sum(-1)
    np.testing.assert_allclose(tdpo.chosen_reward, dpo.chosen_reward + totals[:, 0], rtol=1e-5)
    np.testing.assert_allclose(tdpo.rejected_reward, dpo.rejected_reward + totals[:, 1], rtol=1e-5)


def test_tdpo_without_its_kl_is_dpo_and_a_third_variant_raises() -> None:
    p = random_pairs(12)
    dpo = losses.dpo_loss(p.policy_logps, p.reference_logps, p.mask)
    tdpo = losses.tdpo_loss(p.policy_logps, p.reference_logps, p.mask, token_kl=p.token_kl, alpha=0.0)
    np.testing.assert_array_equal(tdpo.loss, dpo.loss)
    with pytest.raises(ValueError, match="variant is 3; it must be 1 or 2"):
        losses.tdpo_loss(*p[:2], p.mask, token_kl=p.token_kl, variant=3)  # type: ignore[arg-type]  # what is tested


def test_dlma_clamps_the_self_reward_and_only_that() -> None:
    p = random_pairs(13)
    dpo = losses.dpo_loss(p.policy_logps, p.reference_logps, p.mask)

    def loss(reward: float) -> np.ndarray:
        reward_of_pairs = jnp.full(4, reward)
        return np.asarray(losses.dlma_loss(p.policy_logps, p.reference_logps, p.mask, self_reward=reward_of_pairs).loss)

    np.testing.assert_array_equal(loss(0.0), dpo.loss)
    np.testing.assert_array_equal(loss(41.0), loss(40.0))
    np.testing.assert_array_equal(loss(-1e6), loss(-40.0))
    # beta1 = 0.1 * 0.2: the logit z falls by 0.02 R, and expm1(loss) = e^-z
    np.testing.assert_allclose(np.expm1(loss(10.0)), np.expm1(dpo.loss) * np.exp(0.2), rtol=1e-5)


@few
@given(SEEDS, st.floats(0.0, 2.0), st.floats(0.0, 0.5))
def test_dlma_without_a_margin_is_tisdpo_to_the_last_bit(seed: int, kl_coef: float, smoothing: float) -> None:
    p = random_pairs(seed)
    w = weights.importance_weights(p.positive_logps, p.negative_logps, p.mask)
    margin = jnp.linspace(-90.0, 90.0, len(p.mask))
    both = {"token_kl": p.token_kl, "kl_coef": kl_coef, "label_smoothing": smoothing}

    def dlma(logps: jax.Array) -> jax.Array:
        out = losses.dlma_loss(logps, p.reference_logps, p.mask, self_reward=margin, margin_coef=0.0, weights=w, **both)
        return out.loss.sum()

    def tisdpo(logps: jax.Array) -> jax.Array:
        return losses.tisdpo_loss(logps, p.reference_logps, p.mask, weights=w, **both).loss.sum()

    for one, other in zip(
        jax.value_and_grad(dlma)(p.policy_logps), jax.value_and_grad(tisdpo)(p.policy_logps), strict=True
    ):
        np.testing.assert_array_equal(one, other)


@few
@given(SEEDS)
def test_dlma_with_weights_of_one_and_no_kl_is_dlma_to_the_last_bit(seed: int) -> None:
    p = random_pairs(seed)
    margin = jnp.linspace(-90.0, 90.0, len(p.mask))
    ones = {"weights": jnp.ones_like(p.mask), "token_kl": p.token_kl, "kl_coef": 0.0}
    out = [
        losses.dlma_loss(p.policy_logps, p.reference_logps, p.mask, self_reward=margin, **options)
        for options in ({}, ones, {"weights": jnp.ones_like(p.mask)})
    ]
    for field in range(3):
        np.testing.assert_array_equal(out[0][field], out[1][field])
        np.testing.assert_array_equal(out[0][field], out[2][field])


def test_dlma_takes_no_gradient_to_its_self_reward() -> None:
    p = random_pairs(13)
    grad = jax.grad(lambda r: losses.dlma_loss(p.policy_logps, p.reference_logps, p.mask, self_reward=r).loss.sum())
    np.testing.assert_array_equal(grad(jnp.ones(4)), 0.0)


def test_kto_is_half_a_sum_of_two_halves() -> None:
    p = random_pairs(14)
    arrays = (p.policy_logps, p.reference_logps, p.mask)
    chosen = losses.kto_loss(*arrays, kl=jnp.float32(0.5), undesirable_weight=0.0)
    rejected = losses.kto_loss(*arrays, kl=jnp.float32(0.5), desirable_weight=0.0)
    both = losses.kto_loss(*arrays, kl=jnp.float32(0.5))
    np.testing.assert_allclose(chosen.loss + rejected.loss, both.loss, rtol=1e-6)
    # at h = z each half is (1 - 1/2) / 2
    even = losses.kto_loss(*arrays[:1], p.policy_logps, p.mask, kl=jnp.float32(0.0))
    np.testing.assert_array_equal(even.loss, 0.5)


def test_kto_estimates_its_reference_point_from_the_other_side_and_not_below_zero() -> None:
    p = random_pairs(15)
    p = p._replace(policy_logps=p.policy_logps + jnp.asarray([[0.3], [-0.1]]))
    arrays = (p.policy_logps, p.reference_logps, p.mask)
    totals = ((p.policy_logps - p.reference_logps) * p.mask).sum(-1).mean(0)
    assert float(totals.max()) > 0 > float(totals.min()), "a seed that shows both the swap and the floor"
    explicit = losses.kto_loss(*arrays, kl=jnp.maximum(totals[::-1], 0.0))
    np.testing.assert_allclose(losses.kto_loss(*arrays).loss, explicit.loss, rtol=1e-6)
    assert not np.allclose(explicit.loss, losses.kto_loss(*arrays, kl=jnp.maximum(totals, 0.0)).loss)


def test_kto_takes_no_gradient_to_its_reference_point() -> None:
    p = random_pairs(15)
    grad = jax.grad(lambda z: losses.kto_loss(p.policy_logps, p.reference_logps, p.mask, kl=z).loss.sum())
    np.testing.assert_array_equal(grad(jnp.asarray([0.4, 0.7])), 0.0)


def test_sft_parts_add_over_gradient_accumulation_steps() -> None:
    p = random_pairs(16, (6, 2, 7))
    total, count = losses.sft_loss(p.policy_logps, p.mask)
    parts = [losses.sft_loss(p.policy_logps[i : i + 2], p.mask[i : i + 2]) for i in (0, 2, 4)]
    np.testing.assert_allclose(sum(part[0] for part in parts), total, rtol=1e-6)
    assert sum(part[1] for part in parts) == count == p.mask.sum()
    means = [part[0] / part[1] for part in parts]
    assert not np.isclose(sum(means) / 3, total / count, rtol=1e-3), "a mean of means is something else"


def test_sft_gradient_is_minus_the_mask() -> None:
    p = random_pairs(17)
    np.testing.assert_array_equal(jax.grad(lambda x: losses.sft_loss(x, p.mask)[0])(p.policy_logps), -p.mask)
