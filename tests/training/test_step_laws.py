"""What must not change a training step: devices, micro-batches, the loop over layers, adapters that are zero."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tisdpo_jax import partitioning
from tisdpo_jax.data import fit, make_batch
from tisdpo_jax.estimators import LogUniform
from tisdpo_jax.models import ComputeConfig, Model, init_adapters
from tisdpo_jax.objectives import OBJECTIVES, Inputs, Loss, Needs, Sft
from tisdpo_jax.roles import Role, Roles, contrast_roles, policy_role
from tisdpo_jax.scoring import Text
from tisdpo_jax.testing import batch_of, device_mesh, random_adapters, random_encoded, random_params, tiny_config
from tisdpo_jax.training.objective import StepSpec, step_key, token_weights
from tisdpo_jax.training.objective import _metric_sums as metric_sums
from tisdpo_jax.training.objective import objective as eager_objective
from tisdpo_jax.training.step import accumulate, global_norm, init_state, means, train_step, working_copy
from tisdpo_jax.types import Scores

CONFIG = tiny_config()
objective = jax.jit(eager_objective, static_argnums=0)
PAIRS = 16


ENCODED = random_encoded(0, vocab_size=CONFIG.vocab_size, pairs=PAIRS, elements=6)


def laid_out(**options):
    """The pairs as a batch; rows for up to eight devices, which is less packed than they could be."""
    return batch_of(ENCODED, elements=6, **{"shards": 8, **options})


@dataclasses.dataclass(frozen=True)
class Fixed:
    """A scorer whose parameters are the log-likelihoods: what a step makes of scores, without a model."""

    def logps(self, variables, batch, key, *, view="main"):
        return variables["params"] * batch.mask

    def compare(self, policy, reference, batch, key, *, direction):
        ours, theirs = self.logps(policy, batch, key), self.logps(reference, batch, key)
        return Scores(ours, jnp.square(ours - theirs)), theirs

    def compute_dtype(self):
        return "float32"


def scored(name, batch, *, policy=1, **options):
    """The objective of scores that are fixed, those of the policy random by a number."""
    ours, theirs = (-np.random.default_rng(seed).exponential(2.0, batch.mask.shape) for seed in (policy, 0))
    made = dataclasses.replace(plan(name, construction="none"), scorer=Fixed())
    made = dataclasses.replace(made, objective=dataclasses.replace(made.objective, **options))
    return objective(made, np.float32(ours), {"params": {"base": np.float32(theirs)}, "lora": {}}, batch)


@pytest.fixture(scope="module")
def batch():
    return laid_out()


@pytest.fixture(scope="module")
def trees():
    return {name: random_params(seed, CONFIG) for seed, name in enumerate(("policy", "base", "plus", "minus"))}


def plan(loss="tisdpo", *, lora=False, gradient_accumulation_steps=1, construction="dpo", **compute):
    plus, minus = contrast_roles(construction, lora=lora) or (None, None)
    return StepSpec(
        scorer=Text(Model(CONFIG, ComputeConfig(**compute)), 4),
        roles=Roles(policy_role(lora=lora), Role("base"), plus, minus),
        objective=Sft() if loss == "sft" else OBJECTIVES[loss](beta=0.3),
        gradient_accumulation_steps=gradient_accumulation_steps,
    )


def frozen_of(trees, *, lora=None):
    params = {name: trees[name] for name in ("base", "plus", "minus")}
    return {"params": params, "lora": lora or {}}


def run(the_plan, trained, frozen, batch, mesh=None):
    """Loss and gradients of the mean, on a mesh or on one device."""

    def go(trained, frozen, batch):
        gradients, result = accumulate(the_plan, trained, frozen, batch)
        return gradients, result.total / result.denominator

    if mesh is None:
        return jax.jit(go)(trained, frozen, batch)
    place = lambda tree: jax.device_put(tree, partitioning.param_shardings(tree, mesh))  # noqa: E731
    frozen = {kind: {name: place(tree) for name, tree in frozen[kind].items()} for kind in frozen}
    with jax.set_mesh(mesh):
        return jax.jit(go)(place(trained), frozen, partitioning.put_batch(batch, mesh))


def assert_same(first, second, tolerance=2e-5):
    (grads, loss), (other_grads, other_loss) = first, second
    np.testing.assert_allclose(loss, other_loss, rtol=tolerance)
    scale = float(global_norm(grads))
    assert scale > 1e-3
    for (path, mine), theirs in zip(
        jax.tree_util.tree_leaves_with_path(grads), jax.tree.leaves(other_grads), strict=True
    ):
        np.testing.assert_allclose(mine, theirs, atol=tolerance * scale, err_msg=jax.tree_util.keystr(path))


@pytest.fixture(scope="module")
def expected(trees, batch):
    return run(plan(), trees["policy"], frozen_of(trees), batch)


@pytest.mark.parametrize(
    ("sizes", "gradient_accumulation_steps"),
    [
        pytest.param((2, 1, 1), 1, marks=pytest.mark.slow),
        pytest.param((1, 2, 1), 4, marks=pytest.mark.slow),
        pytest.param((2, 2, 2), 1, marks=pytest.mark.slow),
        ((2, 2, 2), 4),
    ],
)
def test_mesh_and_gradient_accumulation_steps_change_nothing(
    expected, trees, batch, sizes, gradient_accumulation_steps
):
    batch = (
        batch
        if gradient_accumulation_steps == 1
        else laid_out(shards=sizes[0] * sizes[1], parts=gradient_accumulation_steps)
    )
    found = run(
        plan(gradient_accumulation_steps=gradient_accumulation_steps),
        trees["policy"],
        frozen_of(trees),
        batch,
        device_mesh(*sizes),
    )
    assert_same(expected, found)


@pytest.mark.parametrize("compute", [{"layer_loop": "unroll"}, {"remat": "full"}, {"remat": "dots"}], ids=str)
def test_how_layers_are_computed_changes_nothing(expected, trees, batch, compute):
    assert_same(expected, run(plan(**compute), trees["policy"], frozen_of(trees), batch))


@pytest.mark.parametrize("lora", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_gradients_of_the_working_copy_are_those_of_the_parameters(trees, batch, lora):
    """bfloat16 layers of float32 parameters: the same gradients, bit for bit, at half the width until they are used."""
    the_plan = plan("dpo", lora=lora, dtype="bfloat16")
    trained = random_adapters(5, trees["base"]) if lora else trees["policy"]
    frozen = frozen_of(
        trees, lora={"plus": random_adapters(6, trees["base"]), "minus": random_adapters(7, trees["base"])}
    )

    def mean(trained):
        result = eager_objective(the_plan, trained, frozen, batch)
        return result.total / result.denominator

    direct = jax.jit(jax.grad(mean))(trained)
    found = jax.jit(lambda trained: accumulate(the_plan, trained, frozen, batch)[0])(trained)
    assert float(global_norm(direct)) > 1e-3
    for (path, mine), theirs in zip(jax.tree_util.tree_leaves_with_path(found), jax.tree.leaves(direct), strict=True):
        assert mine.dtype == theirs.dtype == jnp.float32
        np.testing.assert_array_equal(mine, theirs, err_msg=jax.tree_util.keystr(path))
    copy = working_copy(trained, "bfloat16")
    matrices = [leaf for leaf in jax.tree.leaves(copy["layers"]) if leaf.ndim > 2]
    assert matrices and all(leaf.dtype == jnp.bfloat16 for leaf in matrices)


def test_gradient_accumulation_steps_of_unequal_token_counts_are_not_means_of_means(trees):
    """SFT divides by tokens: the first micro-batch is made much shorter than the others."""
    short = [
        dataclasses.replace(pair, responses=(pair.chosen[:1], pair.rejected)) if number % 4 == 0 else pair
        for number, pair in enumerate(ENCODED.groups)
    ]
    short = dataclasses.replace(ENCODED, groups=tuple(short))
    one, four = (
        run(
            plan("sft", gradient_accumulation_steps=count),
            trees["policy"],
            frozen_of(trees),
            batch_of(short, elements=6, sides=(0,), parts=count),
        )
        for count in (1, 4)
    )
    assert_same(one, four)


@pytest.mark.parametrize(
    ("sizes", "gradient_accumulation_steps"), [(None, 1), pytest.param((2, 2, 2), 4, marks=pytest.mark.slow)]
)
def test_adapters_that_are_zero_give_the_loss_of_full_fine_tuning(trees, sizes, gradient_accumulation_steps):
    """Policy = base: the loss is log 2 for both, and the adapter's gradient is that of the kernel through it."""
    base, batch = trees["base"], laid_out(shards=4, parts=gradient_accumulation_steps)
    adapter = init_adapters(jax.random.key(5), base, rank=2, targets="attention/(q|k|v|o)|mlp/(gate|up|down)")
    adapters = {
        name: jax.tree.map(lambda x, s=seed: x + 0.05 * s, adapter) for seed, name in ((1, "plus"), (2, "minus"))
    }
    mesh = None if sizes is None else device_mesh(*sizes)
    frozen = {"params": {"base": base}, "lora": adapters}
    grads, loss = run(
        plan(lora=True, gradient_accumulation_steps=gradient_accumulation_steps), adapter, frozen, batch, mesh
    )
    np.testing.assert_allclose(loss, np.log(2), rtol=1e-5)
    # the same weights, as full models
    from tisdpo_jax.models import merge

    whole = {"base": base} | {name: merge(base, tree, 1.0) for name, tree in adapters.items()}
    full_grads, full_loss = run(
        plan(gradient_accumulation_steps=gradient_accumulation_steps), base, {"params": whole, "lora": {}}, batch, mesh
    )
    np.testing.assert_allclose(full_loss, np.log(2), rtol=1e-5)
    for name in ("q", "o"):
        kernel, tree = full_grads["layers"]["attention"][name]["kernel"], grads["layers"]["attention"][name]
        through = jnp.einsum("lir,lio->lro", adapter["layers"]["attention"][name]["a"], kernel)  # dL/db = a^T dL/dW
        np.testing.assert_allclose(tree["b"], through, atol=2e-5 * float(global_norm(full_grads)))
        np.testing.assert_array_equal(tree["a"], 0)  # because b is 0


