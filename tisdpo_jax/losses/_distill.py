"""Distillation of a teacher's most likely tokens."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from tisdpo_jax import arguments
from tisdpo_jax.losses._pairs import FLOOR

Array = jax.Array


def top1_distillation(teacher_top1_logps: Array, label_logps: Array, mask: Array, *, weight: float = 0.9) -> Array:
    """Cross entropy with the teacher's most likely token and with the label: `-(w log p(t*) + (1 - w) log p(y))`.

    Args:
      teacher_top1_logps: `[..., N]`, the *student's* log-likelihood of the token t* that the teacher finds most likely.
      label_logps: `[..., N]`, the student's log-likelihood of the label y; equal to the other where t* = y. A gradient
        flows to both (`scoring.fused_logps`, once for each of the two targets).
      mask: `[..., N]`, 1 on the tokens that count.
      weight: share w of the teacher, in [0, 1]. At 0 this is fine-tuning on the labels, at 1 on t*.

    Returns: `[..., N]` float32, one loss each token, 0 where the mask is 0; unreduced. A log-likelihood of -inf counts
    as -1e9, without a gradient.
    Source: Gunter et al., Apple, arXiv 2407.21075: 0.9 of the teacher's top-1.
    """
    teacher_top1_logps, label_logps, mask = arguments.elements(
        "top1_distillation", mask, teacher_top1_logps=teacher_top1_logps, label_logps=label_logps
    )
    arguments.number("top1_distillation", "weight", weight, at_least=0, at_most=1)
    teacher, label = (jnp.maximum(x.astype(jnp.float32), FLOOR) for x in (teacher_top1_logps, label_logps))
    return -jnp.where(mask > 0, weight * teacher + (1.0 - weight) * label, 0.0)
