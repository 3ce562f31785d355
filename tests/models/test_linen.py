"""The Flax module is the decoder: the same variables, hidden states, adapters and gradients."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tisdpo_jax.models import ComputeConfig, FlaxDecoder, Model, abstract_params, hidden_states, logits
from tisdpo_jax.testing import FAMILIES, random_adapters, random_params

TOKENS = jnp.asarray([[3, 9, 4, 1], [7, 2, 5, 8]])


@pytest.mark.parametrize("family", ["llama3", "gemma2"])
def test_it_is_the_decoder(family: str) -> None:
    config, model = FAMILIES[family], Model(FAMILIES[family])
    module, params = FlaxDecoder(config), random_params(0, config)
    ours, its = jax.jit(functools.partial(hidden_states, model)), jax.jit(module.apply)
    for variables in ({"params": params}, {"params": params, "lora": random_adapters(1, params)}):
        np.testing.assert_array_equal(its(variables, TOKENS), ours(variables, TOKENS))
    scores = jax.jit(functools.partial(module.apply, method="logits"))({"params": params}, TOKENS)
    np.testing.assert_array_equal(scores, jax.jit(functools.partial(logits, model))({"params": params}, TOKENS))
    grads, expected = (
        jax.jit(jax.grad(lambda p, apply=apply: apply({"params": p}, TOKENS).sum()))(params) for apply in (its, ours)
    )
    jax.tree.map(np.testing.assert_array_equal, grads, expected)


def test_its_variables_are_those_of_the_package() -> None:
    config = FAMILIES["llama3"]
    module = FlaxDecoder(config, ComputeConfig(param_dtype="bfloat16"))
    made = module.init(jax.random.key(0), TOKENS)["params"]
    kinds = lambda tree: jax.tree.map(lambda x: (x.shape, x.dtype), tree)  # noqa: E731
    assert kinds(made) == kinds(abstract_params(config, "bfloat16"))
    assert float(jnp.std(made["layers"]["attention"]["q"]["kernel"].astype(jnp.float32))) == pytest.approx(
        0.02, rel=0.2
    )
