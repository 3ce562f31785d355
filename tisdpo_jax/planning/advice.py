"""What to change when a step does not fit: fields of the configuration, and what each would save on a chip."""

from __future__ import annotations

import dataclasses
import math

from tisdpo_jax.config import Experiment, StageSection
from tisdpo_jax.planning.report import StagePlan
from tisdpo_jax.planning.topology import GIB

SECTIONS = {"sft": "sft", "plus": "contrast.training", "minus": "contrast.training", "policy": "train"}


@dataclasses.dataclass(frozen=True)
class Saving:
    text: str  # "train.gradient_accumulation_steps 4 (now 2)"
    saves: float  # bytes on a chip, by arithmetic


def advise(config: Experiment, plan: StagePlan) -> tuple[str, ...]:
    """Changes that would make room, those that save most first; nothing when the step fits."""
    if plan.fits is not False:
        return ()
    over = None if plan.reserved is None or plan.capacity is None else plan.reserved - plan.capacity
    lines = [] if over is None else [f"{over / GIB:.2f} GiB too much on a chip. By arithmetic, not compiled:"]
    for change in sorted(savings(config, plan), key=lambda change: -change.saves):
        if change.saves >= 0.01 * GIB:
            enough = " (enough alone)" if over is not None and change.saves >= over else ""
            lines.append(f"{change.text}: about {change.saves / GIB:.2f} GiB less{enough}")
    return tuple(lines)


def savings(config: Experiment, plan: StagePlan) -> list[Saving]:
    """Everything that this configuration still leaves to save."""
    held = {(item.name, item.term): item.chip for item in plan.resident}
    trained = held.get(("trained", "parameters"), 0)
    moments = held.get(("trained", "optimizer"), 0)
    width = 4 if config.model.param_dtype == "float32" else 2
    gradients = trained // width * _gradient_width(config, plan.stage)
    resident = sum(held.values())
    temporaries = max((plan.reserved or 0) - resident - gradients, 0)
    found = [Saving(f"twice the chips ({2 * plan.chips})", (resident + gradients + temporaries) / 2)]
    if plan.stage == "score":
        found.append(Saving("half of evaluation.batch_size", temporaries / 2))
    else:
        name = SECTIONS[plan.stage]
        section = _section(config, name)
        found += _batch_changes(name, section, plan, temporaries)
        found += _optimizer_changes(name, section, moments)
    if config.model.remat == "none":
        found.append(Saving("model.remat full (now none)", 0.8 * temporaries))
    elif config.model.remat == "dots":
        found.append(Saving("model.remat full (now dots)", 0.6 * temporaries))
    if config.model.param_dtype == "float32" and trained:
        found.append(Saving("model.param_dtype bfloat16 (now float32)", (trained + moments) / 2))
    contrasts = sum(held.get((name, "parameters"), 0) for name in ("plus", "minus"))
    if trained:
        # the base takes the place of the trained copy, where no reference held it already
        added = 0 if ("base", "parameters") in held else trained * 2 // width
        found.append(Saving("lora.rank 16 (now 0)", trained + moments + gradients + contrasts - added))
    if config.scores == "online" and contrasts:
        found.append(Saving("scores cached (now online)", contrasts))
    frozen = sum(item.chip for item in plan.resident if item.term == "parameters" and item.name != "trained")
    if config.model.frozen_dtype == "bfloat16" and frozen:
        found.append(Saving("model.frozen_dtype int8 (now bfloat16)", frozen / 2))
    for item in plan.resident:
        alone = item.name == "base" and item.used_by == ("reference",)
        if alone and plan.stage == "policy" and config.loss.needs.direction:
            found.append(Saving("reference_states cached (now live)", item.chip))
    copies = plan.mesh.get("data", 1)
    if copies > 1:
        found.append(Saving(f"mesh.data 1 and mesh.fsdp -1 (now data {copies})", resident * (1 - 1 / copies)))
    return found


def _gradient_width(config: Experiment, stage: str) -> int:
    """Bytes of an entry: float32 sums over micro-batches, else nearly all in the dtype of the computation."""
    summed = stage in SECTIONS and _section(config, SECTIONS[stage]).gradient_accumulation_steps > 1
    return 2 if config.model.dtype == "bfloat16" and not summed else 4


def _section(config: Experiment, name: str) -> StageSection:
    section: StageSection = config.contrast.training if name == "contrast.training" else getattr(config, name)
    return section


def _batch_changes(name: str, section: StageSection, plan: StagePlan, temporaries: float) -> list[Saving]:
    shards = plan.mesh.get("data", 1) * plan.mesh.get("fsdp", 1)
    parts = 2 * section.gradient_accumulation_steps
    if section.batch_size % (parts * shards) == 0:
        return [
            Saving(
                f"{name}.gradient_accumulation_steps {parts} (now {section.gradient_accumulation_steps})",
                temporaries / 2,
            )
        ]
    smallest = shards * section.gradient_accumulation_steps
    if section.batch_size > smallest:
        size = max(smallest, section.batch_size // 2 // smallest * smallest)
        return [
            Saving(
                f"{name}.batch_size {size} (now {section.batch_size})", temporaries * (1 - size / section.batch_size)
            )
        ]
    return []


def _optimizer_changes(name: str, section: StageSection, moments: int) -> list[Saving]:
    kept = {"adamw": 1.0, "rmsprop": 0.5, "adafactor": 0.01}  # of the moments of adamw, for matrices
    now = section.optimizer.name
    return [
        Saving(f"{name}.optimizer.name {other} (now {now})", moments * (1 - kept[other] / kept[now]))
        for other in ("rmsprop", "adafactor")
        if kept[other] < kept[now] and not math.isclose(kept[other], kept[now])
    ]
