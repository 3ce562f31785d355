"""One advantage a response: its reward against those of the other responses to the same prompt."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from tisdpo_jax import arguments

Array = jax.Array

FLOOR = -1e9  # what a log-likelihood of -inf counts as, here as in the losses


def penalised(rewards: Array, behaviour_logps: Array, reference_logps: Array, mask: Array, *, beta: float) -> Array:
    """Rewards with the KL to the reference in them: `R_i = r_i - beta sum_t (log pi_k - log pi_ref)`.

    Args:
      rewards: `[..., K]`; NaN where there is none.
      behaviour_logps, reference_logps: `[..., K, N]` log-likelihoods of the sampled tokens under the policy that
        sampled them and under the reference.
      mask: `[..., K, N]`, 1 on real response tokens.
      beta: strength of the reference, at least 0, in units of the reward a nat.

    Returns: `[..., K]` float32. Under the optimal policy `pi_ref exp(r / beta) / Z` it is one number for all responses
    to a prompt, so that their advantages are 0 on every sample.
    Source: Gunter et al., Apple, arXiv 2407.21075; Ahmadian et al., arXiv 2402.14740.
    """
    behaviour, reference, mask = arguments.group_arrays(
        "penalised", mask, behaviour_logps=behaviour_logps, reference_logps=reference_logps
    )
    rewards = arguments.floats("penalised", "rewards", rewards)
    if rewards.shape != mask.shape[:-1]:
        raise ValueError(
            f"penalised: rewards has shape {rewards.shape}; it must be {mask.shape[:-1]}, one for each response"
        )
    arguments.number("penalised", "beta", beta, at_least=0)
    behaviour, reference = (jnp.maximum(x.astype(jnp.float32), FLOOR) for x in (behaviour, reference))
    logs = jnp.where(mask > 0, behaviour - reference, 0.0)
    return jax.lax.stop_gradient(rewards.astype(jnp.float32) - beta * logs.sum(-1))


def leave_one_out(rewards: Array) -> Array:
    """Reward less the mean of the others: `A_i = R_i - mean_{j != i} R_j = K / (K - 1) (R_i - mean R)`.

    Args:
      rewards: `[..., K]`, K at least 2; NaN where there is none.

    Returns: `[..., K]` float32; sums to 0. Fewer than two rewards in a group give 0 for it, equal ones 0 exactly.
    Source: Kool et al., 2019; Ahmadian et al., arXiv 2402.14740.
    """
    centred, scored = _centred("leave_one_out", rewards)
    count = scored.sum(-1, keepdims=True)
    return centred * (count / jnp.maximum(count - 1, 1))


def group_mean(rewards: Array) -> Array:
    """Reward less the mean of its group: `A_i = R_i - mean R`, which is (K - 1) / K of `leave_one_out`.

    Args:
      rewards: as in `leave_one_out`.

    Source: Liu et al., Dr. GRPO, arXiv 2503.20783.
    """
    return _centred("group_mean", rewards)[0]


def group_normalised(rewards: Array, *, eps: float = 1e-6) -> Array:
    """`A_i = (R_i - mean R) / (std R + eps)`, by group: the scale of the reward is lost, and with it the optimum.

    Args:
      rewards: as in `leave_one_out`.
      eps: above 0. Equal rewards give 0.

    Source: Shao et al., GRPO, arXiv 2402.03300. The standard deviation has K - 1 below, as in TRL.
    """
    arguments.number("group_normalised", "eps", eps, above=0)
    centred, scored = _centred("group_normalised", rewards)
    return centred / (_std(centred, scored.sum(-1, keepdims=True) - 1, -1) + eps)


def batch_normalised(rewards: Array, *, eps: float = 1e-6) -> Array:
    """`A_i = (R_i - mean R) / (std + eps)`: the mean of the group, the standard deviation of what is left in the batch.

    Args:
      rewards: as in `leave_one_out`; all axes are the batch. Under vmap or shard_map it is what each call sees.
      eps: above 0.

    Source: Hu et al., REINFORCE++ (with baseline), arXiv 2501.03262. The standard deviation has the number of rewards
    less one below.
    """
    arguments.number("batch_normalised", "eps", eps, above=0)
    centred, scored = _centred("batch_normalised", rewards)
    return centred / (_std(centred, scored.sum() - 1, None) + eps)


def trust_gamma(rewards: Array, *, step_kl: float = 0.1) -> Array:
    """gamma of `mdloo_loss` for a step of `step_kl` nats: `sigma / sqrt(2 step_kl)`.

    A step of mirror descent gives `pi_k exp(A / gamma) / Z`, whose KL to pi_k is `Var(A) / (2 gamma^2)` to second
    order. sigma^2 is the variance of rewards within groups, without bias: `sum (R - mean)^2 / sum (K - 1)`, which is
    (K - 1) / K of the variance of their leave-one-out advantages. So the step does not depend on the reward's scale.

    Args:
      rewards: `[..., K]`, all of an iteration, as they go into `leave_one_out`; NaN where there is none.
      step_kl: the trust radius, in nats a response, above 0.

    Returns: scalar float32; 0 where no group has two different rewards, and then there is nothing to learn from.
    Source: of this package.
    """
    arguments.number("trust_gamma", "step_kl", step_kl, above=0)
    centred, scored = _centred("trust_gamma", rewards)
    freedom = jnp.maximum(scored.sum(-1) - 1, 0).sum()
    return _std(centred, freedom, None).squeeze() / jnp.sqrt(2.0 * step_kl)


def _centred(function: str, rewards: Array) -> tuple[Array, Array]:
    """Rewards less the mean of their group, 0 where there are no two; and which have a reward in a group of two."""
    rewards = arguments.floats(function, "rewards", rewards)
    if not rewards.ndim or rewards.shape[-1] < 2:
        raise ValueError(
            f"{function}: rewards has shape {rewards.shape}; it must be [..., K], K responses to a prompt, at least 2"
        )
    rewards = jax.lax.stop_gradient(rewards).astype(jnp.float32)
    scored = ~jnp.isnan(rewards)
    scored &= scored.sum(-1, keepdims=True) > 1
    # less the largest first: equal rewards give 0 exactly, and large ones keep the digits in which they differ
    largest = jnp.where(scored, rewards, -jnp.inf).max(-1, keepdims=True)
    shifted = jnp.where(scored, rewards - largest, 0.0)
    mean = shifted.sum(-1, keepdims=True) / jnp.maximum(scored.sum(-1, keepdims=True), 1)
    return jnp.where(scored, shifted - mean, 0.0), scored


def _std(centred: Array, freedom: Array, axis: int | None) -> Array:
    return jnp.sqrt(jnp.square(centred).sum(axis, keepdims=True) / jnp.maximum(freedom, 1))
