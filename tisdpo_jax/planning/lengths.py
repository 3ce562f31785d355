"""How long real pairs are, where the data themselves cannot be read: a small histogram, and pairs made from it.

`hh_lengths.json` holds 512 of the pairs of Anthropic HH harmless-base (MIT), evenly spaced by their length, as tokens
of SmolLM2's tokenizer in the `hh` template, uncut. It is made by

    python -m tisdpo_jax.planning.lengths PAIRS.jsonl.gz TOKENIZER > tisdpo_jax/planning/hh_lengths.json
"""

from __future__ import annotations

import json
import sys
from importlib import resources
from pathlib import Path

import numpy as np
import numpy.typing as npt

from tisdpo_jax.data import EncodedGroup, EncodedSet

Triples = npt.NDArray[np.int64]
"""[n, 3]: tokens of the prompt, of the chosen and of the rejected response."""

KEPT = 512
CHARACTERS = 4  # of a token of English text, where no tokenizer can count them


def hh_lengths() -> Triples:
    """The histogram that comes with the package, uncut, `[512, 3]`."""
    text = resources.files("tisdpo_jax.planning").joinpath("hh_lengths.json").read_text(encoding="utf-8")
    return np.asarray(json.loads(text)["lengths"], np.int64)


def cut(triples: Triples, *, max_length: int, max_response: int) -> Triples:
    """The lengths that encoding would leave: responses lose their end first, then prompts their beginning."""
    responses = np.minimum(triples[:, 1:], max_response)
    prompts = np.minimum(triples[:, 0], max_length - responses.max(1))
    return np.concatenate([np.maximum(prompts, 1)[:, None], responses], 1)


def full_lengths(*, max_length: int, max_response: int) -> Triples:
    """One pair that is as long as the configuration allows."""
    return np.asarray([[max_length - max_response, max_response, max_response]], np.int64)


def repeat(triples: Triples, count: int) -> Triples:
    """At least `count` pairs: all triples, over and over."""
    return np.tile(triples, (-(-count // len(triples)), 1))


def blank_pairs(triples: Triples, source: str, *, contrast: tuple[str, str] | None = None) -> EncodedSet:
    """Pairs of these lengths that say nothing: what shapes are made of.

    Args:
        triples: lengths of the pairs.
        source: where they come from, as an error would name it.
        contrast: with contrastive prompts, their texts; a token is taken to be `CHARACTERS` long.
    """

    def blank(size: int) -> npt.NDArray[np.int32]:
        return np.zeros(size, np.int32)

    def behind(text: str, prompt: int) -> npt.NDArray[np.int32]:
        return blank(prompt + -(-len(text) // CHARACTERS))

    texts = dict(zip(("plus", "minus"), contrast or (), strict=False))
    groups = []
    for number, (prompt, *responses) in enumerate(triples.tolist()):
        prompts = {"main": blank(prompt), **{view: behind(text, prompt) for view, text in texts.items()}}
        groups.append(EncodedGroup(str(number), source, prompts, tuple(map(blank, responses))))
    return EncodedSet(tuple(groups), (), source)


def measure(encoded: EncodedSet) -> Triples:
    """Lengths of encoded pairs, `[n, 3]`."""
    return np.column_stack([encoded.prompts().sizes, encoded.responses.sizes])


def representative(triples: Triples, count: int = KEPT) -> Triples:
    """`count` of the triples, evenly spaced by their sum."""
    order = np.lexsort((*triples.T, triples.sum(1)))
    return triples[order[((np.arange(count) + 0.5) * len(triples) / count).astype(np.int64)]]


def _main(pairs: str, tokenizer: str) -> None:
    from tisdpo_jax.data import encode_pairs, read_pairs
    from tisdpo_jax.interchange import load_tokenizer

    read = read_pairs(pairs, format="hh")
    encoded = encode_pairs(read, load_tokenizer(Path(tokenizer)), template="hh", max_length=2**30, max_response=2**29)
    kept = representative(measure(encoded)).tolist()
    note = f"{KEPT} of {len(encoded)} pairs of Anthropic HH harmless-base (MIT): tokens of prompt, chosen, rejected"
    rows = ",\n".join(", ".join(map(str, kept[start : start + 8])) for start in range(0, len(kept), 8))
    print(f'{{"note": {json.dumps(note)},\n"lengths": [\n{rows}\n]}}')


if __name__ == "__main__":
    _main(*sys.argv[1:])
