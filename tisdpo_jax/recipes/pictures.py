"""Pictures of token weights: what a run's report shows of them, and a directory of its own from cached scores."""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tisdpo_jax import metrics, reporting
from tisdpo_jax.config import Experiment
from tisdpo_jax.data import EncodedSet, recorded_columns
from tisdpo_jax.errors import ConfigError
from tisdpo_jax.estimators import Estimator, Formula
from tisdpo_jax.interchange import load_tokenizer
from tisdpo_jax.reporting import Distribution, SidePicture, TokenPicture
from tisdpo_jax.stages import Columns, model_path, open_data, peek, weights_of_pairs

SIDES = ("chosen", "rejected")
_INCOMPLETE = "\ufffd"


def write_pictures(
    config: Experiment, encoded: EncodedSet, tokenizer: Any, split: str, directory: Path, indices: Sequence[int]
) -> list[Path]:
    """index.html, tokens.json, and PNGs of pairs and of distributions; returns their paths.

    Raises: ConfigError when the run has no weights for these pairs.
    """
    columns = _weighted_columns(config, encoded, split)
    options = {name: value for name, value in dataclasses.asdict(config.weights).items() if name != "method"}
    report = reporting.Report(
        title=f"Token weights: {encoded.source}",
        facts=(
            ("run", config.run_dir),
            ("construction", config.contrast.construction),
            ("weights", ", ".join([config.weights.method, *(f"{name} {value:g}" for name, value in options.items())])),
            ("pairs", f"{len(encoded):,}"),
        ),
        pictures=pictures(tokenizer, encoded, columns, indices),
        weighted={"train": "training", "eval": "held-out"}[split],
        **weight_parts(config.weights, tokenizer, encoded, columns),
    )
    directory.mkdir(parents=True, exist_ok=True)
    written = [directory / "index.html", directory / "tokens.json"]
    reporting.write(written[0], report)
    tokens = {
        side: [{"text": token_text(tokenizer, one.token), **dataclasses.asdict(one)} for one in means]
        for side, means in _means(encoded, columns).items()
    }
    text = json.dumps(reporting.as_plain(tokens), indent=1, ensure_ascii=False, allow_nan=False)
    written[1].write_text(text + "\n", encoding="utf-8")
    for index, picture in zip(indices, report.pictures, strict=True):
        written.append(directory / f"pair-{index}.png")
        reporting.pair_png(picture, written[-1])
    for name, distribution in zip(("weights", "log-ratios"), report.distributions, strict=False):
        written.append(directory / f"{name}.png")
        reporting.distribution_png(distribution, written[-1])
    return written


def pictures_of_run(config: Experiment, split: str, indices: Iterable[int]) -> tuple[TokenPicture, ...]:
    """Heat maps of pairs of a run that has its scores on disk; a notebook shows each as it is.

    Args:
      split: "train" or "eval".
      indices: numbers of pairs; those that there are not are left out.

    Raises: ConfigError when the run has no weights for these pairs.
    """
    path = Path(config.model.tokenizer).expanduser() if config.model.tokenizer else model_path(config)
    tokenizer = load_tokenizer(path)
    train, held_out = open_data(config, tokenizer)
    encoded = train if split == "train" else held_out
    if encoded is None:
        raise ConfigError("there are no held-out pairs; set data.eval or data.eval_fraction")
    return pictures(tokenizer, encoded, _weighted_columns(config, encoded, split), indices)


def _weighted_columns(config: Experiment, encoded: EncodedSet, split: str) -> Columns:
    columns = cached_columns(config, encoded, split)
    if "token_weights" not in columns:
        raise ConfigError(
            f"{Path(config.run_dir) / 'scores'}: no scores of pi+ and pi- for these pairs; `tisdpo score` "
            "makes them, with this configuration (contrast.construction not none, contrast.scores cached)"
        )
    return columns


def cached_columns(config: Experiment, encoded: EncodedSet, split: str) -> Columns:
    """What the run has on disk for these pairs: `plus_logps`, `minus_logps` and the weights that follow from them.

    Weights that the records bring themselves are taken where there are no scores.
    """
    folder, tokens = Path(config.run_dir).expanduser() / "scores", encoded.fingerprint()
    plus, minus = (peek(folder / f"{split}-{name}.safetensors", tokens) for name in ("plus", "minus"))
    if plus is None or minus is None:
        return dict(recorded_columns(encoded, encoded.elements()))
    columns = {"plus_logps": plus, "minus_logps": minus}
    if {read.column for read in config.weights.reads} <= set(columns):
        mask, rows = encoded.mask(plus.shape[-1]), np.arange(len(encoded))
        columns["token_weights"] = weights_of_pairs(config.weights, columns, mask, rows)
    return columns


