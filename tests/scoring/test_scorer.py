"""The scorer protocol: a kind of model that is no text trains by the same step, and entropy is that of the logits."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from tisdpo_jax.models import Model, logits
from tisdpo_jax.objectives import Dpo, TisDpo
from tisdpo_jax.roles import Role, Roles, policy_role
from tisdpo_jax.scoring import Text
from tisdpo_jax.testing import batch_of, random_encoded, random_params, tiny_config
from tisdpo_jax.training.objective import StepSpec, step_key
from tisdpo_jax.training.objective import objective as eager_objective
from tisdpo_jax.training.step import init_state
from tisdpo_jax.training.step import train_step as eager_step
from tisdpo_jax.types import Scores

objective = jax.jit(eager_objective, static_argnums=0)
train_step = jax.jit(eager_step, static_argnames=("plan", "optimizer"))


class Points(NamedTuple):
    """Pairs of points; an element is a coordinate."""

    x: Any  # [B, 2, N]
    mask: Any
    record: Any
    columns: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Denoiser:
    """A toy of a diffusion scorer: `-(x + noise - center)^2 / 2` of each coordinate, the noise from (key, record)."""

    def noise(self, batch: Points, key: jax.Array) -> jax.Array:
        keys = jax.vmap(lambda record: jax.random.fold_in(key, record))(batch.record)
        return jax.vmap(lambda key: jax.random.normal(key, batch.x.shape[1:]))(keys)

    def logps(self, variables: Any, batch: Points, key: jax.Array, *, view: str = "main") -> jax.Array:
        error = batch.x + self.noise(batch, key) - variables["params"]["center"]
        return -0.5 * jnp.square(error) * batch.mask

    def compare(self, policy: Any, reference: Any, batch: Points, key: jax.Array, *, direction: Any) -> Any:
        shift = policy["params"]["center"] - jax.lax.stop_gradient(reference["params"]["center"])
        kl = 0.5 * jnp.square(shift) * batch.mask  # of Gaussians of variance 1
        theirs = jax.lax.stop_gradient(self.logps(reference, batch, key))
        return Scores(self.logps(policy, batch, key), kl), theirs

    def entropy(self, variables: Any, batch: Points, key: jax.Array, *, view: str = "main") -> jax.Array:
        return 0.5 * jnp.log(2 * jnp.pi * jnp.e) * batch.mask  # of a Gaussian of variance 1

    def compute_dtype(self) -> str:
        return "float32"


def points(seed: int = 0, pairs: int = 8) -> Points:
    ones = np.ones((pairs, 2, 4), np.float32)
    x = np.random.default_rng(seed).normal(size=ones.shape).astype(np.float32) + np.float32([[1], [-1]])
    return Points(x, ones, np.arange(pairs), {"token_weights": ones})


def plan(the_objective: Any = TisDpo(), **options: Any) -> StepSpec:  # noqa: B008  # frozen
    return StepSpec(Denoiser(), Roles(policy_role(lora=False), Role("base")), the_objective, **options)


FROZEN: Any = {"params": {"base": {"center": jnp.zeros(4)}}, "lora": {}}


def test_a_scorer_that_is_no_text_trains_by_the_same_step() -> None:
    """The chosen points stand around +1, the rejected around -1: the center moves up, whatever the noise."""
    optimizer = optax.sgd(0.5)
    state = init_state({"center": jnp.zeros(4)}, optimizer)
    losses = []
    batch = points()
    for _ in range(20):
        state, metrics = train_step(state, FROZEN, batch, plan=plan(Dpo(beta=0.5)), optimizer=optimizer)
        losses.append(float(metrics["objective"]))
    assert losses[-1] < losses[0] - 0.1 and (state.trained["center"] > 0.1).all()


def test_all_roles_have_the_same_key_and_every_step_another() -> None:
    """Equal parameters: policy and reference agree bit for bit, so the noise was one. The next step has another."""
    result = objective(plan(), {"center": jnp.zeros(4)}, FROZEN, points())
    np.testing.assert_allclose(result.total, 8 * np.log(2), rtol=1e-6)
    assert float(result.sums["rewards/chosen"][0]) == float(result.sums["kl"][0]) == 0.0
    at = [objective(plan(), {"center": jnp.ones(4)}, FROZEN, points(), step_key(plan(), k)).total for k in (0, 1, 0)]
    assert at[0] == at[2] != at[1]
    other = plan(seed=1)
    assert objective(other, {"center": jnp.ones(4)}, FROZEN, points(), step_key(other, 0)).total != at[0]


def test_a_step_folds_its_own_number_in_and_parts_of_a_batch_share_it() -> None:
    optimizer = optax.sgd(0.1)
    state = init_state({"center": jnp.ones(4)}, optimizer)
    whole = train_step(state, FROZEN, points(), plan=plan(), optimizer=optimizer)[0]
    parts = train_step(state, FROZEN, points(), plan=plan(gradient_accumulation_steps=4), optimizer=optimizer)[0]
    np.testing.assert_allclose(whole.trained["center"], parts.trained["center"], rtol=1e-5)
    later = train_step(state._replace(step=jnp.int32(1)), FROZEN, points(), plan=plan(), optimizer=optimizer)[0]
    assert (later.trained["center"] != whole.trained["center"]).any()


def test_the_entropy_of_text_is_that_of_the_logits() -> None:
    config = tiny_config()
    encoded, params = random_encoded(0, vocab_size=config.vocab_size, pairs=2, elements=6), random_params(0, config)
    model = Model(config)
    entropy = jax.jit(Text(model, 4).entropy)
    found = entropy({"params": params}, batch_of(encoded, elements=6), jax.random.key(0))
    whole = jax.jit(lambda tokens: logits(model, {"params": params}, tokens))
    for number, pair in enumerate(encoded.groups):
        for side, response in enumerate((pair.chosen, pair.rejected)):
            tokens = np.zeros((1, 24), np.int32)  # what stands behind changes nothing before it
            end = len(pair.prompt) + len(response)
            tokens[0, :end] = [*pair.prompt, *response]
            every = np.asarray(whole(tokens))[0, len(pair.prompt) - 1 : end - 1].astype(np.float64)
            logp = every - np.log(np.exp(every).sum(-1, keepdims=True))
            expected = -(np.exp(logp) * logp).sum(-1)
            np.testing.assert_allclose(found[number, side, : len(response)], expected, rtol=1e-4)
            assert (found[number, side, len(response) :] == 0).all()
