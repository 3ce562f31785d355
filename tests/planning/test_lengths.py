"""Lengths of real pairs: the histogram is real, cutting is that of encoding, and blank pairs have the lengths asked."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tisdpo_jax.data import encode_pairs, read_pairs
from tisdpo_jax.planning.useful import blank_pairs, cut, full_lengths, hh_lengths, measure, repeat
from tisdpo_jax.testing import tiny_tokenizer

DEMO = Path(__file__).resolve().parents[2] / "tisdpo_jax/data/demo/train.jsonl"


def test_the_histogram_is_that_of_hh() -> None:
    lengths = hh_lengths()
    assert lengths.shape == (512, 3) and lengths.min() >= 1
    np.testing.assert_allclose(lengths.mean(0), [126, 40, 50], atol=3)


@pytest.mark.slow
def test_the_histogram_is_made_again_from_the_data(shared: Path) -> None:
    model = Path("~/.cache/tisdpo_jax/SmolLM2-135M-Instruct.Q4_1.gguf").expanduser()
    if not model.exists():
        pytest.skip("needs the tokenizer of the demo model, which `make demo` downloads")
    from tisdpo_jax.interchange import load_tokenizer

    pairs = read_pairs(str(shared / "data/hh-harmless/pairs.jsonl.gz"), format="hh")
    encoded = encode_pairs(pairs, load_tokenizer(model), template="hh", max_length=2**30, max_response=2**29)
    lengths = measure(encoded)
    order = np.lexsort((*lengths.T, lengths.sum(1)))  # by their sum, of which 512 are evenly spaced
    np.testing.assert_array_equal(lengths[order[((np.arange(512) + 0.5) * len(order) / 512).astype(int)]], hh_lengths())


@pytest.mark.parametrize(("max_length", "max_response"), [(512, 256), (64, 24), (200, 120)])
def test_cutting_is_that_of_encoding(max_length: int, max_response: int) -> None:
    pairs, tokenizer = read_pairs(str(DEMO), format="auto"), tiny_tokenizer()

    def lengths(max_length: int, max_response: int) -> dict[str, list[int]]:
        encoded = encode_pairs(pairs, tokenizer, template="hh", max_length=max_length, max_response=max_response)
        return {pair.id: row for pair, row in zip(encoded.groups, measure(encoded).tolist(), strict=True)}

    whole, encoded = lengths(2**30, 2**29), lengths(max_length, max_response)
    assert encoded
    triples = np.asarray([whole[name] for name in encoded], np.int64)
    expected = cut(triples, max_length=max_length, max_response=max_response)
    np.testing.assert_array_equal(expected, list(encoded.values()))


def test_full_pairs_fill_both_limits() -> None:
    ((prompt, chosen, rejected),) = full_lengths(max_length=512, max_response=256).tolist()
    assert prompt + chosen == prompt + rejected == 512 and chosen == 256


def test_blank_pairs_have_the_lengths_asked_for() -> None:
    triples = repeat(np.asarray([[9, 4, 5], [2, 7, 1]], np.int64), 5)
    encoded = blank_pairs(triples, "nowhere", contrast=("x" * 8, "x" * 9))
    np.testing.assert_array_equal(measure(encoded), triples)
    assert len(encoded.groups) == 6 and encoded.elements() == 8
    assert len(encoded.groups[0].prompts["plus"]) == 9 + 2
    assert len(encoded.groups[0].prompts["minus"]) == 9 + 3
