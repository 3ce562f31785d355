"""What `inspect` prints."""

from __future__ import annotations

import numpy as np
import pytest

from tisdpo_jax.data import EncodedSet, InvalidRecord, Message, Pair, PairSet, encode_pairs, file_summary, inspect_text
from tisdpo_jax.testing.tokenizer import tiny_tokenizer

TOKENIZER = tiny_tokenizer()


def encode(count: int = 1, bad: int = 0, **options: object) -> EncodedSet:
    pairs = tuple(
        Pair(f"id{i}", (Message("user", "hi there"),), "yes, I can", "no", f"f.jsonl:{i + 1}") for i in range(count)
    )
    invalid = tuple(InvalidRecord(f"f.jsonl:{100 + i}", "empty response", "chosen") for i in range(bad))
    settings = {"template": "auto", "max_length": 60, "max_response": 30, **options}
    return encode_pairs(PairSet(pairs, invalid, "f.jsonl"), TOKENIZER, **settings)  # type: ignore[arg-type]  # settings of several types


def rows(text: str) -> list[tuple[int, int, str, str, str]]:
    """(position, id, mask, weight, token) of every line that is one."""
    lines = [line for line in text.splitlines() if line[:8].strip().isdigit()]
    return [(int(x[:8]), int(x[10:17]), x[19:27].strip(), x[29:37].strip(), x[39:]) for x in lines]


def test_table_shows_every_token_with_its_place_mask_and_weight() -> None:
    found = encode()
    pair = found.groups[0]
    weights = np.arange(60, dtype=np.float32).reshape(2, 30)
    for side, response in enumerate((pair.chosen, pair.rejected)):
        table = rows(inspect_text(found, TOKENIZER, 0, weights=weights, side=side))
        ids = [*pair.prompt.tolist(), *response.tolist()]
        assert [row[0] for row in table] == list(range(len(ids)))
        assert [row[1] for row in table] == ids
        assert [row[4] for row in table] == [repr(TOKENIZER.decode([token])) for token in ids]
        assert [row[2] for row in table] == ["prompt"] * len(pair.prompt) + ["response"] * len(response)
        shown = [f"{weights[side, n]:.3f}" for n in range(len(response))]
        assert [row[3] for row in table] == [""] * len(pair.prompt) + shown
    both = inspect_text(found, TOKENIZER, 0)
    assert "f.jsonl:1  id id0" in both
    assert "chosen: " in both
    assert "rejected: " in both
    assert {row[3] for row in rows(both)} == {""}


def test_cuts_and_views_are_told() -> None:
    found = encode(max_length=12, max_response=3, contrast=("Be kind.", "Be unkind."))
    text = inspect_text(found, TOKENIZER, 0)
    assert "cut: prompt, chosen" in text
    assert "prompt of the plus view" in text
    assert "Be unkind." in text
    with pytest.raises(IndexError, match="pair 1 of 1"):
        inspect_text(found, TOKENIZER, 1)


def test_file_summary_counts_everything() -> None:
    text = file_summary(encode(count=5, bad=3, max_response=3, contrast=("a", "b")), listed=2)
    assert "8 records, 5 usable, 3 invalid" in text
    assert "3  empty response" in text
    assert "5  pairs with the end of the chosen cut" in text
    assert "f.jsonl:100: empty response (chosen)" in text
    assert "... and 1 more" in text
    lengths = {line.split("  ")[1]: line.split()[-1] for line in text.splitlines() if "prompt  " in line}
    assert set(lengths) == {"prompt", "plus prompt", "minus prompt"}
    assert "a pair takes 18 tokens on average, its prompt counted once" in text  # 13 + 3 + 2
    assert "padded to the longest it would take 32" in text  # 2 * (13 + 3)
    assert "0 usable" in file_summary(encode(count=0, bad=1))
