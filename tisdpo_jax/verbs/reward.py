"""A reward model looked at and given away: measured on held-out pairs, exported, reported."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np

from tisdpo_jax import interchange, reporting
from tisdpo_jax.artifacts import digest, write_text
from tisdpo_jax.data import EncodedSet, Message, Template, adds_bos, frame, open_template, render
from tisdpo_jax.interchange import read_json
from tisdpo_jax.metrics import RewardEvaluation, RewardScores, evaluate_rewards
from tisdpo_jax.reporting import Grid, Report, as_plain, grid_text, reward_grids
from tisdpo_jax.roles import Frozen, bind, policy_role
from tisdpo_jax.stages import Base, Session, Splits, check_finite, models, passing, scorer, targets
from tisdpo_jax.training import collect, one_pass
from tisdpo_jax.types import Params
from tisdpo_jax.verbs import measure
from tisdpo_jax.verbs.report import SOFTWARE, write_page


def finish_reward_model(session: Session, pairs: Splits, base: Base, trained: Params) -> list[Path]:
    """Measured, exported, reported: the end of `tisdpo run`. Returns what was written."""
    done = None
    if pairs.eval is None and not session.config.evaluation.data:
        session.say("no held-out pairs (data.eval, data.eval_fraction): nothing is measured\n")
    else:
        done = evaluate_reward_model(session, pairs, base, trained)
    written = export_reward_model(session, pairs, base, trained)
    return [written, _report(session, pairs, done if not session.config.evaluation.data else None)]


def evaluate_reward_model(session: Session, pairs: Splits, base: Base, trained: Params) -> RewardEvaluation:
    """On its held-out pairs or on `evaluation.data`, whose results go into a directory of their own."""
    section, directory = session.config.evaluation, session.run_dir
    if section.data:
        directory = measure.evaluation_dir(session.config)
        directory.mkdir(parents=True, exist_ok=True)
        pairs = measure.open_pairs(session)
    encoded = pairs.split("eval")
    frozen: Frozen = {"params": {"base": base.frozen()}, "lora": {}}
    variables = bind(policy_role(lora=session.lora), trained, frozen)
    scores = _scores(session, encoded, variables)
    done = evaluate_rewards(scores, resamples=section.resamples, seed=section.seed)
    for grid in reward_grids(done):
        session.say(grid_text(grid) + "\n")
    _save(directory, session, encoded, scores, done)
    if section.data:
        page = write_page(directory / "evaluation.html", _page(session, pairs, reward_grids(done)), session.config)
        session.say(f"written  {page}")
    return done


def check_exportable(session: Session, pairs: Splits) -> None:
    """Raises UserError, before anything is trained, where no export would score as training does."""
    _companions(session, pairs)


def export_reward_model(session: Session, pairs: Splits, base: Base, trained: Params) -> Path:
    """Writes export/, whose tisdpo_reward.json has the temperature, where held-out pairs were measured."""
    tokenizer, source, template = _companions(session, pairs)
    whole, result = models.fold_in(session, base, trained), session.run_dir / measure.RESULT
    measured: dict[str, Any] = read_json(result)["evaluation"] if result.is_file() else {}
    about = {
        "temperature": measured.get("temperature"),
        "measures": measured.get("measures"),
        "template": digest(template.identity),
    }
    directory = session.run_dir / "export"
    named: dict[str, Any] = {"tokenizer": tokenizer, "chat_template": source, "base": session.model_path}
    interchange.save_reward_model(directory, whole, session.model.config, about=about, **named)
    return directory


def _companions(session: Session, pairs: Splits) -> tuple[Any, str, Template]:
    """The tokenizer and the template to export, and the template of training."""
    choice, tokenizer = session.config.data.template, session.tokenizer
    template, talk = open_template(choice, tokenizer), [Message("user", "a")]
    written = template.write([*talk, Message("assistant", "b")])
    wanted = render(template, frame(template, talk), talk, "b").text
    held = {token for token, what in tokenizer.added_tokens_decoder.items() if what.content in template.source}
    held |= set(tokenizer(wanted).input_ids)
    for split in pairs.splits():
        encoded = pairs.split(split)
        held |= {*np.unique(encoded.responses.values).tolist(), *np.unique(encoded.prompts().values).tolist()}
    bos = adds_bos(tokenizer) and not written.startswith(tokenizer.bos_token) and choice != "hh"  # whose Jinja has it
    source = interchange.ended(template.source, written, wanted, template.eos, bos=bos)
    padded = interchange.with_padding(tokenizer, session.model.config.vocab_size, held=held)
    return padded, source, template


def _scores(session: Session, encoded: EncodedSet, variables: Any) -> RewardScores:
    config, groups = session.config, encoded.groups
    rows, batches = passing(session, encoded, encoded.elements(), "main")
    run = scorer(session.model, "main", config.model.head_chunk, "rewards")
    watched: Any = {"label": "evaluate", "interrupt": session.interrupt, "shown": config.logging.progress}
    everything = one_pass(rows, batches, session.mesh, **watched)
    rewards = collect(functools.partial(run, variables), everything, len(groups)).astype(np.float64)
    check_finite("rewards", rewards, encoded)
    named = [None if one.strength is None else str(one.strength) for one in groups]
    return RewardScores(
        rewards,
        encoded.responses.sizes.astype(np.float64),
        targets(config.strengths, encoded).astype(np.float64),
        prompts=[repr(pair.messages) for pair in groups],
        strengths=named if any(named) else (),
        groups=[pair.subset for pair in groups] if config.evaluation.subset else (),
    )


def _save(directory: Path, session: Session, encoded: EncodedSet, scores: RewardScores, done: RewardEvaluation) -> None:
    """evaluation.json: every number of every table; evaluation_pairs.jsonl: a line for each pair."""
    if jax.process_index() != 0:
        return
    counts = measure.counts(encoded, "evaluated")
    data = {"source": counts.source, "records": counts.records, "used": counts.used, "invalid": len(counts.invalid)}
    content = {"model": str(session.model_path), "data": data, "evaluation": as_plain(done)}
    write_text(directory / measure.RESULT, json.dumps(content, indent=2, allow_nan=False, ensure_ascii=False) + "\n")
    lines = []
    for pair, (chosen, rejected), target in zip(encoded.groups, scores.rewards.tolist(), scores.target, strict=True):
        row = {"id": pair.id, "origin": pair.origin, "subset": pair.subset, "strength": pair.strength}
        row |= {"target": target, "chosen_reward": chosen, "rejected_reward": rejected, "margin": chosen - rejected}
        lines.append(json.dumps(as_plain(row), ensure_ascii=False) + "\n")
    write_text(directory / measure.PAIRS, "".join(lines))


def _page(session: Session, pairs: Splits, grids: tuple[Grid, ...], **parts: Any) -> Report:
    config, model = session.config, interchange.model_name(session.model_path)
    kept = {"train": "training", "eval": "held out"}
    return Report(
        title=f"{config.loss.title} of {model}: {session.run_dir.name}",
        facts=(
            ("model", model),
            ("trained", f"LoRA rank {config.lora.rank}, and the head" if session.lora else "all parameters"),
            SOFTWARE,
        ),
        measures=grids,
        data=tuple(measure.counts(pairs.split(name), kept[name]) for name in pairs.splits() if len(pairs.split(name))),
        **parts,
    )


def _report(session: Session, pairs: Splits, done: RewardEvaluation | None) -> Path:
    """report.html of the run."""
    history = reporting.read_metrics(session.run_dir / "metrics.jsonl")
    headline: tuple[str, ...] = ()
    if done is not None:
        right = 100 * done.measures[0].interval.value
        headline = (f"Of {done.pairs} held-out pairs, the chosen response has the higher reward in {right:.0f} %.",)
    page = _page(session, pairs, reward_grids(done) if done else (), history=history, headline=headline)
    return write_page(session.run_dir / "report.html", page, session.config)
