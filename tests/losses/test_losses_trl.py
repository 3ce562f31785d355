"""Parity with TRL's own loss code, called on log-likelihoods that a stand-in for the model returns.

TRL computes losses in `_compute_loss` of its trainers. It is called here unbound, on a namespace that holds what it
reads, so that no trainer, data set or model has to be made. What this skips is TRL's scoring, not its losses.
"""

from __future__ import annotations

import collections
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest

from tisdpo_jax import losses
from tisdpo_jax.testing import Pairs, random_pairs

torch = pytest.importorskip("torch", reason="parity with TRL: install the extra `parity`")
pytest.importorskip("trl", reason="parity with TRL: install the extra `parity`")

BETA = 0.3
PROMPT = 2  # TRL's rows hold the prompt too; its positions have log-likelihood 0


def rows(x: jax.Array) -> Any:
    """`[B, 2, N]` -> TRL's layout: all chosen, then all rejected, the prompt's positions before."""
    both = np.concatenate((x[:, 0], x[:, 1]))
    padded = np.pad(both, ((0, 0), (PROMPT - 1, 0)))
    return torch.tensor(padded, dtype=torch.float64)


def model_of(logps: Any) -> Callable[..., Any]:
    zeros = torch.zeros_like(logps)
    output = SimpleNamespace(log_probs=logps, entropy=zeros, mean_logits=zeros, is_top1=zeros.bool())

    class Model:
        training = True

        def __call__(self, **_: Any) -> Any:
            return output

    return Model()


def accelerator() -> Any:
    return SimpleNamespace(
        device=torch.device("cpu"), gather=lambda x: x, gather_for_metrics=lambda x: x, unwrap_model=lambda m: m
    )


def trl_dpo(p: Pairs, loss_type: str, label_smoothing: float = 0.0) -> tuple[Any, Any, Any]:
    """TRL's mean loss, its gradient to the policy's rows, and the rewards that it logs."""
    from trl import DPOTrainer

    mask = rows(p.mask).long()
    policy = (rows(p.policy_logps) * mask).requires_grad_()
    model = model_of(policy)
    trainer = SimpleNamespace(
        model=model,
        ref_model=model_of(rows(p.reference_logps) * mask),
        args=SimpleNamespace(gradient_checkpointing_kwargs=None),
        accelerator=accelerator(),
        aux_loss_enabled=False,
        precompute_ref_logps=True,
        ld_alpha=None,
        f_divergence_type="reverse_kl",
        beta=BETA,
        label_smoothing=label_smoothing,
        loss_types=[loss_type],
        loss_weights=[1.0],
        use_weighting=False,
        _metrics=collections.defaultdict(lambda: collections.defaultdict(list)),
        _total_train_tokens=0,
        _tp_size=1,
    )
    whole = torch.nn.functional.pad(mask, (1, 0))  # TRL cuts the first position off
    chosen, rejected = (rows(p.reference_logps) * mask).sum(1).chunk(2)
    inputs = {
        "input_ids": torch.zeros_like(whole),
        "attention_mask": torch.ones_like(whole),
        "completion_mask": whole,
        "ref_chosen_logps": chosen,
        "ref_rejected_logps": rejected,
    }
    loss = DPOTrainer._compute_loss(trainer, model, inputs, False)
    loss.backward()
    return loss.item(), policy.grad, trainer._metrics["train"]


def compare(p: Pairs, ours: Callable[[jax.Array], jax.Array], loss: float, grad: Any) -> None:
    value, gradient = jax.value_and_grad(lambda policy: ours(policy).mean())(p.policy_logps)
    np.testing.assert_allclose(value, loss, rtol=1e-5)
    mask = np.asarray(rows(p.mask))
    expected = grad.numpy() * mask
    np.testing.assert_allclose(np.asarray(rows(gradient)), expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())


@pytest.fixture(scope="module")
def pairs() -> Pairs:
    return random_pairs(0, (8, 2, 12))


def test_dpo(pairs: Pairs) -> None:
    loss, grad, metrics = trl_dpo(pairs, "sigmoid")
    compare(pairs, lambda x: losses.dpo_loss(x, pairs.reference_logps, pairs.mask, beta=BETA).loss, loss, grad)
    out = losses.dpo_loss(pairs.policy_logps, pairs.reference_logps, pairs.mask, beta=BETA)
    np.testing.assert_allclose(out.chosen_reward.mean(), metrics["rewards/chosen"][0], rtol=1e-5)
    np.testing.assert_allclose(out.rejected_reward.mean(), metrics["rewards/rejected"][0], rtol=1e-5)


def test_ipo_averages_over_tokens(pairs: Pairs) -> None:
    loss, grad, _ = trl_dpo(pairs, "ipo")

    def ours(x: jax.Array) -> jax.Array:
        return losses.ipo_loss(x, pairs.reference_logps, pairs.mask, beta=BETA, average=True).loss

    compare(pairs, ours, loss, grad)


