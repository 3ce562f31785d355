"""The contrast of whole responses: what DLMA scores them with, from what TIS-DPO scores tokens with."""

from __future__ import annotations

import jax
import numpy as np
import numpy.typing as npt

from tisdpo_jax import arguments


def contrast_scores(
    positive_logps: npt.ArrayLike, negative_logps: npt.ArrayLike, mask: npt.ArrayLike, *, average: bool = False
) -> npt.NDArray[np.float64]:
    """`sum_t (log pi+ - log pi-)` of every response: `[..., N]` -> `[...]`, in nats, summed in float64.

    The self-reward of a pair is the score of one side minus that of the other.

    Args:
      positive_logps, negative_logps: log-likelihoods of the response's tokens under pi+ and pi-.
      mask: 1 on real tokens.
      average: nats a token instead; a response without tokens scores 0.

    Source: Liu et al., DLMA, arXiv 2402.11907, eq. 5, which sums.
    """
    positive, negative, mask = (np.asarray(x) for x in (positive_logps, negative_logps, mask))
    shapes = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in (positive, negative, mask)]
    arguments.elements("contrast_scores", shapes[2], positive_logps=shapes[0], negative_logps=shapes[1])
    arguments.flag("contrast_scores", "average", average)
    real = mask > 0
    ratios = positive.astype(np.float64) - negative.astype(np.float64)
    total = np.where(real, ratios, 0.0).sum(-1)
    return np.asarray(total / np.maximum(real.sum(-1), 1) if average else total)