@pytest.mark.parametrize("name", ["dpo", *(pytest.param(n, marks=pytest.mark.slow) for n in ("tdpo", "ipo", "kto"))])
def test_every_loss_runs_and_cached_reference_equals_live(trees, batch, name):
    live = plan(name, construction="none")
    batch = batch._replace(columns={"token_weights": np.asarray(batch.mask) * 1.3})
    total = objective(live, trees["policy"], frozen_of(trees), batch)
    assert np.isfinite(total.total)
    if name in ("dpo", "ipo", "kto"):
        from tisdpo_jax.scoring import score

        logps = score(live.scorer.model, {"params": trees["base"]}, batch).logps
        without = dataclasses.replace(live, roles=Roles(policy_role(lora=False), None))
        cached = objective(
            without, trees["policy"], {"params": {}, "lora": {}}, batch._replace(columns={"reference_logps": logps})
        )
        np.testing.assert_allclose(total.total, cached.total, rtol=1e-6)


def test_metrics_do_not_know_the_weights(batch):
    """Weights that tell chosen from rejected move the objective; what measures the policy is of plain sums."""
    telling = np.asarray(batch.mask) * np.array([[4.0], [0.25]], np.float32)
    result = scored("tisdpo", batch._replace(columns={"token_weights": telling}))
    plain = scored("dpo", batch)
    for metric in ("rewards/chosen", "rewards/rejected", "rewards/margins", "rewards/accuracies", "dpo_loss"):
        np.testing.assert_allclose(result.sums[metric], plain.sums[metric], rtol=1e-5, err_msg=metric)
    np.testing.assert_allclose(result.sums["objective"][0], result.total)
    np.testing.assert_allclose(plain.sums["dpo_loss"][0], plain.total, rtol=1e-5)
    assert abs(float(result.total - plain.total)) > 1e-3


