"""What is compared: losses, where token weights come from, and how log-ratios become weights."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from experiments.testbed.world import Pairs
from tisdpo_jax.config import LossSection, WeightsSection
from tisdpo_jax.training.objective import make_weights

Source = Literal["", "true", "prompts", "sft", "dpo"]
"""Whose log-ratios the weights are made of: the true rewards, or pi+ and pi- of a construction; "" without weights."""


@dataclasses.dataclass(frozen=True)
class Cell:
    """A way to train a policy."""

    loss: LossSection
    source: Source = ""
    weights: WeightsSection = WeightsSection()
    sides: tuple[int, ...] = (0, 1)

    @property
    def trained_contrast(self) -> bool:
        return self.source in ("sft", "dpo")


def methods(beta: float) -> dict[str, Cell]:
    """Rows of the main table. The public code's transforms and the controls that need log-ratios take those of (D)."""

    def tisdpo(source: Source, method: Any = "importance") -> Cell:
        return Cell(LossSection(name="tisdpo", beta=beta), source, WeightsSection(method=method))

    def plain(name: Any, **fields: Any) -> Cell:
        return Cell(LossSection(name=name, beta=beta, **fields))

    public = ("binary", "rank_based", "threshold_and_scale", "threshold", "origin", "random")
    return {
        "SFT on chosen": Cell(LossSection(name="sft"), sides=(0,)),
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
    without = dataclasses.replace(whole.loss, kl_coef=0.0)

    def changed(**fields: float) -> Cell:
        return dataclasses.replace(whole, weights=dataclasses.replace(whole.weights, **fields))  # type: ignore[arg-type]  # all are floats

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
        section = dataclasses.replace(cell.weights, seed=seed)
        zero = np.zeros(ratio.shape, np.float32)
        made = make_weights(
            section, ratio.astype(np.float32), zero, drawn.mask.astype(np.float32), record=np.arange(len(ratio))
        )
        found.append({"weights": np.asarray(made)})
    return found
