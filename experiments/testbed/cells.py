"""What is compared: losses, where token weights come from, and how log-ratios become weights."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np

from experiments.testbed.world import Pairs
from tisdpo_jax.estimators import ESTIMATORS, Estimator, Importance
from tisdpo_jax.objectives import OBJECTIVES, Objective, Sft, TisDpo

Source = Literal["", "true", "prompts", "sft", "dpo"]
"""Whose log-ratios the weights are made of: the true rewards, or pi+ and pi- of a construction; "" without weights."""


@dataclasses.dataclass(frozen=True)
class Cell:
    """A way to train a policy."""

    loss: Objective
    source: Source = ""
    weights: Estimator = Importance()  # noqa: RUF009  # frozen
    sides: tuple[int, ...] = (0, 1)

    @property
    def trained_contrast(self) -> bool:
        return self.source in ("sft", "dpo")


def methods(beta: float) -> dict[str, Cell]:
    """Rows of the main table. The public code's transforms and the controls that need log-ratios take those of (D)."""

    def tisdpo(source: Source, method: Any = "importance") -> Cell:
        return Cell(TisDpo(beta=beta), source, ESTIMATORS[method]())

    def plain(name: Any, **fields: Any) -> Cell:
        return Cell(OBJECTIVES[name](beta=beta, **fields))

    public = ("binary", "rank_based", "threshold_and_scale", "threshold", "origin", "random")
    return {
        "SFT on chosen": Cell(Sft(), sides=(0,)),
        "DPO": plain("dpo"),
        "cDPO": plain("dpo", label_smoothing=0.1),
        "IPO": plain("ipo"),
        "KTO": plain("kto"),
        "TDPO1": plain("tdpo", variant=1),
        "TDPO2": plain("tdpo", variant=2),
        "TIS-DPO (P)": tisdpo("prompts"),
        "TIS-DPO (S)": tisdpo("sft"),
        "TIS-DPO (D)": tisdpo("dpo"),
        "TIS-DPO (oracle)": tisdpo("true"),
        "weights: uniform": tisdpo("dpo", "uniform"),
        "weights: log-uniform": tisdpo("dpo", "log_uniform"),
        "weights: (D) shuffled": tisdpo("dpo", "shuffled"),
        "weights: position": tisdpo("dpo", "position"),
    } | {f"public code: {name}": tisdpo("dpo", name) for name in public}


def ablations(beta: float) -> dict[str, Cell]:
    """Variants of (D), one thing changed at a time, and the same of the true rewards where the KL is left out."""
    whole = methods(beta)["TIS-DPO (D)"]
    true = methods(beta)["TIS-DPO (oracle)"]
    without = TisDpo(beta=beta, kl_coef=0.0)

    def changed(**fields: Any) -> Cell:
        return dataclasses.replace(whole, weights=Importance(**fields))

    return {
        "(D) as in the paper": whole,
        "(D) no KL term": dataclasses.replace(whole, loss=without),
        "(oracle) no KL term": dataclasses.replace(true, loss=without),
        "(D) k = 0.5": changed(scale=0.5),
        "(D) k = 2": changed(scale=2.0),
        "(D) mu = 0.5": changed(mu=0.5),
        "(D) mu = 2": changed(mu=2.0),
        "(D) L, U = -0.5, 0.5": changed(upper=0.5),
        "(D) L, U = -1.5, 1.5": changed(lower=-1.5),
        "(D) L, U = -3, 3": changed(lower=-3.0, upper=3.0),
    }


def columns(
    cell: Cell, pairs: Sequence[Pairs], ratios: Sequence[np.ndarray], seeds: Sequence[int]
) -> list[dict[str, Any]]:
    """The token weights of a cell as batch columns, one dict a seed.

    Args:
      pairs: of each seed.
      ratios: log-ratios of pi+ and pi-, `[n, 2, N]` of each seed.
      seeds: what random controls draw from.
    """
    found = []
    for drawn, ratio, seed in zip(pairs, ratios, seeds, strict=True):
        seeded: Any = cell.weights
        if "seed" in seeded.__dataclass_fields__:
            seeded = dataclasses.replace(seeded, seed=seed)
        values = {"plus_logps": jnp.asarray(ratio, jnp.float32), "minus_logps": jnp.zeros(ratio.shape)}
        weights = seeded.weights(values, jnp.asarray(drawn.mask, jnp.float32), jnp.arange(len(ratio)))
        found.append({"token_weights": np.asarray(weights)})
    return found
