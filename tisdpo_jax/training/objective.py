"""From a batch to the loss of its pairs: where DPO, TIS-DPO, DLMA and the rest differ, and the only place.

`Plan` is everything static about a training step. Precomputed columns of the batch ("weights",
"reference_logps", "margin") are taken where they are there, which is decided when the step is traced.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from tisdpo_jax import losses, weights
from tisdpo_jax.config import LossSection, WeightsSection
from tisdpo_jax.models import Model
from tisdpo_jax.roles import Casting, Frozen, bind
from tisdpo_jax.scoring import Direction, contrast, score, score_pair_of_models
from tisdpo_jax.types import Batch, Params

Array = jax.Array

Sums = dict[str, tuple[Array, Array]]
"""Metric -> (sum, count). Added over micro-batches, divided once."""

WEIGHTED = ("tisdpo", "dlma+tisdpo")
"""Losses that take token weights."""


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a training step does; hashable."""

    model: Model
    casting: Casting
    loss: LossSection
    weights: WeightsSection = WeightsSection()
    micro_batches: int = 1
    head_chunk: int = 256
    compiler_options: tuple[tuple[str, Any], ...] = ()  # of XLA


class Objective(NamedTuple):
    total: Array  # [], the sum to differentiate
    denominator: Array  # [], what it is divided by
    sums: Sums


def wants_kl(loss: LossSection) -> Direction | None:
    """The direction of the full-vocabulary KL that a loss needs, if any."""
    if loss.name == "tdpo":
        return "reference||policy"
    return "policy||reference" if loss.name in WEIGHTED and loss.kl_coef != 0 else None


def objective(plan: Plan, trained: Params, frozen: Frozen, batch: Batch) -> Objective:
    """Summed loss of a batch, its denominator (pairs; tokens for SFT), and metric sums."""
    if plan.loss.name == "sft":
        policy = bind(plan.casting.policy, trained, frozen)
        logps = score(plan.model, policy, batch, chunk=plan.head_chunk).logps
        total, count = losses.sft_loss(logps, batch.mask)
        return Objective(total, count, {"objective": (total, count)})
    return _pair_objective(plan, trained, frozen, batch)


def _pair_objective(plan: Plan, trained: Params, frozen: Frozen, batch: Batch) -> Objective:
    logps, reference_logps, kl = _scores(plan, trained, frozen, batch)
    token_weights = token_weights_of(plan, frozen, batch)
    if token_weights is None:
        token_weights = (batch.mask > 0).astype(jnp.float32)
    with jax.named_scope("loss"):
        result = pair_loss(plan.loss, logps, reference_logps, batch, token_weights=token_weights, kl=kl)
    real = (batch.mask > 0).any((-1, -2)).astype(jnp.float32)  # filler rows count nowhere
    total, pairs = (result.loss * real).sum(), real.sum()
    sums = _metric_sums(plan, logps, reference_logps, token_weights, kl, batch.mask, real)
    return Objective(total, pairs, {"objective": (total, pairs)} | sums)


def _scores(plan: Plan, trained: Params, frozen: Frozen, batch: Batch) -> tuple[Array, Array, Array | None]:
    policy = bind(plan.casting.policy, trained, frozen)
    direction = wants_kl(plan.loss)
    if direction is None and "reference_logps" in batch.columns:
        return score(plan.model, policy, batch, chunk=plan.head_chunk).logps, batch.columns["reference_logps"], None
    if plan.casting.reference is None:
        raise ValueError(f"loss {plan.loss.name!r} needs a reference: a role, or a column 'reference_logps'")
    reference = bind(plan.casting.reference, None, frozen)
    if direction is None:
        reference_logps = jax.lax.stop_gradient(score(plan.model, reference, batch, chunk=plan.head_chunk).logps)
        return score(plan.model, policy, batch, chunk=plan.head_chunk).logps, reference_logps, None
    scores, reference_logps = score_pair_of_models(
        plan.model,
        policy,
        reference,
        batch,
        direction=direction,
        chunk=plan.head_chunk,
    )
    return scores.logps, reference_logps, scores.kl


def token_weights_of(plan: Plan, frozen: Frozen, batch: Batch) -> Array | None:
    """Weights of the batch's tokens: the column where it is there, else from pi+ and pi- now; None without either."""
    if "weights" in batch.columns:
        return batch.columns["weights"]
    if plan.loss.name not in WEIGHTED or plan.casting.plus is None or plan.casting.minus is None:
        return None
    plus, minus = ((bind(role, None, frozen), role.view) for role in (plan.casting.plus, plan.casting.minus))
    positive, negative = contrast(plan.model, plus, minus, batch, chunk=plan.head_chunk)
    return make_weights(plan.weights, positive, negative, batch.mask, record=batch.record)


