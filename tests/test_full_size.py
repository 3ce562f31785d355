"""Every shipped configuration at full size: the step that training would run, traced with shapes alone."""

from __future__ import annotations

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tisdpo_jax import partitioning
from tisdpo_jax.cli.options import load
from tisdpo_jax.data import EncodedGroup, EncodedSet, fit, make_batch
from tisdpo_jax.models import SIZES, abstract_params, head_only, init_adapters
from tisdpo_jax.recipes import graph_of
from tisdpo_jax.stages import check_batches, compute_config, model_of
from tisdpo_jax.testing import device_mesh
from tisdpo_jax.training import optim
from tisdpo_jax.training.step import init_state, state_shardings, train_step
from tisdpo_jax.types import Batch

CONFIGS = sorted((Path(__file__).resolve().parent.parent / "configs").glob("*.yaml"))
PARAMETERS = {
    **{"llama2_7b": 6_738_415_616, "llama31_8b": 8_030_261_248, "smollm2_135m": 134_515_008},
    **{"gemma2_2b": 2_614_341_888, "gemma3_1b": 999_885_952},
}


def size_of(path: Path) -> str:
    named = [name for name in SIZES if path.stem.startswith(name)]
    return named[0] if named else "smollm2_135m"


@pytest.mark.parametrize("name", PARAMETERS)
def test_the_zoo_counts_as_many_parameters_as_the_release(name: str) -> None:
    assert sum(leaf.size for leaf in jax.tree.leaves(abstract_params(SIZES[name]))) == PARAMETERS[name]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_the_step_of_a_configuration_has_shapes_and_a_place_for_everything(path: Path) -> None:
    config = load(path, {})
    model = model_of(config, SIZES[size_of(path)])
    shape = model.config
    base = abstract_params(shape, config.model.frozen_dtype)
    trained = abstract_params(shape, config.model.param_dtype)
    if config.lora.rank:
        make = functools.partial(init_adapters, rank=config.lora.rank, targets=config.lora.targets)
        trained = jax.eval_shape(make, jax.random.key(0), base)
    policy = graph_of(config).policy
    plan, columns = policy.plan(config, model), policy.taken
    frozen = {"params": {}, "lora": {}}
    for collection, key in plan.roles.needs():
        whole = head_only(shape, base) if key == "head" else base
        frozen[collection][key] = whole if collection == "params" else trained
    optimizer = optim.optimizer(config.train.optimizer, 100)
    state = jax.eval_shape(functools.partial(init_state, optimizer=optimizer), trained)
    mesh = device_mesh(1, 4, 1)
    check_batches(config, mesh)
    state_shardings(state, mesh)
    for tree in (*frozen["params"].values(), *frozen["lora"].values()):
        partitioning.param_shardings(tree, mesh)
    batch = _batch(config, plan, columns, mesh)
    after, metrics = jax.eval_shape(functools.partial(train_step, plan=plan, optimizer=optimizer), state, frozen, batch)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), after) == jax.tree.map(lambda x: (x.shape, x.dtype), state)
    assert metrics["objective"].shape == () and metrics["objective"].dtype == jnp.float32


def _batch(config, plan, columns, mesh) -> Batch:
    """The first batch of a training whose pairs are as long as the configuration allows, shapes alone."""
    section, elements = config.train, config.data.max_response
    ids = lambda count: np.zeros(count, np.int32)  # noqa: E731
    prompt, response = ids(config.data.max_length - elements), ids(elements)
    pair = EncodedGroup("longest", "here:1", dict.fromkeys(("main", "plus", "minus"), prompt), (response, response))
    pairs = EncodedSet((pair,) * section.batch_size, (), "here")
    splash = compute_config(config).attention == "splash"
    indices = np.arange(section.batch_size)
    layout = fit(
        pairs,
        [indices],
        elements=elements,
        shards=partitioning.batch_shards(mesh),
        parts=section.gradient_accumulation_steps,
        sides=config.loss.needs.sides,
        views=plan.roles.views(),
        packed=config.data.packing == "shared",
        copies=splash and config.data.packing == "shared",
        multiple=128 if splash else 8,
    )
    width: dict[str, tuple[int, ...]] = {"self_reward": (), "target": ()}
    values = {name: np.zeros((len(indices), *width.get(name, (2, elements))), np.float32) for name in columns}
    batch = make_batch(pairs, indices, layout=layout, columns=values)
    for x in jax.tree.leaves((batch.views, batch.mask)):
        assert x.shape[0] % partitioning.batch_shards(mesh) == 0, "rows and pairs are dealt out to devices"
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), batch)
