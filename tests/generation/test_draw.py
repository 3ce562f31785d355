"""Filters against plain definitions, and draws against the distribution that they promise."""

from __future__ import annotations

import numpy as np
import pytest

from tisdpo_jax.generation import SamplingParams
from tisdpo_jax.generation.decoding import choose, filtered, row_keys

RANDOM = np.random.default_rng(0)
LOGITS = RANDOM.normal(0, 2, (6, 40)).astype("float32")


def kept(z, how):
    """Which tokens stay, row by row, in plain Python."""
    found = []
    for row in z.astype("float64"):
        stay = set(range(len(row)))
        if how.top_k:
            stay = set(sorted(stay, key=lambda i: -row[i])[: how.top_k])
        if how.top_p < 1:
            p = {i: np.exp(row[i]) for i in stay}
            total, mass, few = sum(p.values()), 0.0, set()
            for i in sorted(stay, key=lambda i: -row[i]):
                if mass >= how.top_p * total:
                    break
                few.add(i)
                mass += p[i]
            stay = few
        if how.min_p:
            best = max(row[i] for i in stay)
            stay = {i for i in stay if np.exp(row[i] - best) >= how.min_p}
        found.append(stay)
    return found


@pytest.mark.parametrize(
    "how",
    [
        SamplingParams(),
        SamplingParams(top_k=5),
        SamplingParams(top_k=1000),
        SamplingParams(top_p=0.7),
        SamplingParams(top_p=1e-9),
        SamplingParams(min_p=0.1),
        SamplingParams(min_p=1.0),
        SamplingParams(top_k=12, top_p=0.8, min_p=0.05),
    ],
    ids=str,
)
def test_filters_keep_what_they_say(how):
    found = np.asarray(filtered(LOGITS, how))
    for row, stay in enumerate(kept(LOGITS, how)):
        assert set(np.flatnonzero(found[row] > -np.inf).tolist()) == stay
        assert (found[row][list(stay)] == LOGITS[row][list(stay)]).all()


def test_draws_have_the_promised_frequencies():
    rows, how = 4000, SamplingParams(temperature=1.5, top_k=6)
    z = np.broadcast_to(LOGITS[:1], (rows, 40))
    tokens, logps = choose(z, row_keys(0, [(f"p{i}", 0) for i in range(rows)]), np.int32(2), how)
    allowed = sorted(kept(LOGITS[:1] / 1.5, SamplingParams(top_k=6))[0])
    p = np.exp(LOGITS[0, allowed] / 1.5)
    expected = rows * p / p.sum()
    counts = np.bincount(np.asarray(tokens), minlength=40)
    assert counts[allowed].sum() == rows
    assert (((counts[allowed] - expected) ** 2) / expected).sum() < 20.5  # chi-squared, 5 degrees: p = 0.001
    plain = LOGITS[0] - np.log(np.exp(LOGITS[0]).sum())
    np.testing.assert_allclose(logps, plain[np.asarray(tokens)], atol=1e-5)


def test_temperature_zero_takes_the_likeliest():
    tokens, _ = choose(LOGITS, row_keys(0, [("p", i) for i in range(6)]), np.int32(0), SamplingParams(0.0))
    np.testing.assert_array_equal(tokens, LOGITS.argmax(-1))


def test_noise_belongs_to_seed_id_sample_and_step():
    names = [("a", 0), ("a", 1), ("b", 0), ("1", 0), ("", 1)]
    both = np.concatenate([row_keys(0, names), row_keys(1, names)])
    assert len({tuple(key) for key in both.tolist()}) == 10
    np.testing.assert_array_equal(row_keys(0, names[::-1]), row_keys(0, names)[::-1])
    flat = np.zeros((64, 40), np.float32)
    keys = row_keys(0, [(str(i), 0) for i in range(64)])
    first, second = (choose(flat, keys, np.int32(step), SamplingParams())[0] for step in (0, 1))
    assert (np.asarray(first) != np.asarray(second)).any()
    np.testing.assert_array_equal(choose(flat[:3], keys[:3], np.int32(0), SamplingParams())[0], first[:3])


@pytest.mark.parametrize("wrong", [{"temperature": -1.0}, {"top_k": -1}, {"top_p": 0.0}, {"min_p": 2.0}])
def test_values_out_of_range_are_refused(wrong):
    with pytest.raises(ValueError, match="temperature and top_k"):
        SamplingParams(**wrong)
