"""From a batch to the loss of a step: scores of the models, token weights, and what the objective makes of them.

`StepSpec` is everything static about a training step. What the objective needs and the batch does not bring as a
column is made here, from models in the step.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from tisdpo_jax.estimators import Estimator, Importance
from tisdpo_jax.objectives import Inputs, Loss, Objective, implicit_beta
from tisdpo_jax.roles import Frozen, Roles, bind
from tisdpo_jax.scoring import Scorer
from tisdpo_jax.types import Batch, Params

Array = jax.Array

Sums = dict[str, tuple[Array, Array]]
"""Metric -> (sum, count). Added over micro-batches, divided once."""


@dataclasses.dataclass(frozen=True)
class StepSpec:
    """What a training step does; hashable."""

    scorer: Scorer
    roles: Roles
    objective: Objective
    estimator: Estimator = Importance()  # noqa: RUF009  # frozen
    gradient_accumulation_steps: int = 1
    seed: int = 0  # of the step's key
    compiler_options: tuple[tuple[str, Any], ...] = ()  # of XLA


class Result(NamedTuple):
    total: Array  # [], the sum to differentiate
    denominator: Array  # [], what it is divided by
    sums: Sums


def objective(plan: StepSpec, trained: Params, frozen: Frozen, batch: Batch, key: Array | None = None) -> Result:
    """Summed loss of a batch, its denominator (pairs; tokens for SFT), and metric sums.

    `key` is what a scorer draws from, the same for every role; by default that of step 0.
    """
    if key is None:
        key = step_key(plan, 0)
    inputs = _inputs(plan, trained, frozen, batch, key)
    with jax.named_scope("loss"):
        loss = plan.objective.loss(inputs)
    sums: Sums = {"objective": (loss.total, loss.denominator)}
    if loss.pairs is not None or inputs.logps.shape[-2] > 2:
        sums |= _metric_sums(plan.objective, inputs, loss)
    return Result(loss.total, loss.denominator, sums)


def step_key(plan: StepSpec, step: Array | int) -> Array:
    """The one key of a step: a function of the seed and the step's number, so that resuming changes nothing."""
    return jax.random.fold_in(jax.random.key(plan.seed), step)


def _inputs(plan: StepSpec, trained: Params, frozen: Frozen, batch: Batch, key: Array) -> Inputs:
    needs, scorer, roles = plan.objective.needs, plan.scorer, plan.roles
    policy = bind(roles.policy, trained, frozen)
    columns = dict(batch.columns)
    reference_logps, kl = columns.pop("reference_logps", None), None
    if needs.reads == "rewards":
        nothing = jnp.full_like(batch.mask, jnp.nan)  # what is read by mistake is seen
        return Inputs(nothing, batch.mask, columns=columns, rewards=scorer.rewards(policy, batch, key))
    if needs.reference == "none":
        logps, reference_logps = scorer.logps(policy, batch, key), None
    elif needs.direction is None and reference_logps is not None:
        logps = scorer.logps(policy, batch, key)
    elif roles.reference is None:
        raise ValueError(f"objective {plan.objective.name!r} needs a reference: a role, or a column 'reference_logps'")
    else:
        reference = bind(roles.reference, None, frozen)
        if needs.direction is None:
            reference_logps = jax.lax.stop_gradient(scorer.logps(reference, batch, key))
            logps = scorer.logps(policy, batch, key)
        else:
            scores, reference_logps = scorer.compare(policy, reference, batch, key, direction=needs.direction)
            logps, kl = scores.logps, scores.kl
    if "token_weights" in needs.columns and "token_weights" not in columns:
        columns["token_weights"] = token_weights(plan, frozen, batch, key)
    return Inputs(logps, batch.mask, reference_logps, kl, columns)


def token_weights(plan: StepSpec, frozen: Frozen, batch: Batch, key: Array) -> Array:
    """Weights of the batch's tokens, from the models that the estimator reads, now. No gradient."""
    values = {}
    for read in plan.estimator.reads:
        role = getattr(plan.roles, read.role)
        if role is None:
            raise ValueError(f"weights {plan.estimator.method!r} need {read.role}: a role, or a column 'token_weights'")
        with jax.named_scope("contrast"):
            quantity = getattr(plan.scorer, read.kind)(bind(role, None, frozen), batch, key, view=role.view)
        values[read.column] = jax.lax.stop_gradient(quantity)
    return plan.estimator.weights(values, batch.mask, batch.record)


def _metric_sums(objective: Objective, inputs: Inputs, loss: Loss) -> Sums:
    """Means over pairs; where groups are none, over responses; and of token weights over tokens.

    Rewards, margins, accuracies and the DPO loss are those of plain sums over tokens, whatever the loss: weights are
    made with the label, so a weighted reward would tell which response is the chosen one. `evaluation.preference`
    has the same. Without a reference they are those of the loss itself.
    """
    logps, mask, reference_logps = inputs.logps, inputs.mask, inputs.reference_logps
    tokens = (mask > 0).astype(jnp.float32)
    w = inputs.columns.get("token_weights", tokens)
    of_response, to_sum, of_token, of_pair = {}, {}, {}, {}
    if inputs.rewards is None:
        of_response = {"logps/weighted_{}": (w * logps).sum(-1)}  # [B, K] each
        to_sum = {"logps/{}": logps}  # [B, K, N] each, over tokens
        of_token = {"weights/{}": w, "weights/{}_squared": jnp.square(w)}
    if reference_logps is not None:
        to_sum["logps/reference_{}"] = reference_logps
        of_response["rewards/{}"] = implicit_beta(objective) * (logps - reference_logps).sum(-1)
    elif loss.pairs is not None:
        of_response["rewards/{}"] = jnp.stack([loss.pairs.chosen_reward, loss.pairs.rejected_reward], axis=-1)
    if inputs.kl is not None:
        name = "kl" if objective.needs.direction == "policy||reference" else "forward_kl"
        kl = of_response[f"{name}/{{}}"] = (inputs.kl * tokens).sum(-1) / jnp.maximum(tokens.sum(-1), 1.0)
        of_pair[name] = kl.mean(-1)
    real = (mask > 0).any((-1, -2)).astype(jnp.float32)  # filler rows count nowhere
    sums: Sums = {}
    if logps.shape[-2] != 2:
        shown: dict[str, tuple[Any, Array]] = {"mean": (slice(None), (mask > 0).any(-1).astype(jnp.float32))}
    else:
        shown = {"chosen": (0, real), "rejected": (1, real)}
        margins = of_response["rewards/{}"][:, 0] - of_response["rewards/{}"][:, 1]
        of_pair["rewards/accuracies"] = (margins > 0) + 0.5 * (margins == 0)
        of_pair["rewards/margins"] = margins
        if reference_logps is not None:
            of_pair["dpo_loss"] = jax.nn.softplus(-margins)
        sums |= {name: ((value * real).sum(), real.sum()) for name, value in of_pair.items()}
    for name, (index, counted) in shown.items():
        summed = {key: value[:, index].sum(-1) for key, value in to_sum.items()}
        for key, value in ({key: value[:, index] for key, value in of_response.items()} | summed).items():
            sums[key.format(name)] = (value * counted).sum(), counted.sum()
        for key, value in of_token.items():
            sums[key.format(name)] = (value[:, index] * tokens[:, index]).sum(), tokens[:, index].sum()
    return jax.lax.stop_gradient(sums)