def make_weights(
    section: WeightsSection, positive: ArrayLike, negative: ArrayLike, mask: ArrayLike, *, record: ArrayLike
) -> Array:
    """Token weights `[B, 2, N]` as the configuration names them.

    Random controls draw from (seed, record): a pair has the same weights in every batch, cached or online.
    """
    positive, negative, mask, record = map(jnp.asarray, (positive, negative, mask, record))
    paper = {"scale": section.scale, "mu": section.mu, "lower": section.lower, "upper": section.upper}
    method = section.method
    if method == "importance":
        return weights.importance_weights(positive, negative, mask, **paper)
    methods: dict[str, Callable[..., Array]] = {**weights.CONTROLS, **weights.TRANSFORMS}
    function = methods[method]
    options: dict[str, Any] = {} if method == "uniform" or method in weights.TRANSFORMS else dict(paper)
    if method == "position":
        options = {"gamma": section.gamma}
    if method == "binary":
        options = {"top_percent": section.top_percent}
    if method in weights.TRANSFORMS:
        options["zero_last"] = True  # as the public code does
    if method not in ("log_uniform", "shuffled", "random"):
        return function(positive, negative, mask, **options)
    keys = jax.vmap(lambda index: jax.random.fold_in(jax.random.key(section.seed), index))(record)
    return jax.vmap(lambda p, n, m, key: function(p, n, m, key=key, **options))(positive, negative, mask, keys)


def pair_loss(
    loss: LossSection, logps: Array, reference_logps: Array, batch: Batch, *, token_weights: Array, kl: Array | None
) -> losses.PairLoss:
    """The configured loss of every pair."""
    mask, beta = batch.mask, loss.beta
    if loss.name == "tisdpo":
        return losses.tisdpo_loss(
            logps,
            reference_logps,
            mask,
            weights=token_weights,
            beta=beta,
            token_kl=kl,
            kl_coef=loss.kl_coef,
            label_smoothing=loss.label_smoothing,
        )
    if loss.name == "dpo":
        return losses.dpo_loss(logps, reference_logps, mask, beta=beta, label_smoothing=loss.label_smoothing)
    if loss.name == "ipo":
        return losses.ipo_loss(logps, reference_logps, mask, beta=beta, average=loss.average)
    if loss.name == "tdpo":
        if kl is None:
            raise ValueError("tdpo needs the full-vocabulary KL")
        return losses.tdpo_loss(
            logps, reference_logps, mask, token_kl=kl, beta=beta, alpha=loss.alpha, variant=loss.variant
        )
    if loss.name == "kto":
        desirable, undesirable = loss.desirable_weight, loss.undesirable_weight
        return losses.kto_loss(
            logps, reference_logps, mask, beta=beta, desirable_weight=desirable, undesirable_weight=undesirable
        )
    if loss.name in ("dlma", "dlma+tisdpo"):
        weighted: dict[str, Any] = {"weights": token_weights, "token_kl": kl, "kl_coef": loss.kl_coef}
        return losses.dlma_loss(
            logps,
            reference_logps,
            mask,
            self_reward=batch.columns["margin"],
            beta=beta,
            margin_coef=loss.margin_coef,
            lower=loss.margin_lower,
            upper=loss.margin_upper,
            label_smoothing=loss.label_smoothing,
            **(weighted if loss.name in WEIGHTED else {}),
        )
    raise ValueError(f"unknown loss {loss.name!r}")


def _metric_sums(
    plan: Plan, logps: Array, reference_logps: Array, w: Array, kl: Array | None, mask: Array, real: Array
) -> Sums:
    """Means over pairs, and of token weights over tokens.

    Rewards, margins, accuracies and the DPO loss are those of plain sums over tokens, whatever the loss: weights are
    made with the label, so a weighted reward would tell which response is the chosen one. `evaluation.preference`
    has the same.
    """
    pairs = real.sum()
    rewards = plan.loss.beta * (logps - reference_logps).sum(-1)
    margins = rewards[:, 0] - rewards[:, 1]
    tokens = (mask > 0).astype(jnp.float32)
    lengths = jnp.maximum(tokens.sum(-1), 1.0)
    weighted = (w * logps).sum(-1)
    per_pair = {
        "rewards/chosen": rewards[:, 0],
        "rewards/rejected": rewards[:, 1],
        "rewards/accuracies": (margins > 0) + 0.5 * (margins == 0),
        "rewards/margins": margins,
        "dpo_loss": jax.nn.softplus(-margins),
        "logps/chosen": logps[:, 0].sum(-1),
        "logps/rejected": logps[:, 1].sum(-1),
        "logps/reference_chosen": reference_logps[:, 0].sum(-1),
        "logps/reference_rejected": reference_logps[:, 1].sum(-1),
        "logps/weighted_chosen": weighted[:, 0],
        "logps/weighted_rejected": weighted[:, 1],
    }
    if kl is not None:
        name = "kl" if wants_kl(plan.loss) == "policy||reference" else "forward_kl"
        by_side = (kl * tokens).sum(-1) / lengths
        per_pair |= {name: by_side.mean(-1), f"{name}/chosen": by_side[:, 0], f"{name}/rejected": by_side[:, 1]}
    sums = {name: ((value * real).sum(), pairs) for name, value in per_pair.items()}
    for side, name in enumerate(("chosen", "rejected")):
        count = tokens[:, side].sum()
        per_token = {f"weights/{name}": w, f"weights/{name}_squared": jnp.square(w)}
        sums |= {key: ((value[:, side] * tokens[:, side]).sum(), count) for key, value in per_token.items()}
    return jax.lax.stop_gradient(sums)
