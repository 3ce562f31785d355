"""Laws of the measures on pairs: what swapping, permuting, padding and naming pairs does to them; and calibration of
simulated bets: those that are what they say, those that boast, and those that doubt."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest

from tisdpo_jax.metrics import PairScores, evaluate_pairs
from tisdpo_jax.metrics.pairs import NO_GROUP, calibrate


def scores(seed: int, count: int = 80, **fields) -> PairScores:
    random = np.random.default_rng(seed)
    reference = -random.gamma(20.0, 1.0, (count, 2))
    given = {
        "policy": reference + random.normal(0.0, 4.0, (count, 2)),
        "reference": reference,
        "kl": random.exponential(1.0, (count, 2)),
        "tokens": random.integers(1, 40, (count, 2)).astype(float),
        "prompts": [f"p{n // 2}" for n in range(count)],
    }
    return PairScores(**{**given, **fields})


def swapped(found: PairScores) -> PairScores:
    return dataclasses.replace(
        found, **{name: getattr(found, name)[:, ::-1] for name in ("policy", "reference", "kl", "tokens")}
    )


def test_swapping_the_sides_turns_the_numbers_round() -> None:
    found = scores(0)
    one, other = (evaluate_pairs(x, beta=0.1, resamples=200) for x in (found, swapped(found)))
    here, there = ({m.name: m.interval for m in x.measures} for x in (one, other))
    assert here["reward accuracy"].value + there["reward accuracy"].value == pytest.approx(1.0)
    assert here["margin"] == pytest.approx((-there["margin"].value, -there["margin"].high, -there["margin"].low))
    assert here["KL(policy || reference), a token"] == pytest.approx(there["KL(policy || reference), a token"])
    # the difference of lengths turns with the margin
    assert one.length.correlation == pytest.approx(other.length.correlation, abs=1e-9)


def test_the_order_of_pairs_changes_no_value() -> None:
    found = scores(1, groups=["a", "b"] * 40)
    order = np.random.default_rng(0).permutation(80)
    moved = PairScores(
        **{name: getattr(found, name)[order] for name in ("policy", "reference", "kl", "tokens")},
        prompts=[found.prompts[i] for i in order],
        groups=[found.groups[i] for i in order],
    )
    values = [
        [m.interval.value for m in x.measures] + [right.interval.value for _, right, _ in x.groups]
        for x in (evaluate_pairs(y, beta=0.1, resamples=100) for y in (found, moved))
    ]
    assert values[0] == pytest.approx(values[1])


def test_numbers_are_those_by_hand() -> None:
    found = scores(2)
    done = evaluate_pairs(found, beta=0.25, resamples=100)
    by_name = {m.name: m.interval.value for m in done.measures}
    margin = 0.25 * ((found.policy - found.reference)[:, 0] - (found.policy - found.reference)[:, 1])
    assert by_name["margin"] == pytest.approx(margin.mean())
    assert by_name["reward accuracy"] == (margin > 0).mean()
    assert by_name["DPO loss"] == pytest.approx(np.log1p(np.exp(-margin)).mean())
    assert by_name["KL(policy || reference), a token"] == pytest.approx((found.kl / found.tokens).mean())
    assert by_name["KL(policy || reference), a response"] == pytest.approx(found.kl.mean())
    name = "log-likelihood of rejected a token, reference"
    assert by_name[name] == pytest.approx((found.reference / found.tokens)[:, 1].mean())
    assert (done.pairs, done.prompts) == (80, 40)


def test_a_policy_that_is_its_reference_knows_nothing() -> None:
    found = scores(3)
    done = evaluate_pairs(dataclasses.replace(found, policy=found.reference), beta=0.1, resamples=100)
    by_name = {m.name: m.interval for m in done.measures}
    assert by_name["reward accuracy"].value == 0.5 and by_name["margin"] == (0, 0, 0)
    assert by_name["DPO loss"].value == pytest.approx(math.log(2))
    assert math.isnan(done.length.correlation.value)  # nothing varies


def test_a_reward_that_is_length_is_seen() -> None:
    found = scores(4)
    tall = dataclasses.replace(found, policy=found.reference + 0.3 * found.tokens)
    done = evaluate_pairs(tall, beta=0.1, resamples=200)
    assert done.length.correlation.value == pytest.approx(1.0) and done.length.correlation.low > 0.999
    longer, shorter, equal = done.length.accuracy
    assert (longer.interval.value, shorter.interval.value) == (1.0, 0.0)
    assert longer.count + shorter.count + equal.count == 80
    none = evaluate_pairs(found, beta=0.1, resamples=500)
    assert none.length.correlation.low < 0 < none.length.correlation.high
    assert none.length.correlation.value == pytest.approx(
        np.corrcoef(found.margins(0.1), found.tokens[:, 0] - found.tokens[:, 1])[0, 1]
    )


def test_subsets_add_up_and_those_without_one_are_a_group_of_their_own() -> None:
    names = ["maths", "code", None, "maths"] * 20
    found = scores(5, groups=names)
    done = evaluate_pairs(found, beta=0.1, resamples=100)
    assert [name for name, *_ in done.groups] == ["code", "maths", NO_GROUP]
    assert [right.count for _, right, _ in done.groups] == [20, 40, 20]
    total = sum(right.count * right.interval.value for _, right, _ in done.groups) / 80
    assert total == pytest.approx(done.measures[0].interval.value)
    alone = evaluate_pairs(
        PairScores(
            **{name: getattr(found, name)[1::4] for name in ("policy", "reference", "kl", "tokens")},
            prompts=found.prompts[1::4],
        ),
        beta=0.1,
        resamples=100,
    )
    assert done.groups[0][2].interval.value == pytest.approx(alone.measures[1].interval.value)
    assert evaluate_pairs(scores(5), beta=0.1, resamples=100).groups == ()


def bets(seed: int, count: int, factor: float = 1.0) -> np.ndarray:
    """Margins of which a share of exactly sigmoid(|margin|) is positive, then stretched by `factor`."""
    random = np.random.default_rng(seed)
    size = random.exponential(1.5, count)
    right = random.random(count) < 1 / (1 + np.exp(-size))
    return np.where(right, size, -size) * factor


def test_calibrated_margins_have_no_error_beyond_chance() -> None:
    errors = [calibrate(bets(seed, 2000), np.arange(2000), resamples=20) for seed in range(10)]
    found = np.array([one.error.value - one.chance for one in errors])
    assert abs(found.mean()) < 3 * found.std(ddof=1) / math.sqrt(10) + 1e-4
    assert max(one.error.value for one in errors) < 0.05


@pytest.mark.parametrize("factor", [3.0, 0.3])
def test_boasting_and_doubting_are_seen(factor: float) -> None:
    found = calibrate(bets(0, 3000, factor), np.arange(3000), resamples=100)
    assert found.error.low > 2 * found.chance
    sides = [one.accuracy - one.confidence for one in found.bins if one.count > 100]
    assert all(side < 0 for side in sides) if factor > 1 else all(side > 0 for side in sides)


def test_the_brier_score_is_best_for_the_true_margins() -> None:
    honest, boast = (calibrate(bets(1, 5000, factor), np.arange(5000), resamples=20) for factor in (1.0, 3.0))
    assert honest.brier.value < boast.brier.value
    sure, wrong = (calibrate(np.full(9, margin), np.arange(9)).brier.value for margin in (9.0, -9.0))
    assert sure < 1e-6 and wrong > 0.999
    nothing = calibrate(np.zeros(50), np.arange(50))
    assert nothing.brier.value == pytest.approx(0.25) and nothing.error.value == pytest.approx(0.0)


def test_bins_hold_every_pair_once_and_give_the_error_by_hand() -> None:
    margins = np.concatenate([bets(2, 500), [0.0, 50.0, -50.0, 1000.0]])
    found = calibrate(margins, np.arange(504), resamples=20)
    assert sum(one.count for one in found.bins) == 504
    by_hand = sum(one.count * abs(one.accuracy - one.confidence) for one in found.bins if one.count) / 504
    assert found.error.value == pytest.approx(by_hand)
    assert [one.low for one in found.bins] == pytest.approx(np.linspace(0.5, 0.95, 10))


def test_no_pairs_are_undefined() -> None:
    empty = calibrate([], [])
    assert math.isnan(empty.error.value) and math.isnan(empty.chance) and all(one.count == 0 for one in empty.bins)
