"""What a record has become, for eyes: tokens with mask, position and weight; and the counts of a file."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from tisdpo_jax.data.encoded import EncodedGroup, EncodedSet, response_names
from tisdpo_jax.data.records import list_invalid
from tisdpo_jax.data.template import Tokenizer

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
    if not -len(encoded) <= index < len(encoded):
        raise IndexError(f"{encoded.source}: pair {index} of {len(encoded)}")
    pair = encoded.groups[index]
    weights = pair.weights if weights is None else weights  # type: ignore[assignment]  # either has one for each side
    cuts = ["prompt"] * pair.truncated_prompt
    cuts += [name for name, cut in zip(response_names(len(pair.responses)), pair.truncated, strict=False) if cut]
    lines = [f"{pair.origin}  id {pair.id}" + (f"  cut: {', '.join(cuts)}" if cuts else "")]
    for s in range(len(pair.responses)) if side is None else [side]:
        lines += ["", *_side_table(pair, tokenizer, s, None if weights is None else weights[s])]
    for name, ids in pair.prompts.items():
        if name != "main":
            lines += ["", f"prompt of the {name} view, {len(ids)} tokens: {tokenizer.decode(ids)!r}"]
    return "\n".join(lines)


def _side_table(
    pair: EncodedGroup, tokenizer: Tokenizer, side: int, weights: npt.NDArray[np.floating] | None
) -> list[str]:
    response, name = pair.responses[side], response_names(len(pair.responses))[side]
    lines = [
        f"{name}: {len(pair.prompt)} prompt tokens, {len(response)} response tokens",
        f"{'position':>8}  {'id':>7}  {'mask':<8}  {'weight':>8}  token",
    ]
    for position, token in enumerate([*pair.prompt.tolist(), *response.tolist()]):
        element = position - len(pair.prompt)
        mask = "response" if element >= 0 else "prompt"
        weight = f"{weights[element]:8.3f}" if element >= 0 and weights is not None else " " * 8
        lines.append(f"{position:8d}  {token:7d}  {mask:<8}  {weight}  {tokenizer.decode([token])!r}")
    return lines


def file_summary(encoded: EncodedSet, listed: int = 20) -> str:
    """Counts of a whole source: records, invalid (the first `listed` by name), token lengths, what was cut."""
    lines = [encoded.summary()]
    if len(encoded):
        sizes = encoded.responses.sizes
        lengths = {"prompt": encoded.prompts().sizes, **dict(zip(response_names(encoded.size), sizes.T, strict=True))}
        for name in encoded.groups[0].prompts:
            if name != "main":
                lengths[f"{name} prompt"] = encoded.prompts(name).sizes
        labels = ("min", "median", "90 %", "99 %", "max")
        lines.append(f"  {'tokens':<14}" + "".join(f"{label:>8}" for label in labels))
        for name, values in lengths.items():
            numbers = np.quantile(values, QUANTILES, method="higher")
            lines.append(f"  {name:<14}" + "".join(f"{int(number):>8}" for number in numbers))
        padded = encoded.size * int((encoded.prompts().sizes + sizes.max(1)).max())
        lines.append(
            f"  a pair takes {encoded.lengths().mean():.0f} tokens on average, its prompt counted once; "
            f"padded to the longest it would take {padded}"
        )
    if encoded.invalid:
        lines += ["invalid:", *list_invalid(encoded.invalid, listed)]
    return "\n".join(lines)