def weight_parts(estimator: Estimator, tokenizer: Any, encoded: EncodedSet, columns: Columns) -> dict[str, Any]:
    """What a report says of all weights, by its fields: statistics, distributions, and for each side the tokens with
    the most extreme mean log-weights; nothing where there are no weights."""
    if "token_weights" not in columns:
        return {}
    weights = columns["token_weights"]
    mask = encoded.mask(weights.shape[-1]) > 0
    limits = metrics.weight_limits(**estimator.formula) if isinstance(estimator, Formula) else None
    real = _by_side(weights, mask)
    logs = {side: np.log(values[values > 0]) for side, values in real.items()}
    distributions = [Distribution("Distribution", "natural logarithm of the weight", logs)]
    if "plus_logps" in columns:
        ratios = _by_side(columns["plus_logps"] - columns["minus_logps"], mask)
        distributions.append(Distribution("Before clamping", "log π⁺/π⁻ of a token", ratios))
    tokens = [
        reporting.extreme_grid(
            f"Tokens of {side} responses by mean log-weight", means, [token_text(tokenizer, one.token) for one in means]
        )
        for side, means in _means(encoded, columns).items()
        if means
    ]
    statistics = reporting.weight_grid(*metrics.weight_statistics(weights, mask, limits=limits))
    return {"weights": (statistics,), "distributions": tuple(distributions), "tokens": tuple(tokens)}


def pictures(tokenizer: Any, encoded: EncodedSet, columns: Columns, indices: Iterable[int]) -> tuple[TokenPicture, ...]:
    """Heat maps of the pairs with these numbers, of those that there are; none where there are no weights."""
    if "token_weights" not in columns:
        return ()
    return tuple(_picture(tokenizer, encoded, columns, index) for index in indices if index < len(encoded))


def _picture(tokenizer: Any, encoded: EncodedSet, columns: Columns, index: int) -> TokenPicture:
    """One pair with the weights, and the log-likelihoods under pi+ and pi-, that stand in the columns."""
    pair, sides = encoded.groups[index], []
    for number, ids in enumerate((pair.chosen, pair.rejected)):
        kept = [columns.get(name) for name in ("token_weights", "plus_logps", "minus_logps")]
        rows: Any = (None if column is None else column[index, number, : len(ids)].tolist() for column in kept)
        sides.append(SidePicture(decode_pieces(tokenizer, ids.tolist()), *rows))
    prompt = str(tokenizer.decode(pair.prompt, skip_special_tokens=False))
    return TokenPicture(pair.id, prompt, (sides[0], sides[1]))


def decode_pieces(tokenizer: Any, ids: Sequence[int]) -> list[str]:
    """One piece of text a token, special tokens included: `"".join(pieces)` is the decoded text of whole characters.

    A token that ends inside a character gets an empty piece, and the one that completes the character gets it
    whole; a character that is never completed shows as replacement signs on the last token. Decoding a token
    alone would not do: byte-level tokens are no text, and SentencePiece drops a leading space.
    """

    def decode(part: Sequence[int]) -> str:
        options = {"skip_special_tokens": False, "clean_up_tokenization_spaces": False}
        return str(tokenizer.decode([int(i) for i in part], **options))

    texts = [decode(ids[:end]) for end in range(len(ids) + 1)]
    ends = list(itertools.accumulate((len(text.rstrip(_INCOMPLETE)) for text in texts), max))  # of whole characters
    pieces = [text[start:end] for text, (start, end) in zip(texts[1:], itertools.pairwise(ends), strict=True)]
    if pieces:
        # A byte-fallback decoder turns whole characters before an incomplete one into replacement signs too:
        # then the rest is what the tokens after the last one that gave some say without them.
        whole = texts[-1].startswith("".join(pieces))
        pieces[-1] += texts[-1][ends[-1] :] if whole else decode(ids[ends.index(ends[-1]) :])
    return pieces


def token_text(tokenizer: Any, token: int) -> str:
    """A token alone, with its leading space; as the vocabulary writes it where it is no whole character."""
    raw = str(tokenizer.convert_ids_to_tokens(token))
    if raw.startswith("▁"):  # SentencePiece loses the space when it decodes a token alone
        return f"“{raw.replace('▁', ' ')}”"
    text = str(tokenizer.decode([token], skip_special_tokens=False))
    shown = raw if _INCOMPLETE in text or not text else text
    return "“" + shown.replace("\n", "↵").replace("\t", "⇥") + "”"


def _means(encoded: EncodedSet, columns: Columns) -> dict[str, list[metrics.TokenMean]]:
    """For each side the mean log-weight of every token."""
    weights = columns["token_weights"].astype(np.float64)
    mask = encoded.mask(weights.shape[-1]) > 0
    with np.errstate(divide="ignore", invalid="ignore"):  # what has no logarithm is left out
        logs = _by_side(np.log(weights), mask)
    pairs = _by_side(np.broadcast_to(np.arange(len(encoded))[:, None, None], mask.shape), mask)
    means = {}
    for side in SIDES:
        tokens = np.concatenate([*(getattr(pair, side) for pair in encoded.groups), np.zeros(0, np.int32)])
        means[side] = metrics.token_means(tokens, logs[side], pairs[side])
    return means


def _by_side(values: np.ndarray, mask: np.ndarray) -> Mapping[str, np.ndarray]:
    """`[n, 2, N]` values of the real tokens of each side."""
    return {side: values[:, number][mask[:, number]] for number, side in enumerate(SIDES)}
