"""The pieces that tests are made of are what they say."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from tisdpo_jax.testing import (
    FAMILIES,
    Pairs,
    batch_of,
    device_mesh,
    random_adapters,
    random_batch,
    random_encoded,
    random_pairs,
    random_params,
)


def test_random_pairs_hold_what_losses_take() -> None:
    p = random_pairs(0, (3, 2, 5))
    assert all(x.shape == (3, 2, 5) and x.dtype == np.float32 for x in p)
    mask = np.asarray(p.mask)
    assert (np.diff(mask, axis=-1) <= 0).all() and (mask[..., 0] == 1).all(), "real tokens first, at least one"
    assert all((np.asarray(x) <= 0).all() for x in p[:4]) and (np.asarray(p.token_kl) >= 0).all()
    for field, one, other in zip(Pairs._fields, p, random_pairs(0, (3, 2, 5)), strict=True):
        np.testing.assert_array_equal(one, other, err_msg=field)
    assert (np.asarray(random_pairs(1, (3, 2, 5)).policy_logps) != np.asarray(p.policy_logps)).any()


def test_random_pairs_of_tokens_have_the_lengths_asked_for() -> None:
    found = random_encoded(0, pairs=40, prompt=7, elements=5, vocab_size=9, prompts={"plus": 3, "minus": 8})
    assert len(found.groups) == 40 and found.elements(1) == 5
    for pair in found.groups:
        assert 1 <= len(pair.prompt) <= 7 and {name: len(ids) for name, ids in pair.prompts.items()} == {
            "main": len(pair.prompt),
            "plus": 3,
            "minus": 8,
        }
        for ids in (*pair.prompts.values(), pair.chosen, pair.rejected):
            assert ids.dtype == np.int32 and ids.min() >= 1 and ids.max() < 9
    lengths = {len(ids) for pair in found.groups for ids in (pair.chosen, pair.rejected)}
    assert lengths == {1, 2, 3, 4, 5} and {len(pair.prompt) for pair in found.groups} == set(range(1, 8))
    assert random_encoded(0).fingerprint() == random_encoded(0).fingerprint() != random_encoded(1).fingerprint()


def test_random_batches_are_what_a_data_pipeline_would_deliver() -> None:
    pairs = random_encoded(0, pairs=5, prompts={"plus": 9, "minus": 2})
    batch = batch_of(pairs)
    assert list(batch.views) == ["main", "plus", "minus"] and batch.record.tolist() == [0, 1, 2, 3, 4]
    np.testing.assert_array_equal(batch.mask, pairs.mask(pairs.elements(1)))
    for view in batch.views.values():
        assert view.rows.tree is not None and view.place.shape == batch.mask.shape
        for b, s in np.ndindex(5, 2):
            response = (pairs.groups[b].chosen, pairs.groups[b].rejected)[s]
            found = view.slots.targets.ravel()[view.place[b, s, : len(response)]]
            np.testing.assert_array_equal(found, response)
    same = random_batch(0, pairs=5, prompts={"plus": 9, "minus": 2}, layout={"packed": False, "views": ("plus",)})
    assert list(same.views) == ["plus"] and same.views["plus"].rows.tree is None and same.mask.shape == (5, 2, 6)


@pytest.mark.parametrize("family", FAMILIES)
def test_nothing_in_random_parameters_is_neutral(family: str) -> None:
    params = random_params(0, FAMILIES[family])
    for path, leaf in jax.tree_util.tree_leaves_with_path({"params": params, "lora": random_adapters(0, params)}):
        values = np.asarray(leaf)
        assert (values != 0).all() and values.std() > 0.05, path
        assert (values != 1).all(), path


def test_a_mesh_of_more_devices_than_there_are_raises() -> None:
    assert device_mesh(2, 1, 2).devices.shape == (2, 1, 2)
    with pytest.raises(RuntimeError, match=f"a mesh of 1000 devices on a machine with {jax.device_count()}"):
        device_mesh(1000)
