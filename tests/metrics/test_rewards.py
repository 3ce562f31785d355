"""What is said of a reward model: each number against another way to it, and planted faults are seen."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from scipy import optimize, stats
from scipy.special import expit

from tisdpo_jax.metrics import RewardEvaluation, RewardScores, evaluate_rewards

NAMES = {"significantly": 0.95, "negligibly": 0.65}


def scores_of(seed: int = 0, count: int = 400, *, scale: float = 1.0, length: float = 0.0) -> RewardScores:
    """Margins that are right as often as they say, times `scale`; `length` is what 100 tokens add to a reward."""
    random = np.random.default_rng(seed)
    sure = random.normal(0.0, 2.0, count)
    better = random.random(count) < expit(sure)
    tokens = random.integers(5, 90, (count, 2)).astype(np.float64)
    margins = scale * np.where(better, sure, -sure) + length * (tokens[:, 0] - tokens[:, 1]) / 100
    base = random.normal(0.0, 1.0, count)
    names = random.choice(list(NAMES), count)
    return RewardScores(
        np.stack([base + margins / 2, base - margins / 2], 1),
        tokens,
        np.asarray([NAMES[name] for name in names]),
        prompts=[str(number) for number in range(count)],
        strengths=list(names),
    )


def evaluated(scores: RewardScores, **options: Any) -> RewardEvaluation:
    return evaluate_rewards(scores, resamples=200, **options)


def value(found: RewardEvaluation, name: str) -> float:
    return next(one.interval.value for one in found.measures if one.name == name)


def test_numbers_are_those_of_another_way() -> None:
    scores = scores_of()
    margins, extra = np.diff(-scores.rewards)[:, 0], np.diff(-scores.tokens)[:, 0]
    found = evaluated(scores)
    assert value(found, "reward accuracy") == pytest.approx((margins > 0).mean())
    p = scores.target
    soft = -(p * np.log(expit(margins)) + (1 - p) * np.log(expit(-margins))).mean()
    assert value(found, "loss against the labels' strengths") == pytest.approx(soft)
    assert value(found, "loss against hard labels") == pytest.approx(-np.log(expit(margins)).mean())
    best = optimize.minimize_scalar(lambda t: np.logaddexp(0, -margins / t).mean(), bounds=(0.01, 50), method="bounded")
    assert found.temperature.value == pytest.approx(best.x, rel=1e-4)
    fit = optimize.minimize(lambda x: np.logaddexp(0, -(x[0] * margins + x[1] * extra / 100)).mean(), [1.0, 0.0])
    assert found.slope.value == pytest.approx(fit.x[1], abs=1e-3)
    assert found.rising.value == pytest.approx(stats.spearmanr(margins, p)[0])
    longer = np.where(margins > 0, scores.tokens[:, 0], scores.tokens[:, 1])
    assert found.preferred.value == pytest.approx((longer - scores.tokens.mean(1)).mean())
    assert [row[0] for row in found.strengths] == ["significantly", "negligibly"]
    assert found.strengths[0][2].interval.value == pytest.approx(margins[p > 0.9].mean())
    for interval in (found.temperature, found.slope, found.rising, found.preferred):
        assert interval.low < interval.value < interval.high


@pytest.mark.parametrize("scale", [0.01, 0.5, 1.0, 3.0, 1e4])
def test_the_temperature_is_the_scale_of_the_margins(scale: float) -> None:
    found = evaluated(scores_of(scale=scale))
    assert found.temperature.low < scale < found.temperature.high
    assert found.temperature.value / scale == pytest.approx(evaluated(scores_of()).temperature.value, rel=1e-6)


def test_a_reward_that_pays_for_length_is_seen() -> None:
    fair, biased = evaluated(scores_of()), evaluated(scores_of(length=6.0))
    assert fair.slope.low < 0 < fair.slope.high and biased.slope.high < 0
    assert biased.length.correlation.low > 0.4 and biased.preferred.low > 5 > fair.preferred.high
    longer, shorter, _ = biased.length.accuracy
    assert longer.interval.low > shorter.interval.high


def test_what_is_not_defined_is_nan() -> None:
    scores = scores_of(count=40)
    right = dataclasses.replace(scores, rewards=np.abs(scores.rewards) * [[1.0, -1.0]])
    found = evaluated(right)  # separable: no temperature is small enough
    assert np.isnan(found.temperature.value) and np.isnan(found.slope.value)
    assert np.isnan(found.temperature.low) and np.isnan(found.slope.high)
    nearly = right.rewards.copy()
    nearly[0] = nearly[0, ::-1]  # one wrong: resamples without it have a temperature of 0
    one = evaluated(dataclasses.replace(right, rewards=nearly)).temperature
    assert one.low == 0 < one.value < one.high
    wrong = evaluated(dataclasses.replace(right, rewards=-right.rewards))
    assert np.isnan(wrong.temperature.value)
    silent = evaluated(
        dataclasses.replace(scores, rewards=scores.rewards * 0, strengths=(), target=scores.target * 0 + 1)
    )
    assert np.isnan([silent.temperature.value, silent.rising.value]).all() and silent.strengths == ()
    assert value(silent, "reward accuracy") == 0.5 and value(silent, "loss against hard labels") == pytest.approx(
        np.log(2)
    )
    alike = evaluated(dataclasses.replace(scores, tokens=scores.tokens * 0 + 5))
    assert np.isnan(alike.slope.value) and not np.isnan(alike.temperature.value)


def test_pairs_of_one_prompt_are_drawn_together_and_groups_are_apart() -> None:
    scores = scores_of(count=60)
    doubled = RewardScores(
        *(np.concatenate([x, x]) for x in (scores.rewards, scores.tokens, scores.target)),
        prompts=[*scores.prompts, *scores.prompts],
        strengths=[*scores.strengths, *scores.strengths],
        groups=["a"] * 60 + ["b"] * 59 + [None],
    )
    one, two = evaluated(scores), evaluated(doubled)
    np.testing.assert_allclose(one.temperature, two.temperature, rtol=1e-6)
    np.testing.assert_allclose(one.slope, two.slope, rtol=1e-6, atol=1e-9)
    assert [(name, right.count) for name, right, _ in two.groups] == [("a", 60), ("b", 59), ("(none)", 1)]
