"""Pairs packed behind shared prompts train what padded pairs train: loss, metrics and gradients."""

from __future__ import annotations

import functools
from typing import Any

import jax
import numpy as np
import pytest

from tisdpo_jax import partitioning
from tisdpo_jax.models import ComputeConfig, Model
from tisdpo_jax.objectives import OBJECTIVES, Sft
from tisdpo_jax.roles import Role, Roles, contrast_roles, policy_role
from tisdpo_jax.scoring import Text
from tisdpo_jax.testing import (
    FAMILIES,
    batch_of,
    device_mesh,
    random_adapters,
    random_encoded,
    random_params,
    tiny_config,
)
from tisdpo_jax.training.objective import StepSpec
from tisdpo_jax.training.step import accumulate
from tisdpo_jax.types import Batch

# prompts longer than the window of mistral, and some of one token
ENCODED = random_encoded(3, pairs=16, prompt=14, elements=9, prompts={"plus": 17, "minus": 6})
SPLASH = {"copies": True, "multiple": 128}
ONE_LAYER = tiny_config(num_layers=1)
# of every token its own, so that a pair that is taken for another does not pass
WEIGHTS = np.random.default_rng(0).uniform(0.2, 2.0, (16, 2, 9)).astype(np.float32)


def plan(
    config: Any, *, loss: str, construction: str, lora: bool, gradient_accumulation_steps: int, attention: Any
) -> StepSpec:
    plus, minus = contrast_roles(construction, lora=lora) or (None, None)
    return StepSpec(
        scorer=Text(Model(config, ComputeConfig(attention=attention)), 24),
        roles=Roles(policy_role(lora=lora), None if loss == "sft" else Role("base"), plus, minus),
        objective=Sft() if loss == "sft" else OBJECTIVES[loss](beta=0.3),
        gradient_accumulation_steps=gradient_accumulation_steps,
    )


def run(
    batch: Batch,
    *,
    config: Any = ONE_LAYER,
    loss: str = "tisdpo",
    construction: str = "none",
    lora: bool = False,
    gradient_accumulation_steps: int = 1,
    attention: str = "xla",
    mesh: tuple[int, int, int] | None = None,
) -> tuple[Any, Any]:
    """Mean gradients, and the sums of loss and metrics."""
    if construction == "none":
        batch = batch._replace(
            columns={"token_weights": WEIGHTS[: len(batch.mask), :, : batch.mask.shape[2]] * batch.mask}
        )
    made = plan(
        config,
        loss=loss,
        construction=construction,
        lora=lora,
        gradient_accumulation_steps=gradient_accumulation_steps,
        attention=attention,
    )
    base, policy = random_params(0, config), random_params(1, config)
    trained = random_adapters(2, base) if lora else policy
    adapters = {name: random_adapters(seed, base) for seed, name in ((3, "plus"), (4, "minus"))} if lora else {}
    frozen: Any = {"params": {"base": base, "plus": base, "minus": policy}, "lora": adapters}
    function = jax.jit(lambda *args: accumulate(made, *args))
    if mesh is None:
        gradients, result = function(trained, frozen, batch)
        return jax.device_get((gradients, result.sums))
    where = device_mesh(*mesh)
    place = lambda tree: jax.device_put(tree, partitioning.param_shardings(tree, where))  # noqa: E731
    frozen = {kind: {name: place(tree) for name, tree in trees.items()} for kind, trees in frozen.items()}
    with jax.set_mesh(where):
        gradients, result = function(place(trained), frozen, partitioning.put_batch(batch, where))
    return jax.device_get((gradients, result.sums))


@functools.cache
def padded(config: Any, views: tuple[str, ...], sides: tuple[int, ...], **options: Any) -> tuple[Any, Any]:
    return run(batch_of(ENCODED, packed=False, views=views, sides=sides), config=config, **options)


def same(one: tuple[Any, Any], other: tuple[Any, Any], tolerance: float = 2e-5) -> None:
    (gradients, sums), (expected, expected_sums) = one, other
    for name, (total, count) in expected_sums.items():
        np.testing.assert_allclose(sums[name][0], total, rtol=tolerance, atol=tolerance * count, err_msg=name)
        np.testing.assert_array_equal(sums[name][1], count, err_msg=name)
    for (path, mine), theirs in zip(
        jax.tree_util.tree_leaves_with_path(gradients), jax.tree.leaves(expected), strict=True
    ):
        scale = np.abs(theirs).max()
        assert scale > 0, path
        np.testing.assert_allclose(mine, theirs, atol=tolerance * scale, err_msg=jax.tree_util.keystr(path))


