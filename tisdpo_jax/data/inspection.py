"""What a record has become, for eyes: tokens with mask, position and weight; and the counts of a file."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from tisdpo_jax.data.encoded import EncodedPair, EncodedSet
from tisdpo_jax.data.template import Tokenizer

SIDES = ("chosen", "rejected")
QUANTILES = (0.0, 0.5, 0.9, 0.99, 1.0)


def inspect_text(
    encoded: EncodedSet,
    tokenizer: Tokenizer,
    index: int,
    weights: npt.NDArray[np.floating] | None = None,
    side: int | None = None,
) -> str:
    """Tables of the tokens of one pair.

    Args:
        encoded: the pairs.
        tokenizer: what made the ids.
        index: which pair.
        weights: [2, N] token weights of that pair; None takes those that the record brought, if any.
        side: 0 chosen, 1 rejected; None shows both.
    """
    if not -len(encoded.pairs) <= index < len(encoded.pairs):
        raise IndexError(f"{encoded.source}: pair {index} of {len(encoded.pairs)}")
    pair = encoded.pairs[index]
    lines = [f"{pair.origin}  id {pair.id}" + _cuts(pair)]
    for s in range(2) if side is None else [side]:
        lines += ["", *_side_table(pair, tokenizer, s, _side_weights(pair, s, weights))]
    for name, ids in pair.prompts.items():
        if name != "main":
            lines += ["", f"prompt of the {name} view, {len(ids)} tokens: {tokenizer.decode(ids)!r}"]
    return "\n".join(lines)


def _side_weights(
    pair: EncodedPair, side: int, weights: npt.NDArray[np.floating] | None
) -> npt.NDArray[np.floating] | None:
    if weights is not None:
        return weights[side]
    return (pair.chosen_weights, pair.rejected_weights)[side]


def _cuts(pair: EncodedPair) -> str:
    cuts = [name for name in ("prompt", *SIDES) if getattr(pair, f"truncated_{name}")]
    return f"  cut: {', '.join(cuts)}" if cuts else ""


def _side_table(
    pair: EncodedPair, tokenizer: Tokenizer, side: int, weights: npt.NDArray[np.floating] | None
) -> list[str]:
    response = (pair.chosen, pair.rejected)[side]
    lines = [
        f"{SIDES[side]}: {len(pair.prompt)} prompt tokens, {len(response)} response tokens",
        f"{'position':>8}  {'id':>7}  {'mask':<8}  {'weight':>8}  token",
    ]
    for position, token in enumerate([*pair.prompt.tolist(), *response.tolist()]):
        element = position - len(pair.prompt)
        mask = "response" if element >= 0 else "prompt"
        weight = f"{weights[element]:8.3f}" if element >= 0 and weights is not None else " " * 8
        lines.append(f"{position:8d}  {token:7d}  {mask:<8}  {weight}  {tokenizer.decode([token])!r}")
    return lines


def file_summary(encoded: EncodedSet, listed: int = 20) -> str:
    """Counts of a whole source: records, rejections (the first `listed` by name), token lengths, what was cut."""
    lines = [encoded.summary()]
    if encoded.pairs:
        lengths = {
            "prompt": [len(pair.prompt) for pair in encoded.pairs],
            **{side: [len(getattr(pair, side)) for pair in encoded.pairs] for side in SIDES},
        }
        for name in encoded.pairs[0].prompts:
            if name != "main":
                lengths[f"{name} prompt"] = [len(pair.prompts[name]) for pair in encoded.pairs]
        labels = ("min", "median", "90 %", "99 %", "max")
        lines.append(f"  {'tokens':<14}" + "".join(f"{label:>8}" for label in labels))
        for name, values in lengths.items():
            numbers = np.quantile(values, QUANTILES, method="higher")
            lines.append(f"  {name:<14}" + "".join(f"{int(number):>8}" for number in numbers))
        padded = 2 * max(len(pair.prompt) + max(len(pair.chosen), len(pair.rejected)) for pair in encoded.pairs)
        lines.append(
            f"  a pair takes {encoded.lengths().mean():.0f} tokens on average, its prompt counted once; "
            f"padded to the longest it would take {padded}"
        )
    if encoded.rejections:
        lines.append("rejected:")
        lines += [f"  {rejection}" for rejection in encoded.rejections[:listed]]
        if len(encoded.rejections) > listed:
            lines.append(f"  ... and {len(encoded.rejections) - listed} more")
    return "\n".join(lines)
