"""Optimizers and schedules do what their fields say, as PyTorch does where PyTorch has them."""

from __future__ import annotations

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tisdpo_jax import partitioning
from tisdpo_jax.config import OptimizerSection
from tisdpo_jax.config.schema import RewardOptimizer
from tisdpo_jax.testing import device_mesh, random_params, tiny_config
from tisdpo_jax.training import optim

START = {"layers": {"attention": {"q": {"kernel": jnp.ones((1, 2, 3)), "bias": jnp.ones((1, 3))}}}}


def steps(section: OptimizerSection, count: int = 3, total: int = 10, start=START):
    optimizer = optim.optimizer(section, total)
    state, params = optimizer.init(start), start
    for step in range(count):
        gradient = jax.tree.map(lambda x, s=step: 0.1 * (s + 1) * jnp.cos(x + s), start)
        updates, state = optimizer.update(gradient, state, params)
        params = optax.apply_updates(params, updates)
    return params


def test_schedule_warms_up_and_ends_where_it_says():
    section = OptimizerSection(learning_rate=1.0, warmup_steps=4, schedule="linear", end_fraction=0.1)
    rate = [float(optim.schedule(section, 10)(step)) for step in range(11)]
    np.testing.assert_allclose(rate[:5], [0.2, 0.4, 0.6, 0.8, 1.0], rtol=1e-6)
    assert rate[10] == pytest.approx(0.1) and all(a >= b for a, b in itertools.pairwise(rate[4:]))
    cosine = optim.schedule(dataclasses.replace(section, schedule="cosine"), 10)
    assert float(cosine(7)) == pytest.approx(0.55) and float(cosine(10)) == pytest.approx(0.1)
    assert float(optim.schedule(dataclasses.replace(section, schedule="constant"), 10)(9)) == 1.0


FLIPS = {
    "name": "rmsprop",
    "learning_rate": 2e-2,
    "warmup_steps": 5,
    "schedule": "linear",
    "clip_norm": 1e-2,
    "weight_decay": 0.5,
    "b1": 0.1,
    "b2": 0.1,
    "eps": 1.0,
}


@pytest.mark.parametrize("field", [*FLIPS, "end_fraction"])
def test_every_field_changes_something(field):
    base = OptimizerSection(learning_rate=1e-2)
    if field == "end_fraction":
        base = dataclasses.replace(base, schedule="linear")
    changed = dataclasses.replace(base, **{field: FLIPS.get(field, 0.9)})
    before, after = steps(base), steps(changed)
    assert any((x != y).any() for x, y in zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True))
    assert {one.name for one in dataclasses.fields(OptimizerSection)} == {*FLIPS, "end_fraction"}


@pytest.mark.parametrize("name", ["adamw", "rmsprop", "adafactor"])
def test_the_head_of_a_reward_model_has_a_rate_of_its_own(name):
    start = {**START, "score": {"kernel": jnp.zeros((2, 1))}}
    base = RewardOptimizer(name=name, learning_rate=1e-2, head_rate=1.0, weight_decay=0.0)
    one, five = (steps(dataclasses.replace(base, head_rate=rate), 1, start=start) for rate in (1.0, 5.0))
    np.testing.assert_allclose(five["score"]["kernel"], 5 * one["score"]["kernel"], rtol=1e-5)
    assert np.abs(one["score"]["kernel"]).min() > 0
    jax.tree.map(np.testing.assert_array_equal, one["layers"], five["layers"])


def test_decay_spares_biases():
    section = OptimizerSection(learning_rate=1e-2)
    plain, decayed = steps(section), steps(dataclasses.replace(section, weight_decay=0.5))
    layer, other = (tree["layers"]["attention"]["q"] for tree in (plain, decayed))
    assert (layer["kernel"] != other["kernel"]).all()
    np.testing.assert_array_equal(layer["bias"], other["bias"])


@pytest.mark.parametrize("name", ["adamw", "rmsprop"])
def test_equals_pytorch(name):
    torch = pytest.importorskip("torch")
    section = OptimizerSection(name=name, learning_rate=1e-2, weight_decay=0.0, clip_norm=0.15, b2=0.99)
    kernel = torch.ones(1, 2, 3, requires_grad=True)
    bias = torch.ones(1, 3, requires_grad=True)
    options = {"lr": 1e-2, "eps": 1e-8}
    made = (
        torch.optim.AdamW([kernel, bias], betas=(0.9, 0.99), weight_decay=0.0, **options)
        if name == "adamw"
        else torch.optim.RMSprop([kernel, bias], alpha=0.99, **options)
    )
    for step in range(3):
        for leaf in (kernel, bias):
            leaf.grad = 0.1 * (step + 1) * torch.cos(torch.ones_like(leaf) + step)
        torch.nn.utils.clip_grad_norm_([kernel, bias], 0.15)
        made.step()
    mine = steps(section)["layers"]["attention"]["q"]
    np.testing.assert_allclose(mine["kernel"], kernel.detach().numpy(), rtol=1e-5)
    np.testing.assert_allclose(mine["bias"], bias.detach().numpy(), rtol=1e-5)


@pytest.mark.parametrize("name", ["adamw", "rmsprop", "adafactor"])
def test_moments_lie_where_their_parameters_lie(name):
    mesh = device_mesh(1, 4, 2)
    params = random_params(0, tiny_config())
    shardings = partitioning.param_shardings(params, mesh)
    state = optim.optimizer(OptimizerSection(name=name), 10).init(params)
    placed = optim.optimizer_shardings(state, params, shardings, partitioning.replicated(mesh))
    of_kernel = shardings["layers"]["attention"]["q"]["kernel"]
    whole = partitioning.replicated(mesh)
    moments = [
        (leaf.shape, sharding) for leaf, sharding in zip(jax.tree.leaves(state), jax.tree.leaves(placed), strict=True)
    ]
    shape = params["layers"]["attention"]["q"]["kernel"].shape  # also that of `o`
    expected = (of_kernel, shardings["layers"]["attention"]["o"]["kernel"])
    found = [sharding for size, sharding in moments if size == shape]
    assert found and all(sharding in expected for sharding in found)
    assert all(sharding == whole for size, sharding in moments if size == ())