class Group:
    """An objective of groups of any size."""

    name, title, beta, needs = "group", "a group", 0.5, Needs("reference||policy")

    def loss(self, inputs):
        return Loss(inputs.logps.sum(), jnp.float32(1.0))


def test_metrics_of_groups_that_are_no_pairs_are_means_over_responses():
    """As many as there are: here 3, of which one group has 2 and a filler none."""
    mask = np.ones((3, 3, 4), np.float32)
    mask[0, 2], mask[2] = 0, 0
    mask[1, 1, 2:] = 0
    logps, reference, kl = (np.random.default_rng(seed).normal(size=mask.shape) * mask for seed in range(3))
    weights = 1 + mask
    group = Inputs(*(jnp.asarray(x) for x in (logps, mask, reference, kl)), {"token_weights": jnp.asarray(weights)})
    found = means(metric_sums(Group(), group, Group().loss(group)))
    summed, real = (logps - reference).sum(-1), mask.any(-1)
    assert found["rewards/mean"] == pytest.approx(0.5 * summed[real].mean(), rel=1e-5)
    assert found["logps/mean"] == pytest.approx(logps.sum(-1)[real].mean(), rel=1e-5)
    by_response = kl.sum(-1)[real] / mask.sum(-1)[real]
    assert found["forward_kl/mean"] == pytest.approx(by_response.mean(), rel=1e-5)
    assert (found["weights/mean"], found["weights/mean_std"]) == (2.0, 0.0)
    assert not {"rewards/margins", "rewards/chosen"} & found.keys()


