"""report.html of a run, from what its stages left behind."""

from __future__ import annotations

from pathlib import Path

import jax
import yaml

from tisdpo_jax import interchange, reporting
from tisdpo_jax._version import __version__
from tisdpo_jax.config import resolved
from tisdpo_jax.recipes import pictures
from tisdpo_jax.recipes.evaluate import Evaluation, counts
from tisdpo_jax.recipes.samples import Samples
from tisdpo_jax.reporting import Comparison, DataCounts, Grid, Report
from tisdpo_jax.stages import Columns, Session, Subject

FILES = (
    ("config.yaml", "the configuration, defaults included"),
    ("metrics.jsonl", "metrics of every step"),
    ("evaluation.json", "the tables above as data"),
    ("evaluation_pairs.jsonl", "log-likelihoods, KL and margin of every held-out pair"),
    ("answers.jsonl", "what models answered to be judged"),
    ("judgements.jsonl", "what the judge said"),
    ("samples.json", "answers of the models to held-out prompts, and what was checked in them"),
    ("samples", "the same answers as they were made, with the log-likelihoods of their tokens"),
    ("held_out-before.jsonl", "answers to held-out prompts before training"),
    ("held_out-after.jsonl", "the same after it"),
    ("round-1", "answers, scores, pairs and policy of the first round of DLMA"),
    ("scores", "log-likelihoods under the frozen models"),
    ("models", "what each stage trained"),
    ("export", "the policy, for transformers"),
    ("adapter", "the policy's adapter, for peft"),
)


def write_report(
    session: Session,
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
    config = session.config
    split = "eval" if session.eval is not None else "train"
    encoded, found = session.split(split), columns[split]
    report = Report(
        title=f"{config.loss.title} of {interchange.model_name(session.model_path)}: {session.run_dir.name}",
        facts=_facts(session),
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
        weights=pictures.weight_section(config.weights, session.train, columns["train"]),
        tokens=pictures.token_grids(session.tokenizer, session.train, columns["train"]),
        pictures=pictures.pictures(session.tokenizer, encoded, found, range(config.evaluation.heat_maps)),
        data=tuple(_counts(session, name) for name in session.splits()),
        config=yaml.safe_dump(resolved(config), sort_keys=False, allow_unicode=True),
        files=tuple((name, what) for name, what in FILES if (session.run_dir / name).exists()),
    )
    path = session.run_dir / "report.html"
    if jax.process_index() == 0:
        reporting.write(path, report)
    return path


HEADLINES = {
    "reward accuracy": "the policy's implicit reward is higher for the chosen response in {} (chance: 50 %)",
    "likelihood accuracy": "the chosen response is the likelier one, a token, in {}",
}


def _headline(tables: tuple[Comparison, ...]) -> tuple[str, ...]:
    """A sentence on held-out pairs: what says most, before and after."""
    parts = []
    for row in (row for table in tables for row in table.rows if row.name in HEADLINES):
        before = "" if row.by_definition else f"{100 * row.before:.0f} → "
        parts.append(HEADLINES[row.name].format(f"{before}{100 * row.after:.0f} %"))
    return (f"Of {tables[0].pairs} held-out pairs: {'; '.join(parts)}.",) if parts else ()


def write_evaluation(
    directory: Path,
    session: Session,
    done: Evaluation | None,
    judging: tuple[Grid, ...],
    subjects: tuple[Subject, Subject],
) -> Path:
    """evaluation.html of models that are not those of the run; returns its path."""
    config = session.config
    facts = [
        *((one.name, one.source) for one in subjects),
        ("software", f"tisdpo_jax {__version__}, jax {jax.__version__}"),
    ]
    report = Report(
        title=directory.name,
        facts=tuple(facts),
        measures=done.grids() if done is not None else (),
        judging=judging,
        data=(done.data,) if done is not None else (),
        config=yaml.safe_dump(resolved(config), sort_keys=False, allow_unicode=True),
        files=tuple((name, what) for name, what in FILES if (directory / name).is_file()),
    )
    path = directory / "evaluation.html"
    if jax.process_index() == 0:
        reporting.write(path, report)
    return path


def _facts(session: Session) -> tuple[tuple[str, str], ...]:
    mesh = ", ".join(f"{name} {size}" for name, size in session.mesh.shape.items())
    lora = f"LoRA rank {session.config.lora.rank}" if session.lora else "all parameters"
    return (
        ("model", interchange.model_name(session.model_path)),
        ("trained", lora),
        ("token weights", f"construction {session.config.contrast.construction}, {session.config.weights.method}"),
        ("training pairs", f"{len(session.train)} from {session.config.data.train}"),
        ("devices", f"{jax.device_count()} {jax.devices()[0].device_kind} ({mesh}), {jax.process_count()} process(es)"),
        ("software", f"tisdpo_jax {__version__}, jax {jax.__version__}"),
    )


def _counts(session: Session, split: str) -> DataCounts:
    return counts(session.split(split), {"train": "training", "eval": "held out"}[split])
