"""Many models at once are the same models one by one, and what is sampled is what they say."""

from __future__ import annotations

import dataclasses
import functools

import jax
import numpy as np
import pytest

from experiments.testbed import replicas
from experiments.testbed.cells import methods
from experiments.testbed.world import BAD, GOOD, draw_corpus, draw_pairs, draw_prompts, make_world, steered
from tisdpo_jax.config import OptimizerSection
from tisdpo_jax.data import Order
from tisdpo_jax.models import Model, TransformerConfig, logits
from tisdpo_jax.objectives import Sft
from tisdpo_jax.roles import Role, Roles, policy_role
from tisdpo_jax.scoring import Text
from tisdpo_jax.testing import random_params
from tisdpo_jax.training import optim
from tisdpo_jax.training.objective import StepSpec
from tisdpo_jax.training.step import init_state, train_step

SEEDS, RATES = (0, 1), (1e-2, 3e-2)
WORLDS = [make_world(seed, topics=2, words=8, shortest=2, longest=4, context=1) for seed in SEEDS]
MODEL = Model(TransformerConfig(WORLDS[0].vocab_size, 16, 16, 1, 2, 2, 8))
PAIRS = [draw_pairs(world, seed, 12) for world, seed in zip(WORLDS, SEEDS, strict=True)]
ENCODED = [replicas.encode(pairs) for pairs in PAIRS]
SECTION = OptimizerSection(learning_rate=1.0, warmup_steps=1, clip_norm=1.0)


def stacked(*trees):
    return jax.tree.map(lambda *leaves: np.stack(leaves), *trees)


BASE = stacked(*(random_params(seed, MODEL.config) for seed in SEEDS))


def batches(sides=(0, 1), columns=None):
    made = replicas.layout(ENCODED, 4, elements=5, sides=sides)
    orders = [Order(one.lengths(sides=sides), 4, seed, 1.0) for one, seed in zip(ENCODED, SEEDS, strict=True)]
    return stacked(
        *(replicas.stack_batches(ENCODED, [order.batch(k) for order in orders], made, columns) for k in range(3))
    )


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) for name in ("TIS-DPO (oracle)", "SFT on chosen")]
)
def test_replicas_are_what_they_are_alone(name):
    cell = methods(0.1)[name]
    reference = None if cell.loss.name == "sft" else Role("base")
    plan = StepSpec(Text(MODEL), Roles(policy_role(lora=False), reference), cell.loss)
    columns = [
        {"token_weights": np.exp(pairs.rewards).astype(np.float32) * pairs.mask.astype(np.float32)} for pairs in PAIRS
    ]
    fed = batches(cell.sides, columns)
    frozen = {"params": {"base": BASE}, "lora": {}}
    halfway, found = replicas.train(plan, SECTION, RATES, BASE, frozen, fed, cuts=[1, 3])
    for seed in range(2):
        alone = jax.tree.map(lambda x, s=seed: x[s], (BASE, frozen))
        for number, rate in enumerate(RATES):
            optimizer = optim.optimizer(dataclasses.replace(SECTION, learning_rate=rate), 3)
            step = jax.jit(functools.partial(train_step, plan=plan, optimizer=optimizer))
            state = init_state(alone[0], optimizer)
            for k in range(3):
                state, _ = step(state, alone[1], jax.tree.map(lambda x, k=k, s=seed: x[k, s], fed))
                if k in (0, 2):
                    kept = halfway if k == 0 else found
                    for (path, mine), theirs in zip(
                        jax.tree_util.tree_leaves_with_path(kept), jax.tree.leaves(state.trained), strict=True
                    ):
                        np.testing.assert_allclose(
                            mine[seed, number],
                            theirs,
                            # half a percent of a step: Adam divides by gradients, so their rounding too
                            atol=5e-3 * rate,
                            err_msg=jax.tree_util.keystr(path),
                        )
    assert np.abs(np.asarray(found["head"]["kernel"] - BASE["head"]["kernel"][:, None])).max() > 1e-3


