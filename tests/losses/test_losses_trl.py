"""Parity with TRL's own loss code, called on log-likelihoods that a stand-in for the model returns.

TRL computes losses in `_compute_loss` of its trainers. It is called here unbound, on a namespace that holds what it
reads, so that no trainer, data set or model has to be made. What this skips is TRL's scoring, not its losses.
"""

from __future__ import annotations

import collections
import inspect
import sys
import textwrap
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest

from tisdpo_jax import advantages, losses
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


# Online reinforcement learning and reward models. TRL's rows are the responses, one after the other.


def response_rows(x: jax.Array) -> Any:
    return torch.tensor(np.asarray(x).reshape(-1, *x.shape[2:]), dtype=torch.float64)


def trl_policy(p: Pairs, advantages: np.ndarray, trainer: str, **settings: Any) -> tuple[float, np.ndarray]:
    """The loss of TRL's trainer, and its gradient to the log-likelihoods of the policy."""
    import trl

    policy, mask = response_rows(p.policy_logps).requires_grad_(), response_rows(p.mask)
    behaviour = response_rows(p.positive_logps)
    empty = mask[:, :0].long()
    inputs = {
        "prompt_ids": empty,
        "prompt_mask": empty,
        "completion_ids": mask.long(),
        "completion_mask": mask,
        "advantages": torch.tensor(advantages.reshape(-1), dtype=torch.float64),
        "old_logps": (behaviour * mask).sum(-1),
        "old_per_token_logps": behaviour,
        "ref_per_token_logps": response_rows(p.reference_logps),
        "num_items_in_batch": mask.sum(),
    }
    options = {
        "model": SimpleNamespace(training=False),
        "_get_per_token_logps_and_entropies": lambda *_, **__: (policy, torch.zeros_like(policy), None),
        "accelerator": SimpleNamespace(
            gather=lambda x: x, gather_for_metrics=lambda x: x, reduce=lambda x, **_: x, num_processes=1
        ),
        "_metrics": collections.defaultdict(lambda: collections.defaultdict(list)),
        "aux_loss_enabled": False,
        "epsilon_low": 0.2,
        "epsilon_high": 0.2,
        "top_entropy_quantile": 1.0,
        "off_policy_mask_threshold": None,
        "use_vllm": False,
        "beta": 0.0,
        "_entropy_bonus_enabled": False,
        "max_completion_length": p.mask.shape[-1],
        "args": SimpleNamespace(delta=settings.pop("delta", None), use_bias_correction_kl=False),
    }
    stand_in = SimpleNamespace(**options | settings)
    loss = getattr(trl, trainer)._compute_loss(stand_in, stand_in.model, inputs)
    loss.backward()
    return loss.item(), policy.grad.numpy().reshape(p.policy_logps.shape)


@pytest.fixture(scope="module")
def group() -> Pairs:
    """Six prompts with four responses each; who sampled is a step away from the policy."""
    p = random_pairs(1, (6, 4, 9))
    return p._replace(positive_logps=0.8 * p.policy_logps + 0.2 * p.positive_logps)


POLICY: dict[str, tuple[str, dict[str, Any], dict[str, Any], str]] = {
    "rloo": ("RLOOTrainer", {}, {"level": "sequence"}, "response"),
    "grpo": ("GRPOTrainer", {"loss_type": "grpo"}, {}, "mean"),
    "grpo with KL": ("GRPOTrainer", {"loss_type": "grpo", "beta": 0.3}, {}, "mean"),
    "dr. grpo": ("GRPOTrainer", {"loss_type": "dr_grpo"}, {}, "constant"),
    "dapo": ("GRPOTrainer", {"loss_type": "dapo", "epsilon_high": 0.28}, {"high": 0.28}, "token"),
    "bnpo, two-sided": ("GRPOTrainer", {"loss_type": "bnpo", "delta": 1.3}, {"dual": 1.3}, "token"),
    "gspo": (
        "GRPOTrainer",
        {"loss_type": "grpo", "importance_sampling_level": "sequence", "epsilon_low": 0.05, "epsilon_high": 0.06},
        {"level": "mean", "low": 0.05, "high": 0.06},
        "response",
    ),
}


@pytest.mark.parametrize("name", POLICY)
def test_online_losses(group: Pairs, name: str) -> None:
    trainer, settings, options, reduction = POLICY[name]
    settings = {"importance_sampling_level": "token", **settings}
    a = np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32)
    expected, gradient = trl_policy(group, a, trainer, **settings)

    def ours(policy: jax.Array) -> jax.Array:
        loss = losses.clipped_loss(policy, group.positive_logps, group.mask, advantages=a, **options).loss
        if "beta" in settings:
            loss += settings["beta"] * losses.reference_kl(policy, group.reference_logps, group.mask)
        numerator, denominator = losses.REDUCE[reduction](loss, group.mask)
        return numerator / denominator

    value, grad = jax.value_and_grad(ours)(group.policy_logps)
    np.testing.assert_allclose(value, expected, rtol=1e-5, atol=1e-6)
    gradient = gradient * np.asarray(group.mask)
    np.testing.assert_allclose(grad, gradient, rtol=1e-5, atol=1e-5 * np.abs(gradient).max())