def test_dlma_takes_the_margin_column(batch):
    rows = {"self_reward": np.linspace(-60, 60, PAIRS).astype(np.float32)}
    with_margin = scored("dlma", batch._replace(columns=rows), policy=0)
    # policy = reference: what is left is the clamped margin
    expected = np.log1p(np.exp(0.3 * 0.2 * np.clip(rows["self_reward"], -40, 40))).sum()
    np.testing.assert_allclose(with_margin.total, expected, rtol=1e-5)


def test_dlma_and_tisdpo_together_take_margin_and_weights(batch):
    """Without a margin TIS-DPO; with it, every pair's logit is lower by beta1 R."""
    weights = np.asarray(batch.mask) * 1.3
    rows = {"self_reward": np.linspace(-60, 60, PAIRS).astype(np.float32), "token_weights": weights}
    batch = batch._replace(columns=rows)

    without, both = scored("dlma+tisdpo", batch, margin_coef=0.0), scored("dlma+tisdpo", batch)
    np.testing.assert_array_equal(without.total, scored("tisdpo", batch).total)
    assert "kl" in without.sums
    assert float(both.total) != float(without.total)
    assert float(scored("dlma+tisdpo", batch, kl_coef=0.0).total) != float(both.total)


def test_weights_online_equal_weights_from_a_column(trees, batch):
    online = plan(construction="dpo")
    weights = token_weights(online, frozen_of(trees), batch, step_key(online, 0))
    assert float(weights.std()) > 0.1
    mine = objective(online, trees["policy"], frozen_of(trees), batch).total
    column = objective(
        plan(construction="none"), trees["policy"], frozen_of(trees), batch._replace(columns={"token_weights": weights})
    ).total
    np.testing.assert_allclose(mine, column, rtol=1e-6)


def test_reversed_sides_are_the_swapped_pairs(trees, batch):
    forward, backward = (
        objective(plan("dpo"), trees["policy"], frozen_of(trees), laid_out(sides=sides)).sums["rewards/margins"][0]
        for sides in ((0, 1), (1, 0))
    )
    np.testing.assert_allclose(forward, -backward, rtol=1e-5)


@pytest.mark.slow  # in the fast ones: tests/training/test_packed_steps.py, on eight devices
def test_fillers_count_nowhere(trees):
    half = np.arange(PAIRS // 2)
    kept, filled = (
        make_batch(ENCODED, indices, layout=fit(ENCODED, [indices], elements=6))
        for indices in (half, np.concatenate([half, np.full_like(half, -1)]))
    )
    assert_same(
        run(plan(), trees["policy"], frozen_of(trees), kept),
        run(plan(), trees["policy"], frozen_of(trees), filled),
        1e-5,
    )


def test_an_update_that_is_not_finite_is_not_applied(trees, batch):
    optimizer = optax.adam(1e-2)
    step = jax.jit(functools.partial(train_step, plan=plan("dpo", construction="none"), optimizer=optimizer))
    state = init_state(trees["policy"], optimizer)
    poisoned = {
        "params": {**frozen_of(trees)["params"], "base": jax.tree.map(lambda x: x * jnp.nan, trees["base"])},
        "lora": {},
    }
    bad, metrics = step(state, poisoned, batch)
    assert not np.isfinite(metrics["objective"])
    assert int(bad.skipped) == 1 and int(bad.step) == 1
    jax.tree.map(np.testing.assert_array_equal, (bad.trained, bad.opt_state), (state.trained, state.opt_state))
    good, _ = step(bad, frozen_of(trees), batch)
    assert int(good.skipped) == 0
    assert any(
        (a != b).any() for a, b in zip(jax.tree.leaves(good.trained), jax.tree.leaves(state.trained), strict=True)
    )


def test_random_weights_belong_to_the_pair(batch):
    """Random controls draw by (seed, record): the same pair weighs the same in another batch."""
    estimator, mask, record = LogUniform(seed=3), jnp.asarray(batch.mask), jnp.asarray(batch.record)
    all_of_them = estimator.weights({}, mask, record)
    some = np.asarray([5, 2])
    np.testing.assert_array_equal(all_of_them[some], estimator.weights({}, mask[some], record[some]))
    other = LogUniform(seed=4).weights({}, mask, record)
    assert (np.asarray(other) != np.asarray(all_of_them)).any()