def test_label_smoothing(pairs: Pairs) -> None:
    """Of one pair, TRL's `aot_unpaired` (which sorts a batch) is the conservative DPO that it no longer has by name."""
    single = Pairs(*(x[3:4] for x in pairs))
    loss, grad, _ = trl_dpo(single, "aot_unpaired", label_smoothing=0.2)

    def ours(x: jax.Array) -> jax.Array:
        return losses.dpo_loss(x, single.reference_logps, single.mask, beta=BETA, label_smoothing=0.2).loss

    compare(single, ours, loss, grad)


def test_robust_dpo_is_two_of_ours(pairs: Pairs) -> None:
    """`((1 - e) loss(z) - e loss(-z)) / (1 - 2 e)`: loss(-z) is DPO with every label flipped."""
    e = 0.2
    loss, grad, _ = trl_dpo(pairs, "robust", label_smoothing=e)

    def ours(x: jax.Array) -> jax.Array:
        kept, flipped = (
            losses.dpo_loss(x[:, ::step], pairs.reference_logps[:, ::step], pairs.mask[:, ::step], beta=BETA).loss
            for step in (1, -1)
        )
        return ((1 - e) * kept - e * flipped) / (1 - 2 * e)

    compare(pairs, ours, loss, grad)


def test_sft_on_the_chosen(pairs: Pairs) -> None:
    loss, grad, _ = trl_dpo(pairs, "sft")

    def ours(x: jax.Array) -> jax.Array:
        total, count = losses.sft_loss(x[:, 0], pairs.mask[:, 0])
        return total / count

    compare(pairs, ours, loss, grad)


def test_kto(pairs: Pairs) -> None:
    from trl import KTOTrainer

    mask = rows(pairs.mask).long()
    policy = (rows(pairs.policy_logps) * mask).requires_grad_()
    whole = torch.nn.functional.pad(mask, (1, 0))
    mismatched = torch.tensor([3.0, -1.0, 2.5], dtype=torch.float64)  # z is the mean, where it is above 0

    class Trainer(SimpleNamespace):
        def _compute_kl_logps(self, model: Any, batch: Any) -> Any:
            return mismatched

    trainer = Trainer(
        model=model_of(policy),
        accelerator=accelerator(),
        aux_loss_enabled=False,
        precompute_ref_logps=True,
        calculate_KL=True,
        loss_type="kto",
        beta=BETA,
        desirable_weight=1.2,
        undesirable_weight=0.7,
        _metrics=collections.defaultdict(lambda: collections.defaultdict(list)),
        _total_train_tokens=0,
        _tp_size=1,
    )
    batch = {
        "input_ids": torch.zeros_like(whole),
        "attention_mask": torch.ones_like(whole),
        "completion_mask": whole,
        "label": torch.arange(16) < 8,
        "ref_logps": (rows(pairs.reference_logps) * mask).sum(1),
        "ref_KL_logps": torch.zeros_like(mismatched),
    }
    loss = KTOTrainer._compute_loss(trainer, trainer.model, batch, False)
    loss.backward()

    def ours(x: jax.Array) -> jax.Array:
        z = np.float32(mismatched.mean())
        return losses.kto_loss(
            x, pairs.reference_logps, pairs.mask, beta=BETA, kl=z, desirable_weight=1.2, undesirable_weight=0.7
        ).loss

    compare(pairs, ours, loss.item(), policy.grad)


def test_simpo_of_cpo(pairs: Pairs) -> None:
    cpo = pytest.importorskip("trl.experimental.cpo", reason="another TRL")
    means = [torch.tensor(np.asarray(x), dtype=torch.float64) for x in _means(pairs)]
    settings = SimpleNamespace(
        beta=2.0, simpo_gamma=0.6, loss_type="simpo", label_smoothing=0.1, accelerator=SimpleNamespace(device="cpu")
    )
    settings.alpha = 0.0
    expected, chosen, rejected = cpo.CPOTrainer.cpo_loss(settings, *means)
    out = losses.simpo_loss(pairs.policy_logps, pairs.mask, beta=2.0, gamma=0.6, label_smoothing=0.1)
    for ours, theirs in zip(out, (expected, chosen, rejected), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5)


def test_the_odds_ratio_of_orpo(pairs: Pairs) -> None:
    orpo = pytest.importorskip("trl.experimental.orpo", reason="another TRL")
    chosen, rejected = (torch.tensor(np.asarray(x), dtype=torch.float64) for x in _means(pairs))
    settings = SimpleNamespace(beta=0.3, accelerator=SimpleNamespace(device="cpu"))
    scaled, reward, *_ = orpo.ORPOTrainer.odds_ratio_loss(settings, chosen, rejected)
    out = losses.orpo_loss(pairs.policy_logps, pairs.mask, coef=0.3)
    np.testing.assert_allclose(out.loss, -chosen - scaled, rtol=1e-5)
    np.testing.assert_allclose(out.chosen_reward, reward, rtol=1e-5)


def _means(pairs: Pairs) -> tuple[jax.Array, jax.Array]:
    totals = (pairs.policy_logps * pairs.mask).sum(-1) / pairs.mask.sum(-1)
    return totals[:, 0], totals[:, 1]