def trl_lines(trainer: str, first: str, until: str, names: dict[str, Any]) -> dict[str, Any]:
    """Some lines of TRL's own, which stand in the middle of a method of 200, run on `names`."""
    import trl

    method = getattr(trl, trainer)._generate_and_score_completions
    lines = inspect.getsource(method).splitlines()
    begin = [i for i, line in enumerate(lines) if line.strip().startswith(first)]
    end = [i for i, line in enumerate(lines) if line.strip().startswith(until) and i > begin[0]] if begin else []
    if not end:
        pytest.skip("another TRL")
    module = sys.modules[method.__module__]
    exec(textwrap.dedent("\n".join(lines[begin[0] : end[0]])), {**vars(module), **names}, names)
    return names


def test_leave_one_out_with_the_penalty_in_the_reward(group: Pairs) -> None:
    r = np.random.default_rng(2).normal(size=(6, 4)).astype(np.float32)
    r[1, 2] = r[3, 0] = r[3, 1] = r[5, 1:] = np.nan
    theirs = trl_lines(
        "RLOOTrainer",
        "# Include the KL penalty in the reward",
        "# Slice to keep only the local part",
        {
            "self": SimpleNamespace(beta=0.3, normalize_advantages=False),
            "rewards": torch.tensor(r.reshape(-1), dtype=torch.float64),
            "old_per_token_logps": response_rows(group.positive_logps),
            "ref_per_token_logps": response_rows(group.reference_logps),
            "completion_mask": response_rows(group.mask),
            "gather": lambda x: x,
            "num_generations": 4,
        },
    )["advantages"]
    penalised = advantages.penalised(r, group.positive_logps, group.reference_logps, group.mask, beta=0.3)
    ours = advantages.leave_one_out(penalised)
    np.testing.assert_allclose(ours, theirs.numpy().reshape(6, 4), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("scale", ["group", "none"])
def test_advantages_of_grpo(scale: str) -> None:
    r = np.random.default_rng(3).normal(size=(6, 4)).astype(np.float32)
    theirs = trl_lines(
        "GRPOTrainer",
        "mean_grouped_rewards = torch.nanmean(rewards.view",
        "is_std_zero = ",
        {
            "self": SimpleNamespace(scale_rewards=scale),
            "rewards": torch.tensor(r.reshape(-1), dtype=torch.float64),
            "num_generations": 4,
        },
    )["advantages"]
    ours = advantages.group_normalised(r, eps=1e-4) if scale == "group" else advantages.group_mean(r)
    np.testing.assert_allclose(ours, theirs.numpy().reshape(6, 4), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("mode", ["token_truncate", "token_mask", "sequence_truncate", "sequence_mask"])
def test_correction_for_the_sampler(group: Pairs, mode: str) -> None:
    theirs = trl_lines(
        "GRPOTrainer",
        "mask = completion_mask if tool_mask is None",
        "# Compute the per-token log probabilities for the reference",
        {
            "self": SimpleNamespace(
                vllm_importance_sampling_mode=mode,
                vllm_importance_sampling_clip_min=0.7,
                vllm_importance_sampling_clip_max=1.4,
            ),
            "tool_mask": None,
            "completion_mask": response_rows(group.mask),
            "old_per_token_logps": response_rows(group.policy_logps),
            "sampling_per_token_logps": response_rows(group.positive_logps),
        },
    )["vllm_importance_sampling_ratio"]
    level, kind = mode.split("_")
    ours = losses.sampler_weights(
        group.policy_logps, group.positive_logps, group.mask, level=level, mode=kind, cap=1.4, floor=0.7
    )
    expected = np.broadcast_to(theirs.numpy().reshape(6, 4, -1), ours.shape) * np.asarray(group.mask)
    np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("margin", [False, True])
def test_reward_models(margin: bool) -> None:
    from trl import RewardTrainer

    random = np.random.default_rng(4)
    values, m = random.normal(0, 2, (8, 2)).astype(np.float32), random.uniform(0, 1, 8).astype(np.float32)
    logits = torch.tensor(np.concatenate([values[:, 0], values[:, 1]])[:, None], dtype=torch.float64)
    logits.requires_grad_()

    class Model:
        training = False

        def __call__(self, **_: Any) -> Any:
            return SimpleNamespace(logits=logits)

    trainer = SimpleNamespace(
        model=Model(),
        args=SimpleNamespace(center_rewards_coefficient=0.05),
        accelerator=accelerator(),
        _total_train_tokens=0,
        _metrics=collections.defaultdict(lambda: collections.defaultdict(list)),
    )
    inputs = {"margin": torch.tensor(m, dtype=torch.float64)} if margin else {}
    loss = RewardTrainer.compute_loss(trainer, trainer.model, inputs)
    loss.backward()

    def ours(x: jax.Array) -> jax.Array:
        return losses.reward_loss(x, margin=m if margin else 0.0, center_coef=0.05).loss.mean()

    value, grad = jax.value_and_grad(ours)(values)
    np.testing.assert_allclose(value, loss.item(), rtol=1e-5)
    expected = logits.grad.numpy().reshape(2, 8).T
    np.testing.assert_allclose(grad, expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())
