"""Pictures of token weights: what a run's report shows of them, and a directory of its own from cached scores."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tisdpo_jax import metrics, reporting
from tisdpo_jax.artifacts import peek
from tisdpo_jax.config import Experiment
from tisdpo_jax.data import EncodedSet, recorded_columns
from tisdpo_jax.errors import ConfigError
from tisdpo_jax.estimators import Estimator, Formula
from tisdpo_jax.metrics import TokenMean, token_means
from tisdpo_jax.reporting import Grid, Report, SidePicture, TokenPicture, WeightSection, extreme_grid
from tisdpo_jax.stages import Text, open_data, open_tokenizer, score_path, weights_of_pairs

Columns = dict[str, np.ndarray]
SIDES = ("chosen", "rejected")


def write_pictures(
    config: Experiment, encoded: EncodedSet, tokenizer: Any, split: str, directory: Path, indices: Sequence[int]
) -> list[Path]:
    """index.html, tokens.json, and PNGs of pairs and of distributions; returns their paths.

    Raises: ConfigError when the run has no weights for these pairs.
    """
    columns = _weighted_columns(config, encoded, split)
    section = weight_section(config.weights, encoded, columns)
    assert section is not None
    drawn = pictures(tokenizer, encoded, columns, indices)
    directory.mkdir(parents=True, exist_ok=True)
    written = [directory / "index.html", directory / "tokens.json"]
    report = Report(
        title=f"Token weights: {encoded.source}",
        facts=(
            ("run", config.run_dir),
            ("construction", config.contrast.construction),
            ("weights", _in_words(config.weights)),
            ("pairs", f"{len(encoded):,}"),
        ),
        pictures=drawn,
        weights=section,
        weighted={"train": "training", "eval": "held-out"}[split],
        tokens=token_grids(tokenizer, encoded, columns),
    )
    reporting.write(written[0], report)
    written[1].write_text(_tokens_json(tokenizer, encoded, columns), encoding="utf-8")
    for index, picture in zip(indices, drawn, strict=True):
        written.append(directory / f"pair-{index}.png")
        reporting.pair_png(picture, written[-1])
    for name, label, kinds in (
        ("weights", "log-weight", ("chosen_log_weights", "rejected_log_weights")),
        ("log-ratios", "log π⁺/π⁻", ("chosen_log_ratios", "rejected_log_ratios")),
    ):
        values = [getattr(section, kind) for kind in kinds]
        if values[0] is not None:
            written.append(directory / f"{name}.png")
            reporting.distribution_png("", label, dict(zip(SIDES, values, strict=True)), written[-1])
    return written


def pictures_of_run(config: Experiment, split: str, indices: Iterable[int]) -> tuple[TokenPicture, ...]:
    """Heat maps of pairs of a run that has its scores on disk; a notebook shows each as it is.

    Args:
      split: "train" or "eval".
      indices: numbers of pairs; those that there are not are left out.

    Raises: ConfigError when the run has no weights for these pairs.
    """
    tokenizer = open_tokenizer(config)
    train, held_out = open_data(config, Text.of(config, tokenizer))
    encoded = train if split == "train" else held_out
    if encoded is None:
        raise ConfigError("there are no held-out pairs; set data.eval or data.eval_fraction")
    return pictures(tokenizer, encoded, _weighted_columns(config, encoded, split), indices)


def _weighted_columns(config: Experiment, encoded: EncodedSet, split: str) -> Columns:
    columns = cached_columns(config, encoded, split)
    if "token_weights" not in columns:
        raise ConfigError(
            f"{Path(config.run_dir) / 'scores'}: no scores of pi+ and pi- for these pairs; `tisdpo score` "
            "makes them, with this configuration (contrast.construction not none, scores cached)"
        )
    return columns


def cached_columns(config: Experiment, encoded: EncodedSet, split: str) -> Columns:
    """What the run has on disk for these pairs: `plus_logps`, `minus_logps` and the weights that follow from them.

    Weights that the records bring themselves are taken where there are no scores.
    """
    folder = Path(config.run_dir).expanduser()
    found = {name: peek(score_path(folder, split, name), encoded.fingerprint()) for name in ("plus", "minus")}
    plus, minus = found["plus"], found["minus"]
    if plus is None or minus is None:
        return dict(recorded_columns(encoded, encoded.elements()))
    mask = encoded.mask(plus.shape[-1])
    columns = {"plus_logps": plus, "minus_logps": minus}
    if not {read.column for read in config.weights.reads} <= set(columns):
        return columns
    return columns | {"token_weights": weights_of_pairs(config.weights, columns, mask)}


def _in_words(estimator: Any) -> str:
    options = {name: value for name, value in dataclasses.asdict(estimator).items() if name != "method"}
    return ", ".join([estimator.method, *(f"{name} {value:g}" for name, value in options.items())])


def weight_section(estimator: Estimator, encoded: EncodedSet, columns: Columns) -> WeightSection | None:
    """Statistics and distributions; None where there are no weights."""
    if "token_weights" not in columns:
        return None
    limits = None
    if isinstance(estimator, Formula):
        limits = metrics.weight_limits(**estimator.formula)
    weights = columns["token_weights"]
    mask = encoded.mask(weights.shape[-1]) > 0
    statistics = metrics.weight_statistics(weights, mask, limits=limits)
    logs = [_logs(weights[:, side][mask[:, side]]) for side in (0, 1)]
    ratios: list[np.ndarray | None] = [None, None]
    if "plus_logps" in columns:
        contrast = columns["plus_logps"] - columns["minus_logps"]
        ratios = [contrast[:, side][mask[:, side]] for side in (0, 1)]
    return WeightSection(*statistics, *logs, *ratios)


def token_grids(tokenizer: Any, encoded: EncodedSet, columns: Columns) -> tuple[Grid, ...]:
    """For each side the tokens with the most extreme mean log-weights; none where there are no weights."""
    if "token_weights" not in columns:
        return ()
    found = []
    for side, means in _means(encoded, columns).items():
        if means:
            names = [token_text(tokenizer, one.token) for one in means]
            found.append(extreme_grid(f"Tokens of {side} responses by mean log-weight", means, names))
    return tuple(found)


def pictures(tokenizer: Any, encoded: EncodedSet, columns: Columns, indices: Iterable[int]) -> tuple[TokenPicture, ...]:
    """Heat maps of the pairs with these numbers, of those that there are; none where there are no weights."""
    if "token_weights" not in columns:
        return ()
    return tuple(picture(tokenizer, encoded, columns, index) for index in indices if index < len(encoded))


def picture(tokenizer: Any, encoded: EncodedSet, columns: Columns, index: int) -> TokenPicture:
    """One pair with the weights, and the log-likelihoods under pi+ and pi-, that stand in the columns."""
    pair = encoded.groups[index]

    def side(number: int, ids: np.ndarray) -> SidePicture:
        def row(name: str) -> list[float] | None:
            return columns[name][index, number, : len(ids)].tolist() if name in columns else None

        pieces = reporting.decode_pieces(tokenizer, ids.tolist())
        return SidePicture(pieces, row("token_weights") or [], row("plus_logps"), row("minus_logps"))

    prompt = str(tokenizer.decode(pair.prompt, skip_special_tokens=False))
    return TokenPicture(pair.id, prompt, (side(0, pair.chosen), side(1, pair.rejected)))


def token_text(tokenizer: Any, token: int) -> str:
    """A token alone, with its leading space; as the vocabulary writes it where it is no whole character."""
    raw = str(tokenizer.convert_ids_to_tokens(token))
    if raw.startswith("▁"):  # SentencePiece loses the space when it decodes a token alone
        return f"“{raw.replace('▁', ' ')}”"
    text = str(tokenizer.decode([token], skip_special_tokens=False))
    shown = raw if "\ufffd" in text or not text else text
    return "“" + shown.replace("\n", "↵").replace("\t", "⇥") + "”"


def _means(encoded: EncodedSet, columns: Columns, minimum: int = 5) -> dict[str, list[TokenMean]]:
    weights = columns["token_weights"]
    found = {}
    for number, side in enumerate(SIDES):
        responses = [getattr(pair, side) for pair in encoded.groups]
        tokens = np.concatenate([*responses, np.zeros(0, np.int32)])
        pairs = np.repeat(np.arange(len(responses)), [len(ids) for ids in responses])
        values = np.concatenate([*(weights[i, number, : len(ids)] for i, ids in enumerate(responses)), np.zeros(0)])
        with np.errstate(divide="ignore", invalid="ignore"):  # what has no logarithm is left out
            found[side] = token_means(tokens, np.log(values), pairs, minimum=minimum)
    return found


def _tokens_json(tokenizer: Any, encoded: EncodedSet, columns: Columns) -> str:
    content = {
        side: [{"text": token_text(tokenizer, one.token), **dataclasses.asdict(one)} for one in means]
        for side, means in _means(encoded, columns).items()
    }
    return json.dumps(reporting.as_plain(content), indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def _logs(weights: np.ndarray) -> np.ndarray:
    return np.log(weights[weights > 0])