def test_scores_are_those_of_each_view():
    made = replicas.layout(ENCODED, 12, elements=5, views=("main", "plus", "minus"))
    whole = replicas.stack_batches(ENCODED, [np.arange(12)] * 2, made)
    for view, steering in (("plus", GOOD), ("minus", BAD)):
        found = np.asarray(replicas.scores(MODEL, BASE, whole, view))
        for seed, pairs in enumerate(PAIRS):
            params = jax.tree.map(lambda x, s=seed: x[s], BASE)
            prompt = steered(pairs.prompts, steering)
            for side in range(2):
                rows = np.concatenate([prompt, pairs.responses[:, side]], 1)
                said = jax.nn.log_softmax(logits(MODEL, {"params": params}, rows))[:, prompt.shape[1] - 1 : -1]
                expected = np.take_along_axis(np.asarray(said), pairs.responses[:, side, :, None], -1)[..., 0]
                np.testing.assert_allclose(found[seed, :, side], expected * pairs.mask[:, side], atol=1e-5)


def test_policies_are_sampled_at_temperature_1():
    """First tokens as often as the model says; and the log-ratio with itself is 0."""
    prompt = draw_prompts(WORLDS[0], np.random.default_rng(0), 1)
    prompts = np.broadcast_to(prompt, (2, 3000, prompt.shape[1]))
    params = jax.tree.map(lambda x: x[:, None], BASE)
    drawn = replicas.draw(MODEL, params, BASE, prompts, width=5)
    np.testing.assert_allclose(drawn.kl, 0.0, atol=1e-4)
    for seed in range(2):
        alone = {"params": jax.tree.map(lambda x, s=seed: x[s], BASE)}
        said = np.asarray(jax.nn.softmax(logits(MODEL, alone, prompt)[0, -1]))
        seen = np.bincount(drawn.tokens[seed, 0, :, 0], minlength=len(said)) / 3000
        np.testing.assert_allclose(seen, said, atol=4 * np.sqrt(0.25 / 3000))
    other = replicas.draw(MODEL, params, jax.tree.map(lambda x: x[::-1], BASE), prompts, width=5)
    np.testing.assert_array_equal(other.tokens, drawn.tokens)
    assert (other.kl.mean(-1) > 0.1).all()  # it is the mean of a log-ratio under the policy: a KL


def test_what_is_drawn_ends_with_the_end_token():
    params = jax.tree.map(lambda x: x[:, None], BASE)
    prompts = np.stack([draw_prompts(world, np.random.default_rng(0), 200) for world in WORLDS])
    drawn = replicas.draw(MODEL, params, BASE, prompts, width=5)
    ends = drawn.tokens == 1
    assert (ends.sum(-1) <= 1).all() and ends.any()
    lengths = drawn.mask.sum(-1)
    assert (np.where(ends.any(-1), ends.argmax(-1) + 1, 5) == lengths).all()
    assert (drawn.tokens[drawn.mask == 0] == 0).all()


@pytest.mark.slow
def test_pretraining_learns_the_language():
    corpora = [draw_corpus(world, seed, 256) for world, seed in zip(WORLDS, SEEDS, strict=True)]
    taught = replicas.pretrain(MODEL, corpora, SEEDS, steps=150, batch=64)

    def loss(params, seed):
        prompts, responses, mask = corpora[seed]
        rows = np.concatenate([prompts, responses], 1)
        alone = {"params": jax.tree.map(lambda x: x[seed], params)}
        said = np.asarray(jax.nn.log_softmax(logits(MODEL, alone, rows)))[:, prompts.shape[1] - 1 : -1]
        return -(np.take_along_axis(said, responses[..., None], -1)[..., 0] * mask).sum() / mask.sum()

    for seed in range(2):
        assert loss(taught, seed) < np.log(9) - 0.2 < loss(BASE, seed)  # there are 8 words and an end


def test_contrastive_prompts_are_in_the_pairs():
    pair, drawn = ENCODED[0].groups[3], PAIRS[0]
    assert pair.prompts["plus"][1] == GOOD and pair.prompts["minus"][1] == BAD
    np.testing.assert_array_equal(pair.prompt, drawn.prompts[3])
    np.testing.assert_array_equal(pair.chosen, drawn.responses[3, 0][drawn.mask[3, 0] > 0])


def test_loss_sections_of_all_methods_are_known():
    assert {cell.loss.name for cell in methods(0.3).values()} == {"sft", "dpo", "ipo", "kto", "tdpo", "tisdpo"}
    assert all(cell.loss == Sft() or cell.loss.beta == 0.3 for cell in methods(0.3).values())
