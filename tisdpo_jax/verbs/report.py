"""report.html of a run, from what its stages left behind."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import jax
import yaml

from tisdpo_jax import interchange, reporting
from tisdpo_jax._version import __version__
from tisdpo_jax.config import Experiment, resolved
from tisdpo_jax.reporting import Comparison, Grid, Report
from tisdpo_jax.stages import Columns, Session, Splits, Subject
from tisdpo_jax.verbs.measure import Evaluation, counts
from tisdpo_jax.verbs.pictures import pictures, weight_parts
from tisdpo_jax.verbs.samples import Samples

FILES = {
    "config.yaml": "the configuration, defaults included",
    "metrics.jsonl": "metrics of every step",
    "evaluation.json": "the tables above as data",
    "evaluation_pairs.jsonl": "log-likelihoods, KL and margin of every held-out pair",
    "answers.jsonl": "what models answered to be judged",
    "judgements.jsonl": "what the judge said",
    "samples.json": "answers of the models to held-out prompts, and what was checked in them",
    "samples": "the same answers as they were made, with the log-likelihoods of their tokens",
    "held_out-before.jsonl": "answers to held-out prompts before training",
    "held_out-after.jsonl": "the same after it",
    "round-1": "answers, scores, pairs and policy of the first round of DLMA",
    "scores": "log-likelihoods under the frozen models",
    "models": "what each stage trained",
    "export": "the policy, for transformers",
    "adapter": "the policy's adapter, for peft",
}
HEADLINES = {
    "reward accuracy": "the policy's implicit reward is higher for the chosen response in {} (chance: 50 %)",
    "likelihood accuracy": "the chosen response is the likelier one, a token, in {}",
}
SOFTWARE = ("software", f"tisdpo_jax {__version__}, jax {jax.__version__}")


def write_report(
    session: Session,
    pairs: Splits,
    tables: tuple[Comparison, ...],
    samples: Samples,
    columns: dict[str, Columns],
    *,
    measures: tuple[Grid, ...] = (),
    judging: tuple[Grid, ...] = (),
    rewards: str = "",
    metrics: Path | None = None,
) -> Path:
    """Writes report.html and returns its path. `metrics`: metrics.jsonl, where it is not that of the run directory."""
    config, tokenizer = session.config, session.tokenizer
    split = "eval" if pairs.eval is not None else "train"
    model = interchange.model_name(session.model_path)
    mesh = ", ".join(f"{name} {size}" for name, size in session.mesh.shape.items())
    devices = f"{jax.device_count()} {jax.devices()[0].device_kind} ({mesh}), {jax.process_count()} process(es)"
    weights = f"construction {config.contrast.construction}, {config.weights.method}"
    report = Report(
        title=f"{config.loss.title} of {model}: {session.run_dir.name}",
        facts=(
            ("model", model),
            ("trained", f"LoRA rank {config.lora.rank}" if session.lora else "all parameters"),
            *([("token weights", weights)] if "token_weights" in columns["train"] else []),
            ("training pairs", f"{len(pairs.train)} from {pairs.train.source}"),
            ("devices", devices),
            SOFTWARE,
        ),
        comparisons=tables,
        measures=measures,
        judging=judging,
        headline=_headline(tables),
        samples=samples.shown,
        prompts=samples.prompts,
        scores=samples.scores,
        weighted_stages=("policy",) if "token_weights" in config.loss.needs.columns else (),
        history=reporting.read_metrics(metrics or session.run_dir / "metrics.jsonl"),
        rewards=rewards,
        pictures=pictures(tokenizer, pairs.split(split), columns[split], range(config.evaluation.heat_maps)),
        data=tuple(
            counts(pairs.split(name), {"train": "training", "eval": "held out"}[name]) for name in pairs.splits()
        ),
        **weight_parts(config.weights, tokenizer, pairs.train, columns["train"]),
    )
    return write_page(session.run_dir / "report.html", report, config)


def write_evaluation(
    directory: Path,
    session: Session,
    done: Evaluation | None,
    judging: tuple[Grid, ...],
    subjects: tuple[Subject, ...],
) -> Path:
    """evaluation.html of models that are not those of the run; returns its path."""
    report = Report(
        title=directory.name,
        facts=(*((one.name, one.source) for one in subjects), SOFTWARE),
        measures=done.grids() if done is not None else (),
        judging=judging,
        data=(done.data,) if done is not None else (),
    )
    return write_page(directory / "evaluation.html", report, session.config)


def _headline(tables: tuple[Comparison, ...]) -> tuple[str, ...]:
    """A sentence on held-out pairs: what says most, before and after."""
    parts = []
    for row in (row for table in tables for row in table.rows if row.name in HEADLINES):
        before = "" if row.by_definition else f"{100 * row.before:.0f} → "
        parts.append(HEADLINES[row.name].format(f"{before}{100 * row.after:.0f} %"))
    return (f"Of {tables[0].pairs} held-out pairs: {'; '.join(parts)}.",) if parts else ()


def write_page(path: Path, report: Report, config: Experiment) -> Path:
    """The page, with the configuration and what lies beside it; by one process."""
    files = tuple((name, what) for name, what in FILES.items() if (path.parent / name).exists())
    text = yaml.safe_dump(resolved(config), sort_keys=False, allow_unicode=True)
    if jax.process_index() == 0:
        reporting.write(path, dataclasses.replace(report, config=text, files=files))
    return path
