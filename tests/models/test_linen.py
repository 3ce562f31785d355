"""The Flax module is the decoder: the same variables, hidden states, adapters and gradients."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tisdpo_jax.models import ComputeConfig, FlaxDecoder, Model, abstract_params, hidden_states, logits
from tisdpo_jax.testing import FAMILIES, random_adapters, random_params

TOKENS = jnp.asarray([[3, 9, 4, 1], [7, 2, 5, 8]])


@pytest.mark.parametrize("family", ["llama3", "gemma2"])
def test_it_is_the_decoder(family: str) -> None:
    config = FAMILIES[family]
    module, params = FlaxDecoder(config), random_params(0, config)
    variables = {"params": params, "lora": random_adapters(1, params)}
    for given in ({"params": params}, variables):
        np.testing.assert_array_equal(module.apply(given, TOKENS), hidden_states(Model(config), given, TOKENS))
    found = module.apply({"params": params}, TOKENS, method="logits")
    np.testing.assert_array_equal(found, logits(Model(config), {"params": params}, TOKENS))
    grads = jax.grad(lambda p: module.apply({"params": p}, TOKENS).sum())(params)
    expected = jax.grad(lambda p: hidden_states(Model(config), {"params": p}, TOKENS).sum())(params)
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
