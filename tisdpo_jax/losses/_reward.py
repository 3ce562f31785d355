"""Training of reward models: preferences of known strength, and grades."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from tisdpo_jax import arguments
from tisdpo_jax.losses._dpo import logistic
from tisdpo_jax.losses._pairs import PairLoss, sides

Array = jax.Array

TARGETS: dict[str, float] = {"significantly": 0.95, "better": 0.85, "slightly": 0.75, "negligibly": 0.65}
"""By how much the chosen response is better -> the probability that it is (`target` of `reward_loss`)."""


def reward_loss(
    rewards: Array, *, target: float | Array = 1.0, margin: float | Array = 0.0, center_coef: float = 0.0
) -> PairLoss:
    """Cross entropy of a pair with a soft label: `-p log sigmoid(d) - (1 - p) log sigmoid(-d) + c (r_c + r_r)^2`.

    `d = r_c - r_r - m`, of the rewards of chosen and rejected, less a margin.

    Args:
      rewards: `[..., 2]`, what the model gives for chosen and rejected.
      target: p, the probability that the chosen response is the better one, in [0, 1]: a number, or `[...]`, one for
        each pair (`TARGETS` by strength of the preference). 1 is Bradley-Terry. The loss is least at `d = logit(p)`.
      margin: m, a number or `[...]`, that the chosen is to win by: the older way to use the strength, with p = 1.
      center_coef: c, at least 0: holds the mean of the rewards near 0, which a difference does not see.

    Returns: PairLoss of `[...]`; its rewards are the two that came in. NaN stays NaN.
    Source: soft labels: Gunter et al., Apple, arXiv 2407.21075; margin: Touvron et al., Llama 2, arXiv 2307.09288,
    eq. 2; centring: Eisenstein et al., arXiv 2312.09244.
    """
    rewards = arguments.floats("reward_loss", "rewards", rewards)
    if not rewards.ndim or rewards.shape[-1] != 2:
        raise ValueError(
            f"reward_loss: rewards has shape {rewards.shape}; it must be [..., 2], one number for chosen and one for "
            "rejected"
        )
    p = arguments.number_or_array("reward_loss", "target", target, rewards.shape[:-1], at_least=0, at_most=1)
    m = arguments.number_or_array("reward_loss", "margin", margin, rewards.shape[:-1])
    arguments.number("reward_loss", "center_coef", center_coef, at_least=0)
    chosen, rejected = sides(rewards.astype(jnp.float32))
    p, m = (jax.lax.stop_gradient(x) for x in (p, m))
    loss = logistic(chosen - rejected - m, 1.0 - p) + center_coef * jnp.square(chosen + rejected)
    return PairLoss(loss, *jax.lax.stop_gradient((chosen, rejected)))


def grade_loss(logits: Array, grades: Array) -> Array:
    """Cross entropy of grades, `-sum log softmax(logits)[grade]` over both responses and all G kinds of grades.

    Args:
      logits: `[..., 2, G, levels]`, what the heads say of each level.
      grades: `[..., 2, G]` integers in [0, levels), or -1 where a response has no such grade: that adds 0 to the loss,
        and its logits are not looked at.

    Returns: `[...]` float32, one a pair; log(levels) for each grade where all logits are equal.
    Raises: ValueError for a grade outside of that, where its value can be seen; where it is traced, the loss is NaN.
    Source: Gunter et al., Apple, arXiv 2407.21075 (the regularisation of its reward model).
    """
    logits = arguments.floats("grade_loss", "logits", logits)
    if logits.ndim < 3 or logits.shape[-3] != 2 or not logits.shape[-1]:
        raise ValueError(
            f"grade_loss: logits has shape {logits.shape}; it must be [..., 2, G, levels], axis -3 chosen and rejected"
        )
    levels, seen = logits.shape[-1], grades
    grades = arguments.integers("grade_loss", "grades", grades)
    arguments.same_shape("grade_loss", "grades", grades, "logits without its levels", logits.shape[:-1])
    arguments.within("grade_loss", "grades", seen, -1, levels - 1)
    graded, known = grades != -1, (grades >= 0) & (grades < levels)
    log_p = jax.nn.log_softmax(jnp.where(graded[..., None], logits.astype(jnp.float32), 0.0))
    of_grade = jnp.take_along_axis(log_p, jnp.clip(grades, 0, levels - 1)[..., None], axis=-1)[..., 0]
    return -jnp.where(graded, jnp.where(known, of_grade, jnp.nan), 0.0).sum((-2, -1))
