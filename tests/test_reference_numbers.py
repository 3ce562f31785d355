"""Losses, weights and scores against their formulas in float64 numpy, written again from the papers, pair by pair."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import pytest

from tisdpo_jax import losses, scoring, weights

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