@pytest.mark.parametrize(
    ("family", "attention"),
    [
        *(("mistral", "splash"), ("gemma2", "xla"), ("gemma3", "xla")),
        *(pytest.param(*pair, marks=pytest.mark.slow) for pair in (("mistral", "xla"), ("gemma2", "splash"))),
        pytest.param("gemma3", "splash", marks=pytest.mark.slow),
    ],
)
def test_packed_is_padded(family: str, attention: str) -> None:
    """On every back end that runs here; the window of mistral counts along the branch of a packed row."""
    packed = batch_of(ENCODED, views=("main",), **(SPLASH if attention == "splash" else {}))
    rows, alone = packed.views["main"].rows, batch_of(ENCODED, views=("main",), packed=False).views["main"].rows
    assert rows.tree is not None and rows.tree.pair.max() > 1 and len(rows.tokens) < len(alone.tokens) / 2
    same(run(packed, config=FAMILIES[family], attention=attention), padded(FAMILIES[family], ("main",), (0, 1)))


def test_packed_views_of_contrastive_prompts_are_padded_ones() -> None:
    """Each view is packed by itself: its prompts have other lengths, so its pairs lie in other rows."""
    views = ("main", "plus", "minus")
    packed = batch_of(ENCODED, views=views)
    assert len({view.rows.tokens.shape for view in packed.views.values()}) > 1
    same(run(packed, construction="prompts"), padded(ONE_LAYER, views, (0, 1), construction="prompts"))


@pytest.mark.parametrize(
    ("sides", "loss"), [pytest.param((0,), "sft", marks=pytest.mark.slow), ((1,), "sft"), ((1, 0), "dpo")], ids=str
)
def test_packed_sides_are_padded_sides(sides: tuple[int, ...], loss: str) -> None:
    same(
        run(batch_of(ENCODED, views=("main",), sides=sides), loss=loss), padded(ONE_LAYER, ("main",), sides, loss=loss)
    )


@pytest.mark.parametrize("attention", ["xla", "splash"])
def test_packed_gradient_accumulation_steps_are_a_padded_batch(attention: str) -> None:
    """Each part has its own pairs and rows, and its places count within it."""
    packed = batch_of(ENCODED, views=("main",), parts=4, **(SPLASH if attention == "splash" else {}))
    same(run(packed, gradient_accumulation_steps=4, attention=attention), padded(ONE_LAYER, ("main",), (0, 1)))
    if attention == "xla":
        apart = batch_of(ENCODED, views=("main",), parts=4, packed=False)
        same(run(apart, gradient_accumulation_steps=4), padded(ONE_LAYER, ("main",), (0, 1)))


def test_packed_adapters_are_padded_adapters() -> None:
    packed = batch_of(ENCODED, views=("main",))
    same(
        run(packed, lora=True, construction="dpo"), padded(ONE_LAYER, ("main",), (0, 1), lora=True, construction="dpo")
    )


@pytest.mark.parametrize(
    ("mesh", "gradient_accumulation_steps", "attention"),
    [
        ((1, 8, 1), 2, "xla"),
        ((2, 2, 2), 2, "splash"),
        pytest.param((2, 1, 1), 1, "xla", marks=pytest.mark.slow),
        pytest.param((2, 2, 2), 1, "xla", marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_packed_on_a_mesh_is_padded_on_one_device(
    mesh: tuple[int, int, int], gradient_accumulation_steps: int, attention: str
) -> None:
    options = SPLASH if attention == "splash" else {}
    packed = batch_of(ENCODED, views=("main",), shards=mesh[0] * mesh[1], parts=gradient_accumulation_steps, **options)
    found = run(packed, gradient_accumulation_steps=gradient_accumulation_steps, attention=attention, mesh=mesh)
    same(found, padded(ONE_LAYER, ("main",), (0, 1)))


@pytest.mark.parametrize("packed", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_a_batch_that_does_not_divide_by_the_devices_is_filled_up(packed: bool) -> None:
    """Five pairs on eight devices train what they train on one: fillers count nowhere."""
    indices = np.asarray([3, 0, 7, 2, 9])
    rows = {"views": ("main",), "packed": packed}
    filled = batch_of(ENCODED, indices=np.pad(indices, (0, 3), constant_values=-1), shards=8, **rows)
    assert filled.mask.shape[0] == 8 and filled.views["main"].rows.tokens.shape[0] % 8 == 0
    same(run(filled, mesh=(1, 8, 1)), run(batch_of(ENCODED, indices=indices, **rows)))
