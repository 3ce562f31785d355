"""The decoder as a Flax Linen module, for trainers and notebooks that are written with Flax.

It holds no arithmetic: parameters come from the table, hidden states from the same functions, so the variables of one
are those of the other, and a checkpoint, an adapter or a sharding rule is for both.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax

from tisdpo_jax.models.config import ComputeConfig, Model, TransformerConfig
from tisdpo_jax.models.decoder import hidden_states
from tisdpo_jax.models.leaves import head_of
from tisdpo_jax.models.params import abstract_params, init_params
from tisdpo_jax.types import Params, Rows, Variables

Array = jax.Array


class FlaxDecoder(nn.Module):
    """A decoder of the zoo as a Linen module: `init(key, tokens)` and `apply(variables, tokens)`.

    `apply` takes `{"params": ...}` and, with adapters on, `"lora"` beside it, as everything in this package does.

    Args:
      config: the architecture, from `interchange.read_config` or `models.SIZES`.
      compute: how it is computed; parameters are made in `param_dtype`.
    """

    config: TransformerConfig
    compute: ComputeConfig = ComputeConfig()

    @nn.compact
    def __call__(self, rows: Rows | Array) -> Array:
        """Normalised last hidden states `[R, T, D]` of `types.Rows`, or of tokens `[R, T]`, left-aligned."""
        return hidden_states(self._model, self._variables(), rows)

    @nn.compact
    def logits(self, rows: Rows | Array) -> Array:
        """`[R, T, V]` float32, for small inputs: training takes `scoring.fused_logps` instead."""
        variables = self._variables()
        return head_of(self.config, variables).logits(hidden_states(self._model, variables, rows))

    @property
    def _model(self) -> Model:
        return Model(self.config, self.compute)

    def _variables(self) -> Variables:
        dtype = self.compute.param_dtype
        names = abstract_params(self.config, dtype)

        def begin(key: Any, name: str) -> Params:
            tree: Params = init_params(key, self.config, dtype, only=name)[name]
            return tree

        variables: Variables = {"params": {name: self.param(name, begin, name) for name in names}}
        lora: Params = {name: self.get_variable("lora", name) for name in names if self.has_variable("lora", name)}
        return {**variables, "lora": lora} if lora else variables
