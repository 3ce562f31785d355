"""What to change when a step does not fit: fields of the configuration, and what each would save on a chip."""

from __future__ import annotations

from typing import NamedTuple

from tisdpo_jax.config import Experiment, StageSection, get
from tisdpo_jax.planning.report import StagePlan
from tisdpo_jax.planning.topology import GIB

SECTIONS = {"sft": "sft", "plus": "contrast.training", "minus": "contrast.training", "policy": "train"}
_MOMENTS = {"adamw": 1.0, "rmsprop": 0.5, "adafactor": 0.01}  # of those of adamw, for matrices


class Saving(NamedTuple):
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
    model, held = config.model, {(item.name, item.term): item.chip for item in plan.resident}
    section: StageSection | None = get(config, SECTIONS[plan.stage]) if plan.stage in SECTIONS else None
    trained, moments = held.get(("trained", "parameters"), 0), held.get(("trained", "optimizer"), 0)
    width = 4 if model.param_dtype == "float32" else 2
    # float32 sums over micro-batches, else nearly all in the dtype of the computation
    summed = section is not None and section.gradient_accumulation_steps > 1
    gradients = trained // width * (2 if model.dtype == "bfloat16" and not summed else 4)
    resident = sum(held.values())
    temporaries = max((plan.reserved or 0) - resident - gradients, 0)
    contrasts = sum(held.get((name, "parameters"), 0) for name in ("plus", "minus"))
    frozen = sum(size for (name, term), size in held.items() if term == "parameters" and name != "trained")
    copies = plan.mesh.get("data", 1)
    changes = [Saving(f"twice the chips ({2 * plan.chips})", (resident + gradients + temporaries) / 2)]
    if section is None:
        changes.append(Saving("half of evaluation.batch_size", temporaries / 2))
    else:
        changes += _of_section(SECTIONS[plan.stage], section, plan, temporaries, moments)
    if model.remat != "full":
        share = {"none": 0.8, "dots": 0.6}[model.remat]
        changes.append(Saving(f"model.remat full (now {model.remat})", share * temporaries))
    if model.param_dtype == "float32" and trained:
        changes.append(Saving("model.param_dtype bfloat16 (now float32)", (trained + moments) / 2))
    if trained:
        # the base takes the place of the trained copy, where no reference held it already
        added = 0 if ("base", "parameters") in held else trained * 2 // width
        changes.append(Saving("lora.rank 16 (now 0)", trained + moments + gradients + contrasts - added))
    if config.scores == "online" and contrasts:
        changes.append(Saving("scores cached (now online)", contrasts))
    if model.frozen_dtype == "bfloat16" and frozen:
        changes.append(Saving("model.frozen_dtype int8 (now bfloat16)", frozen / 2))
    if plan.stage == "policy" and config.loss.needs.direction:
        alone = [item for item in plan.resident if item.name == "base" and item.used_by == ("reference",)]
        changes += [Saving("reference_states cached (now live)", item.chip) for item in alone]
    if copies > 1:
        changes.append(Saving(f"mesh.data 1 and mesh.fsdp -1 (now data {copies})", resident * (1 - 1 / copies)))
    return changes


def _of_section(name: str, section: StageSection, plan: StagePlan, temporaries: float, moments: int) -> list[Saving]:
    """Smaller parts of a batch, or a smaller batch where there are none; and optimizers that keep less."""
    steps, size, now = section.gradient_accumulation_steps, section.batch_size, section.optimizer.name
    shards = plan.mesh.get("data", 1) * plan.mesh.get("fsdp", 1)
    smallest = shards * steps
    changes = []
    if size % (2 * smallest) == 0:
        changes.append(Saving(f"{name}.gradient_accumulation_steps {2 * steps} (now {steps})", temporaries / 2))
    elif size > smallest:
        less = max(smallest, size // 2 // smallest * smallest)
        changes.append(Saving(f"{name}.batch_size {less} (now {size})", temporaries * (1 - less / size)))
    for other, kept in _MOMENTS.items():
        if kept < _MOMENTS[now]:
            saved = moments * (1 - kept / _MOMENTS[now])
            changes.append(Saving(f"{name}.optimizer.name {other} (now {now})", saved))
    return changes
