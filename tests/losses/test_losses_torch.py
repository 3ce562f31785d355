"""Parity with the formulas, written again in PyTorch, float64, with its own automatic differentiation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from loss_cases import ALL, GROUP_LOSSES, LOSSES

from tisdpo_jax import losses
from tisdpo_jax.testing import Pairs, random_pairs

torch = pytest.importorskip("torch", reason="parity with PyTorch: install the extra `parity`")
logsigmoid = torch.nn.functional.logsigmoid

BETA = 0.3  # of `loss_cases`
RTOL = 1e-5
Tensor = Any


def ratio_sums(p: Pairs) -> Tensor:
    return ((p.policy_logps - p.reference_logps.detach()) * p.mask).sum(-1)


def difference(totals: Tensor) -> Tensor:
    return totals[..., 0] - totals[..., 1]


def token_weights(p: Pairs) -> Tensor:
    clamped = (p.positive_logps - p.negative_logps).clamp(-0.5, 1.5)
    mu = torch.tensor([[1.0], [-1.0]], dtype=torch.float64)
    return (torch.exp(mu * clamped) * p.mask).detach()


def dpo(p: Pairs, smoothing: float = 0.0) -> Tensor:
    z = BETA * difference(ratio_sums(p))
    return -(1 - smoothing) * logsigmoid(z) - smoothing * logsigmoid(-z)


def ipo(p: Pairs, average: bool = False) -> Tensor:
    totals = ratio_sums(p) / p.mask.sum(-1) if average else ratio_sums(p)
    return (difference(totals) - 1 / (2 * BETA)) ** 2


def tdpo(p: Pairs, variant: int) -> Tensor:
    kl = (p.token_kl * p.mask).sum(-1)
    kl_chosen, kl_rejected = kl[..., 0], kl[..., 1]
    if variant == 1:
        return -logsigmoid(BETA * (difference(ratio_sums(p)) - (kl_rejected - kl_chosen)))
    return -logsigmoid(BETA * (difference(ratio_sums(p)) - 0.5 * (kl_rejected - kl_chosen.detach())))


def kto(p: Pairs, z: Tensor | None, desirable: float, undesirable: float) -> Tensor:
    totals = ratio_sums(p)
    if z is None:
        z = totals.detach().mean(0).flip(0).clamp(min=0)
    chosen = 1 - torch.sigmoid(BETA * (totals[..., 0] - z[0]))
    rejected = 1 - torch.sigmoid(BETA * (z[1] - totals[..., 1]))
    return (desirable * chosen + undesirable * rejected) / 2


def self_reward(p: Pairs) -> Tensor:
    return difference(((p.positive_logps - p.negative_logps) * p.mask).sum(-1)).detach()


def dlma(p: Pairs) -> Tensor:
    return -logsigmoid(BETA * difference(ratio_sums(p)) - BETA * 0.2 * self_reward(p).clamp(-40, 40))


def tisdpo(p: Pairs, kl_coef: float, smoothing: float) -> Tensor:
    w = token_weights(p)
    m = p.policy_logps - p.reference_logps.detach()
    u = BETA * difference((w * m).sum(-1))
    eta = BETA * difference((w * p.token_kl * p.mask).sum(-1))
    z = u - kl_coef * eta
    return -(1 - smoothing) * logsigmoid(z) - smoothing * logsigmoid(-z)


def dlma_weighted(p: Pairs, kl_coef: float, smoothing: float) -> Tensor:
    w = token_weights(p)
    u = difference((w * (p.policy_logps - p.reference_logps.detach())).sum(-1))
    eta = kl_coef * difference((w * p.token_kl * p.mask).sum(-1))
    z = BETA * (u - eta - 0.2 * self_reward(p).clamp(-40, 40))
    return -(1 - smoothing) * logsigmoid(z) - smoothing * logsigmoid(-z)


def means(p: Pairs) -> Tensor:
    return (p.policy_logps * p.mask).sum(-1) / p.mask.sum(-1)


def simpo(p: Pairs, beta: float, gamma: float, smoothing: float) -> Tensor:
    z = beta * difference(means(p)) - gamma
    return -(1 - smoothing) * logsigmoid(z) - smoothing * logsigmoid(-z)


def orpo(p: Pairs, coef: float) -> Tensor:
    log_odds = torch.logit(torch.exp(means(p)))
    return -means(p)[..., 0] - coef * logsigmoid(difference(log_odds))


TORCH: dict[str, Callable[[Pairs], Tensor]] = {
    "dpo": dpo,
    "dpo smoothed": lambda p: dpo(p, 0.1),
    "ipo": ipo,
    "ipo averaged": lambda p: ipo(p, average=True),
    "tdpo 1": lambda p: tdpo(p, 1),
    "tdpo 2": lambda p: tdpo(p, 2),
    "kto": lambda p: kto(p, torch.tensor([0.4, 0.7], dtype=torch.float64), 1.2, 0.7),
    "kto of the batch": lambda p: kto(p, None, 1.0, 1.0),
    "dlma": dlma,
    "dlma with weights and KL": lambda p: dlma_weighted(p, 0.5, 0.05),
    "simpo": lambda p: simpo(p, 2.0, 0.6, 0.05),
    "orpo": lambda p: orpo(p, 0.3),
    "tisdpo": lambda p: tisdpo(p, 0.0, 0.0),
    "tisdpo with KL": lambda p: tisdpo(p, 0.5, 0.05),
}


def real_ratios(p: Pairs) -> Tensor:
    return (p.policy_logps - p.reference_logps.detach()) * p.mask


def scores(p: Pairs) -> Tensor:
    return ((p.positive_logps - p.negative_logps) * p.mask).detach()


def sample_form(rho: Tensor) -> Tensor:
    return rho * torch.log(rho) - rho + 1


def mdloo(p: Pairs, by_token: bool = False, dense: bool = False, exact: bool = False) -> Tensor:
    m = real_ratios(p) if by_token else real_ratios(p).sum(-1, keepdim=True)
    a = (scores(p) + 0.3).clamp(-2, 2) if dense else scores(p).sum(-1, keepdim=True).clamp(-2, 2)
    rho = torch.exp(m)
    kl = p.token_kl * p.mask if exact else sample_form(rho)
    return -(rho * a * (p.mask if by_token else 1)).sum(-1) + 0.7 * kl.sum(-1)


def surrogate(
    p: Pairs, level: str = "token", dense: bool = False, low: float = 0.2, high: float = 0.2, dual: float = 1e9
) -> Tensor:
    a = (scores(p) + 0.3).clamp(-2, 2) if dense else scores(p).sum(-1, keepdim=True).clamp(-2, 2)
    m = real_ratios(p)
    if level != "token":
        m = m.sum(-1, keepdim=True)
    if level == "mean":
        m = m / p.mask.sum(-1, keepdim=True)
    rho = torch.exp(m)
    # the four cases of the minimum, one by one
    gains = torch.where(a > 0, a * rho.clamp(max=1 + high), a * rho.clamp(min=1 - low).clamp(max=dual))
    return -(gains * p.mask if level == "token" else gains).sum(-1)


def grpo(p: Pairs) -> Tensor:
    q = torch.exp(-real_ratios(p))
    return surrogate(p) + 0.04 * (q - torch.log(q) - 1).sum(-1)


def reinforce(p: Pairs, dense: bool = False) -> Tensor:
    a = (scores(p) + 0.3).clamp(-2, 2) if dense else scores(p).sum(-1, keepdim=True).clamp(-2, 2)
    return -(a * p.policy_logps * p.mask).sum(-1)


GROUPS: dict[str, Callable[[Pairs], Tensor]] = {
    "mdloo": mdloo,
    "mdloo, exact KL": lambda p: mdloo(p, exact=True),
    "mdloo by token": lambda p: mdloo(p, by_token=True, dense=True),
    "mdloo by token, exact KL": lambda p: mdloo(p, by_token=True, exact=True),
    "ppo": lambda p: surrogate(p, dense=True),
    "ppo, dual": lambda p: surrogate(p, low=0.5, high=0.6, dual=1.5),
    "rloo": lambda p: surrogate(p, "sequence"),
    "grpo": grpo,
    "gspo": lambda p: surrogate(p, "mean", low=0.05, high=0.07),
    "unclipped": lambda p: surrogate(p, low=1.0, high=1e9),
    "reinforce": reinforce,
    "reinforce by token": lambda p: reinforce(p, dense=True),
}


def near(ours: Any, theirs: Tensor, what: str) -> None:
    """Relative to the largest entry: one that happens to be almost 0 has no relative precision in float32."""
    expected = theirs.detach().numpy()
    np.testing.assert_allclose(ours, expected, rtol=RTOL, atol=RTOL * np.abs(expected).max(), err_msg=what)


def test_every_loss_has_its_formula() -> None:
    assert set(TORCH) == set(LOSSES)
    assert set(GROUPS) == set(GROUP_LOSSES)


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("name", TORCH | GROUPS)
def test_values_and_gradients(name: str, seed: int) -> None:
    ours = random_pairs(seed, (16, 3, 40) if name in GROUPS else (16, 2, 40))
    if name in GROUPS:  # a step away from who sampled, as in training; h of 40 tokens would reach 20
        ours = ours._replace(reference_logps=0.8 * ours.policy_logps + 0.2 * ours.reference_logps)
    theirs = Pairs(*(torch.tensor(np.asarray(x), dtype=torch.float64, requires_grad=True) for x in ours))

    def total(p: Pairs) -> tuple[jax.Array, jax.Array]:
        loss = ALL[name](p).loss
        return loss.sum(), loss

    grad, loss = jax.grad(total, has_aux=True)(ours)
    expected = (TORCH | GROUPS)[name](theirs)
    near(loss, expected, "loss")
    # h is a sum of 80 rounded differences: an absolute error of some 1e-6, of which the loss sees beta
    expected.sum().backward()
    near(grad.policy_logps, theirs.policy_logps.grad, "gradient to the policy")
    kl_grad = theirs.token_kl.grad
    near(grad.token_kl, torch.zeros_like(theirs.token_kl) if kl_grad is None else kl_grad, "gradient to the KL")


@pytest.mark.parametrize("name", ["dpo", "tdpo 2", "tisdpo"])
def test_rewards(name: str) -> None:
    ours = random_pairs(3, (16, 2, 40))
    theirs = Pairs(*(torch.tensor(np.asarray(x), dtype=torch.float64) for x in ours))
    totals = {
        "dpo": ratio_sums(theirs),
        "tdpo 2": ratio_sums(theirs) + (theirs.token_kl * theirs.mask).sum(-1),
        "tisdpo": (token_weights(theirs) * (theirs.policy_logps - theirs.reference_logps)).sum(-1),
    }[name]
    out = LOSSES[name](ours)
    near(jnp.stack((out.chosen_reward, out.rejected_reward), -1), BETA * totals, "rewards")


def test_distillation_of_the_most_likely_token() -> None:
    ours = random_pairs(4, (16, 2, 40))
    theirs = Pairs(*(torch.tensor(np.asarray(x), dtype=torch.float64, requires_grad=True) for x in ours))
    expected = -(0.9 * theirs.policy_logps + 0.1 * theirs.reference_logps) * theirs.mask
    near(losses.top1_distillation(ours.policy_logps, ours.reference_logps, ours.mask), expected, "loss")
    grad = jax.grad(lambda *x: losses.top1_distillation(*x, ours.mask).sum(), argnums=(0, 1))
    expected.sum().backward()
    for ours_of, tensor in zip(grad(*ours[:2]), (theirs.policy_logps, theirs.reference_logps), strict=True):
        near(ours_of, tensor.grad, "gradient")


@pytest.mark.parametrize("margin", [0.0, 0.4])
def test_reward(margin: float) -> None:
    random = np.random.default_rng(5)
    rewards, target = random.normal(0, 2, (16, 2)).astype(np.float32), random.uniform(0, 1, 16).astype(np.float32)
    r = torch.tensor(rewards, dtype=torch.float64, requires_grad=True)
    p = torch.tensor(target, dtype=torch.float64)
    d = r[:, 0] - r[:, 1] - margin
    expected = torch.nn.functional.binary_cross_entropy_with_logits(d, p, reduction="none") + 0.02 * r.sum(-1) ** 2

    def ours(x: jax.Array) -> jax.Array:
        return losses.reward_loss(x, target=target, margin=margin, center_coef=0.02).loss

    near(ours(rewards), expected, "loss")
    expected.sum().backward()
    near(jax.grad(lambda x: ours(x).sum())(rewards), r.grad, "gradient")


def test_grades() -> None:
    random = np.random.default_rng(6)
    logits, grades = random.normal(0, 2, (16, 2, 4, 3)).astype(np.float32), random.integers(-1, 3, (16, 2, 4))
    x = torch.tensor(logits, dtype=torch.float64, requires_grad=True)
    expected = torch.nn.functional.cross_entropy(
        x.reshape(-1, 3), torch.tensor(grades).reshape(-1), ignore_index=-1, reduction="none"
    )
    expected = expected.reshape(16, 8).sum(-1)
    near(losses.grade_loss(logits, grades), expected, "loss")
    expected.sum().backward()
    near(jax.grad(lambda x: losses.grade_loss(x, grades).sum())(jnp.asarray(logits)), x.grad, "gradient")


def test_sft() -> None:
    ours = random_pairs(4, (16, 2, 40))
    total, count = losses.sft_loss(ours.policy_logps, ours.mask)
    logps, mask = (torch.tensor(np.asarray(x), dtype=torch.float64) for x in (ours.policy_logps, ours.mask))
    near(total, -(logps * mask).sum(), "sum")
    assert float(count) == float(mask.sum())
