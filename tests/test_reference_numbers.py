"""Losses, weights, advantages and scores against their formulas in float64 numpy, written again, pair by pair."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import pytest

from tisdpo_jax import advantages, losses, scoring, weights

B, N, V, BETA = 3, 6, 9, 0.3
RANDOM = np.random.default_rng(20)
LENGTHS = np.asarray([[6, 3], [1, 5], [4, 4]])
MASK = np.arange(N) < LENGTHS[..., None]
POLICY = -RANDOM.exponential(1.5, (B, 2, N))
REFERENCE, POSITIVE, NEGATIVE = (POLICY + RANDOM.normal(0, s, POLICY.shape) for s in (0.5, 1.0, 1.0))
KL = RANDOM.exponential(0.2, POLICY.shape)
R = np.asarray([3.0, -60.0, 55.0])  # the last two are clamped
LOGITS, OTHER = RANDOM.normal(0, 2, (2, B, 2, N, V))
TARGETS = RANDOM.integers(0, V, POLICY.shape)


def sigmoid(z: float) -> float:
    return 1 / (1 + math.exp(-z))


def total(x: np.ndarray, b: int, side: int) -> float:
    """Sum over the real tokens of one response."""
    return float(sum(x[b, side, t] for t in range(LENGTHS[b, side])))


def of_pairs(formula: Callable[..., tuple[float, float, float]]) -> np.ndarray:
    """`formula(h_c, h_r, pair)` -> loss and both rewards of every pair."""
    h = POLICY - REFERENCE
    return np.asarray([formula(total(h, b, 0), total(h, b, 1), b) for b in range(B)]).T


def token_weights() -> np.ndarray:
    clamped = np.clip(POSITIVE - NEGATIVE, -0.5, 1.5)
    return np.stack([np.exp(clamped[:, 0]), np.exp(-clamped[:, 1])], 1)


def dpo(smoothing: float) -> np.ndarray:
    def of(c: float, r: float, b: int) -> tuple[float, float, float]:
        p = sigmoid(BETA * (c - r))
        return -(1 - smoothing) * math.log(p) - smoothing * math.log(1 - p), BETA * c, BETA * r

    return of_pairs(of)


def ipo(average: bool) -> np.ndarray:
    def of(c: float, r: float, b: int) -> tuple[float, float, float]:
        c, r = (c / LENGTHS[b, 0], r / LENGTHS[b, 1]) if average else (c, r)
        return (c - r - 1 / (2 * BETA)) ** 2, BETA * c, BETA * r

    return of_pairs(of)


def tdpo(variant: int) -> np.ndarray:
    def of(c: float, r: float, b: int) -> tuple[float, float, float]:
        kl_c, kl_r = total(KL, b, 0), total(KL, b, 1)
        alpha = 1.0 if variant == 1 else 0.7
        loss = -math.log(sigmoid(BETA * (c - r - alpha * (kl_r - kl_c))))
        return loss, BETA * (c + kl_c), BETA * (r + kl_r)

    return of_pairs(of)


def kto(z: tuple[float, float] | None) -> np.ndarray:
    h = POLICY - REFERENCE
    if z is None:
        mean_c, mean_r = (sum(total(h, b, side) for b in range(B)) / B for side in (0, 1))
        z = max(mean_r, 0.0), max(mean_c, 0.0)

    def of(c: float, r: float, b: int) -> tuple[float, float, float]:
        loss = 1.2 * (1 - sigmoid(BETA * (c - z[0]))) + 0.7 * (1 - sigmoid(BETA * (z[1] - r)))
        return loss / 2, BETA * c, BETA * r

    return of_pairs(of)


def weighted(kl_coef: float, margin_coef: float) -> np.ndarray:
    w, h = token_weights(), POLICY - REFERENCE

    def of(_c: float, _r: float, b: int) -> tuple[float, float, float]:
        c, r = total(w * h, b, 0), total(w * h, b, 1)
        eta = total(w * KL, b, 0) - total(w * KL, b, 1)
        margin = min(max(R[b], -40.0), 40.0)
        return -math.log(sigmoid(BETA * (c - r - kl_coef * eta - margin_coef * margin))), BETA * c, BETA * r

    return of_pairs(of)


def dlma() -> np.ndarray:
    def of(c: float, r: float, b: int) -> tuple[float, float, float]:
        return -math.log(sigmoid(BETA * (c - r) - BETA * 0.2 * min(max(R[b], -40.0), 40.0))), BETA * c, BETA * r

    return of_pairs(of)


def each_response(formula: Callable[[np.ndarray], np.ndarray], values: np.ndarray) -> np.ndarray:
    """`formula` on the real tokens of each response, 0 behind them."""
    out = np.zeros((B, 2, N))
    for b in range(B):
        for side in range(2):
            out[b, side, : LENGTHS[b, side]] = formula(values[b, side, : LENGTHS[b, side]])
    return out


def ranks(d: np.ndarray) -> np.ndarray:
    return np.asarray([(d < x).sum() for x in d]) / max(len(d) - 1, 1)


def stored() -> np.ndarray:
    """d of the public code: two decimals, the sign of the rejected side turned."""
    return np.round(POSITIVE - NEGATIVE, 2) * np.asarray([1, -1])[:, None]


def signed_exponential(ratios: np.ndarray) -> np.ndarray:
    return np.where(MASK, np.exp(ratios * np.asarray([1, -1])[:, None]), 0.0)


def log_softmax(z: np.ndarray) -> np.ndarray:
    return z - np.log(np.exp(z).sum(-1, keepdims=True))


def kl(z: np.ndarray, other: np.ndarray) -> np.ndarray:
    p, q = log_softmax(z), log_softmax(other)
    return (np.exp(p) * (p - q)).sum(-1)


def masked(x: np.ndarray) -> np.ndarray:
    return np.where(MASK, x, 0.0)


# groups: the sides are two responses, the reference is who sampled, R2 their rewards
R2 = np.asarray([[1.5, -0.5], [0.25, 0.75], [-2.0, np.nan]])
A2 = np.asarray([[2.0, -1.5], [-0.5, 0.5], [0.8, 0.0]])


def of_responses(formula: Callable[[np.ndarray, float, np.ndarray], tuple[float, ...]]) -> np.ndarray:
    """`formula(m, A, KL)` of the real tokens of each response -> loss, ratio, kl and clipped, `[4, B, 2]`."""
    m = POLICY - REFERENCE
    out = np.zeros((4, B, 2))
    for b in range(B):
        for k in range(2):
            n = LENGTHS[b, k]
            out[:, b, k] = formula(m[b, k, :n], A2[b, k], KL[b, k, :n])
    return out


def divergence(log_rho: float) -> float:
    return math.exp(log_rho) * log_rho - math.exp(log_rho) + 1


def mdloo(by_token: bool, exact: bool, cap: float = 20.0) -> np.ndarray:
    def of(m: np.ndarray, a: float, kl: np.ndarray) -> tuple[float, ...]:
        steps = [min(max(x, -cap), cap) for x in (m if by_token else [m.sum()])]
        divergences = kl.sum() if exact else sum(map(divergence, steps))
        rho = [math.exp(x) for x in steps]
        beyond = [abs(x) > cap for x in (m if by_token else [m.sum()])]
        return 0.7 * divergences - a * sum(rho), sum(rho) / len(rho), divergences, sum(beyond) / len(beyond)

    return of_responses(of)


def clipped(level: str, low: float, high: float, dual: float = math.inf) -> np.ndarray:
    def of(m: np.ndarray, a: float, _kl: np.ndarray) -> tuple[float, ...]:
        steps = {"token": list(m), "sequence": [m.sum()], "mean": [m.mean()]}[level]
        loss, gone = 0.0, 0
        for x in steps:
            rho = math.exp(x)
            if a > 0:
                bounded = min(rho, 1 + high)
            elif a < 0:
                bounded = min(max(rho, 1 - low), dual)
            else:
                bounded = rho
            loss, gone = loss - a * bounded, gone + (bounded != rho)
        divergences = sum(map(divergence, [m.sum()] if level == "sequence" else m))
        return loss, sum(map(math.exp, steps)) / len(steps), divergences, gone / len(steps)

    return of_responses(of)


def soft_labels(p: np.ndarray, margin: float, center: float) -> np.ndarray:
    def of(c: float, r: float, b: int) -> tuple[float, float, float]:
        s = sigmoid(c - r - margin)
        return -p[b] * math.log(s) - (1 - p[b]) * math.log(1 - s) + center * (c + r) ** 2, c, r

    return np.asarray([of(*RB[b], b) for b in range(B)]).T


RB = np.asarray([[1.5, -0.5], [0.25, 0.75], [-2.0, 0.5]])
P = np.asarray([0.95, 1.0, 0.65])
GRADES = np.asarray([[[0, 2], [1, -1]], [[-1, -1], [2, 2]], [[1, 0], [0, 1]]])
GRADE_LOGITS = RANDOM.normal(0, 1, (B, 2, 2, 3))


def graded() -> np.ndarray:
    log_p, out = log_softmax(GRADE_LOGITS), np.zeros(B)
    for b, k, g in np.ndindex(GRADES.shape):
        if GRADES[b, k, g] >= 0:
            out[b] -= log_p[b, k, g, GRADES[b, k, g]]
    return out


R4 = np.asarray([[1.0, 2.0, 4.0, np.nan], [0.5, 0.5, 0.5, 0.5], [np.nan, np.nan, 3.0, np.nan], [-1.0, 0.0, 2.0, 5.0]])


def by_group(formula: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """`formula` on the rewards of each group that there are, where there are two; 0 elsewhere."""
    out = np.zeros(R4.shape)
    for row, to in zip(R4, out, strict=True):
        if (~np.isnan(row)).sum() > 1:
            to[~np.isnan(row)] = formula(row[~np.isnan(row)])
    return out


def of_the_others(r: np.ndarray) -> np.ndarray:
    return np.asarray([x - np.delete(r, i).mean() for i, x in enumerate(r)])


def of_the_batch() -> np.ndarray:
    centred = by_group(lambda r: r - r.mean())
    kept = [x for row, rewards in zip(centred, R4, strict=True) if (~np.isnan(rewards)).sum() > 1 for x in row]
    return centred / (np.std([*kept[:3], *kept[4:]], ddof=1) + 1e-6)  # the fourth has no reward


def gamma(step_kl: float) -> float:
    groups = [row[~np.isnan(row)] for row in R4]
    squares = sum(((r - r.mean()) ** 2).sum() for r in groups if len(r) > 1)
    return math.sqrt(squares / sum(len(r) - 1 for r in groups if len(r) > 1) / (2 * step_kl))


def to_go() -> np.ndarray:
    r = masked(KL)
    return masked(np.asarray([[[r[b, k, t:].sum() for t in range(N)] for k in (0, 1)] for b in range(B)]))


def prefixes() -> np.ndarray:
    """What each response has before each place, less what the other has."""
    c = masked(POSITIVE - NEGATIVE)
    p = np.asarray([[[c[b, k, :t].sum() for t in range(N)] for k in (0, 1)] for b in range(B)])
    return masked(p - p[:, ::-1])


def fitted() -> np.ndarray:
    x, coefs = prefixes(), []
    for b in range(B):
        others = [i for i in range(B) if i != b]
        y = np.broadcast_to(A2[others][..., None], x[others].shape) * MASK[others]
        coefs.append(np.linalg.lstsq(x[others].reshape(-1, 1), y.reshape(-1), rcond=None)[0][0])
    return np.asarray(coefs)


F32 = {
    "policy": POLICY,
    "reference": REFERENCE,
    "positive": POSITIVE,
    "negative": NEGATIVE,
    "kl": KL,
    "weights": token_weights(),
    "reward": R,
    "logits": LOGITS,
    "other": OTHER,
}
A: Any = {name: x.astype(np.float32) for name, x in F32.items()}
A2_, R2_, R4_, RB_, P_ = (x.astype(np.float32) for x in (A2, R2, R4, RB, P))
PAIR = A["policy"], A["reference"], MASK
SIGNS = A["positive"], A["negative"], MASK
IMPORTANCE = token_weights() * MASK
W: Any = {"weights": A["weights"], "token_kl": A["kl"], "beta": BETA}

CASES: dict[str, tuple[Callable[[], Any], np.ndarray]] = {
    "dpo": (lambda: losses.dpo_loss(*PAIR, beta=BETA), dpo(0.0)),
    "dpo smoothed": (lambda: losses.dpo_loss(*PAIR, beta=BETA, label_smoothing=0.2), dpo(0.2)),
    "ipo": (lambda: losses.ipo_loss(*PAIR, beta=BETA), ipo(False)),
    "ipo averaged": (lambda: losses.ipo_loss(*PAIR, beta=BETA, average=True), ipo(True)),
    "tdpo 1": (lambda: losses.tdpo_loss(*PAIR, token_kl=A["kl"], beta=BETA, variant=1), tdpo(1)),
    "tdpo 2": (lambda: losses.tdpo_loss(*PAIR, token_kl=A["kl"], beta=BETA, alpha=0.7), tdpo(2)),
    "kto": (
        lambda: losses.kto_loss(
            *PAIR, beta=BETA, kl=np.float32([0.4, 0.7]), desirable_weight=1.2, undesirable_weight=0.7
        ),
        kto((0.4, 0.7)),
    ),
    "kto of the batch": (
        lambda: losses.kto_loss(*PAIR, beta=BETA, desirable_weight=1.2, undesirable_weight=0.7),
        kto(None),
    ),
    "tisdpo": (lambda: losses.tisdpo_loss(*PAIR, weights=A["weights"], beta=BETA), weighted(0.0, 0.0)),
    "tisdpo with KL": (lambda: losses.tisdpo_loss(*PAIR, **W, kl_coef=0.5), weighted(0.5, 0.0)),
    "dlma": (lambda: losses.dlma_loss(*PAIR, self_reward=A["reward"], beta=BETA), dlma()),
    "dlma with weights": (lambda: losses.dlma_loss(*PAIR, self_reward=A["reward"], **W), weighted(1.0, 0.2)),
    "sft": (lambda: losses.sft_loss(A["policy"], MASK), np.asarray([-masked(POLICY).sum(), MASK.sum()])),
    "mdloo": (lambda: losses.mdloo_loss(*PAIR, advantages=A2_, gamma=0.7), mdloo(False, False)),
    "mdloo, exact KL": (
        lambda: losses.mdloo_loss(*PAIR, advantages=A2_, gamma=0.7, token_kl=A["kl"]),
        mdloo(False, True),
    ),
    "mdloo by token": (
        lambda: losses.mdloo_loss(*PAIR, advantages=A2_, gamma=0.7, level="token"),
        mdloo(True, False),
    ),
    "mdloo by token, exact KL, capped": (
        lambda: losses.mdloo_loss(*PAIR, advantages=A2_, gamma=0.7, level="token", token_kl=A["kl"], cap=0.4),
        mdloo(True, True, 0.4),
    ),
    "mdloo, capped": (
        lambda: losses.mdloo_loss(*PAIR, advantages=A2_, gamma=0.7, cap=0.4),
        mdloo(False, False, 0.4),
    ),
    "ppo": (lambda: losses.clipped_loss(*PAIR, advantages=A2_), clipped("token", 0.2, 0.2)),
    "dapo, dual": (
        lambda: losses.clipped_loss(*PAIR, advantages=A2_, high=0.28, dual=1.5),
        clipped("token", 0.2, 0.28, 1.5),
    ),
    "rloo": (lambda: losses.clipped_loss(*PAIR, advantages=A2_, level="sequence"), clipped("sequence", 0.2, 0.2)),
    "gspo": (
        lambda: losses.clipped_loss(*PAIR, advantages=A2_, level="mean", low=0.1, high=0.05),
        clipped("mean", 0.1, 0.05),
    ),
    "reinforce": (
        lambda: losses.reinforce_loss(A["policy"], MASK, advantages=A2_),
        np.stack([-A2 * masked(POLICY).sum(-1), np.ones((B, 2)), np.zeros((B, 2)), np.zeros((B, 2))]),
    ),
    "reference KL": (
        lambda: losses.reference_kl(*PAIR),
        masked(np.exp(REFERENCE - POLICY) - (REFERENCE - POLICY) - 1).sum(-1),
    ),
    "sampler, truncated": (
        lambda: losses.sampler_weights(*PAIR, cap=1.3, floor=0.5),
        masked(np.clip(np.exp(POLICY - REFERENCE), 0.5, 1.3)),
    ),
    "sampler, masked": (
        lambda: losses.sampler_weights(*PAIR, mode="mask", level="sequence", cap=2.5, floor=0.3),
        MASK
        * np.asarray(
            [[[x if 0.3 <= x <= 2.5 else 0.0] for x in row] for row in np.exp(masked(POLICY - REFERENCE).sum(-1))]
        ),
    ),
    "reward": (lambda: losses.reward_loss(RB_), soft_labels(np.ones(B), 0.0, 0.0)),
    "reward, all options": (
        lambda: losses.reward_loss(RB_, target=P_, margin=0.3, center_coef=0.05),
        soft_labels(P, 0.3, 0.05),
    ),
    "grades": (lambda: losses.grade_loss(GRADE_LOGITS.astype(np.float32), GRADES), graded()),
    "top-1": (
        lambda: losses.top1_distillation(A["policy"], A["reference"], MASK, weight=0.7),
        -masked(0.7 * POLICY + 0.3 * REFERENCE),
    ),
    "penalised": (
        lambda: advantages.penalised(R2_, *PAIR, beta=BETA),
        R2 - BETA * masked(POLICY - REFERENCE).sum(-1),
    ),
    "leave one out": (lambda: advantages.leave_one_out(R4_), by_group(of_the_others)),
    "group mean": (lambda: advantages.group_mean(R4_), by_group(lambda r: r - r.mean())),
    "group normalised": (
        lambda: advantages.group_normalised(R4_),
        by_group(lambda r: (r - r.mean()) / (r.std(ddof=1) + 1e-6)),
    ),
    "batch normalised": (lambda: advantages.batch_normalised(R4_), of_the_batch()),
    "trust gamma": (lambda: advantages.trust_gamma(R4_, step_kl=0.3), np.asarray(gamma(0.3))),
    "return to go": (lambda: advantages.return_to_go(A["kl"], MASK), to_go()),
    "leave one out by position": (
        lambda: advantages.leave_one_out_by_position(to_go().astype(np.float32), MASK),
        masked(to_go() - to_go()[:, ::-1]),
    ),
    "prefix baseline": (
        lambda: advantages.prefix_baseline(A2_, A["positive"] - A["negative"], MASK),
        masked(A2[..., None] - fitted()[:, None, None] * prefixes()),
    ),
    "prefix coefficient": (
        lambda: advantages.prefix_coef(A2_, A["positive"] - A["negative"], MASK),
        fitted(),
    ),
    "importance": (lambda: weights.importance_weights(*SIGNS), IMPORTANCE),
    "importance, all options": (
        lambda: weights.importance_weights(*SIGNS, scale=2.0, mu=0.5, lower=-1.0, upper=0.3),
        2.0 * signed_exponential(0.5 * np.clip(POSITIVE - NEGATIVE, -1.0, 0.3)),
    ),
    "token rewards": (lambda: weights.token_rewards(*SIGNS), masked(POSITIVE - NEGATIVE)),
    "weighted sums": (
        lambda: weights.weighted_sums(A["policy"], A["weights"], MASK),
        masked(token_weights() * POLICY).sum(-1),
    ),
    "uniform": (lambda: weights.uniform(*SIGNS), MASK * 1.0),
    "position": (lambda: weights.position(*SIGNS, gamma=0.8), MASK * 0.8 ** np.arange(N)),
    "rank": (
        lambda: weights.rank(*SIGNS),
        signed_exponential(-0.5 + 2.0 * each_response(ranks, POSITIVE - NEGATIVE)),
    ),
    "origin": (lambda: weights.TRANSFORMS["origin"](*SIGNS), masked(stored())),
    "threshold": (lambda: weights.TRANSFORMS["threshold"](*SIGNS), masked(np.clip(stored(), -1, 1))),
    "threshold_and_scale": (
        lambda: weights.TRANSFORMS["threshold_and_scale"](*SIGNS),
        masked(1.0 + 0.2 * np.clip(stored(), -1.5, 1.5)),
    ),
    "rank_based": (
        lambda: weights.TRANSFORMS["rank_based"](*SIGNS),
        each_response(lambda d: 0.7 + 0.6 * ranks(d), stored()),
    ),
    "binary": (
        lambda: weights.TRANSFORMS["binary"](*SIGNS, top_percent=50.0),
        each_response(lambda d: np.asarray([(d > x).sum() < math.ceil(len(d) / 2) for x in d]) * 1.0, stored()),
    ),
    "logps": (
        lambda: scoring.logps_from_logits(A["logits"], TARGETS),
        np.take_along_axis(log_softmax(LOGITS), TARGETS[..., None], -1)[..., 0],
    ),
    "kl": (lambda: scoring.kl_from_logits(A["logits"], A["other"]), kl(LOGITS, OTHER)),
    "reverse kl": (
        lambda: scoring.kl_from_logits(A["logits"], A["other"], direction="reference||policy"),
        kl(OTHER, LOGITS),
    ),
    "contrast": (lambda: scoring.contrast_scores(*SIGNS), masked(POSITIVE - NEGATIVE).sum(-1)),
}


@pytest.mark.parametrize("name", CASES)
def test_numbers(name: str) -> None:
    function, expected = CASES[name]
    got = np.stack([np.asarray(x) for x in jax.tree.leaves(function())]).reshape(expected.shape)
    assert got.dtype == (np.float64 if name == "contrast" else np.float32)
    # relative to the largest: a sum of 12 rounded differences may come out near 0
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5 * min(1.0, np.abs(expected).max()))
