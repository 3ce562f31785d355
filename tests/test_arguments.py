"""What losses, weights, advantages and scoring cannot take is a ValueError that names the argument, compiled or not."""

from __future__ import annotations

import functools
import inspect
import math
import re
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tisdpo_jax import advantages, losses, scoring, weights

B, N, D, V = 3, 5, 4, 7  # none of them 2
NAN, INF = math.nan, math.inf
RANDOM = np.random.default_rng(0)


def floats(*shape: int) -> np.ndarray:
    return np.asarray(RANDOM.normal(-2.0, 0.5, shape), np.float32)


MASK, TARGETS = np.ones((B, 2, N), np.float32), RANDOM.integers(0, V, (B, 2, N)).astype(np.int32)
POLICY = {"policy_logps": floats(B, 2, N), "reference_logps": floats(B, 2, N), "mask": MASK}
SIGNS = {"positive_logps": floats(B, 2, N), "negative_logps": floats(B, 2, N), "mask": MASK}
HEAD = {"hidden": floats(B, 2, N, D), "head": floats(D, V), "targets": TARGETS, "mask": MASK}
GROUP = {"policy_logps": floats(B, 2, N), "behaviour_logps": floats(B, 2, N), "mask": MASK}
MASK3 = np.ones((B, 3, N), np.float32)
KEY = {"key": jax.random.key(0)}

# Every public function with arguments that it takes, arrays first.
GOOD: dict[str, tuple[Callable[..., Any], dict[str, Any]]] = {
    "dpo_loss": (losses.dpo_loss, POLICY),
    "ipo_loss": (losses.ipo_loss, POLICY),
    "kto_loss": (losses.kto_loss, {**POLICY, "kl": floats(2)}),
    "tdpo_loss": (losses.tdpo_loss, {**POLICY, "token_kl": floats(B, 2, N)}),
    "tisdpo_loss": (losses.tisdpo_loss, {**POLICY, "weights": floats(B, 2, N), "token_kl": floats(B, 2, N)}),
    "dlma_loss": (
        losses.dlma_loss,
        {**POLICY, "self_reward": floats(B), "weights": floats(B, 2, N), "token_kl": floats(B, 2, N)},
    ),
    "simpo_loss": (losses.simpo_loss, {"policy_logps": floats(B, 2, N), "mask": MASK}),
    "orpo_loss": (losses.orpo_loss, {"policy_logps": floats(B, 2, N), "mask": MASK}),
    "mdloo_loss": (
        functools.partial(losses.mdloo_loss, gamma=0.5),
        {**GROUP, "advantages": floats(B, 2), "token_kl": floats(B, 2, N)},
    ),
    "clipped_loss": (losses.clipped_loss, {**GROUP, "advantages": floats(B, 2)}),
    "reinforce_loss": (
        losses.reinforce_loss,
        {"policy_logps": floats(B, 2, N), "mask": MASK, "advantages": floats(B, 2)},
    ),
    "reference_kl": (losses.reference_kl, POLICY),
    "sampler_weights": (
        losses.sampler_weights,
        {"behaviour_logps": floats(B, 2, N), "sampler_logps": floats(B, 2, N), "mask": MASK},
    ),
    "reward_loss": (losses.reward_loss, {"rewards": floats(B, 2), "target": 1 / (1 + np.exp(floats(B)))}),
    "grade_loss": (
        losses.grade_loss,
        {"logits": floats(B, 2, N, 3), "grades": RANDOM.integers(-1, 3, (B, 2, N)).astype(np.int32)},
    ),
    "top1_distillation": (
        losses.top1_distillation,
        {"teacher_top1_logps": floats(B, N), "label_logps": floats(B, N), "mask": MASK[:, 0]},
    ),
    "penalised": (
        functools.partial(advantages.penalised, beta=0.1),
        {
            "behaviour_logps": floats(B, 2, N),
            "reference_logps": floats(B, 2, N),
            "mask": MASK,
            "rewards": floats(B, 2),
        },
    ),
    **{
        name: (getattr(advantages, name), {"rewards": floats(B, 3)})
        for name in ("leave_one_out", "group_mean", "group_normalised", "batch_normalised", "trust_gamma")
    },
    "return_to_go": (advantages.return_to_go, {"token_rewards": floats(B, N), "mask": MASK[:, 0]}),
    "leave_one_out_by_position": (advantages.leave_one_out_by_position, {"returns": floats(B, 3, N), "mask": MASK3}),
    "prefix_baseline": (
        advantages.prefix_baseline,
        {"contrast": floats(B, 3, N), "mask": MASK3, "advantages": floats(B, 3), "coef": floats(B)},
    ),
    "prefix_coef": (
        advantages.prefix_coef,
        {"contrast": floats(B, 3, N), "mask": MASK3, "advantages": floats(B, 3)},
    ),
    "sft_loss": (losses.sft_loss, {"policy_logps": floats(B, N), "mask": MASK[:, 0]}),
    "entropy_weights": (weights.entropy_weights, {"entropy": floats(B, 2, N), "mask": MASK}),
    "importance_weights": (weights.importance_weights, SIGNS),
    "token_rewards": (weights.token_rewards, SIGNS),
    "weighted_sums": (weights.weighted_sums, {"logps": floats(B, 2, N), "weights": floats(B, 2, N), "mask": MASK}),
    **{name: (function, SIGNS) for name, function in (weights.CONTROLS | weights.TRANSFORMS).items()},
    **{name: (weights.CONTROLS[name], {**SIGNS, **KEY}) for name in ("log_uniform", "shuffled")},
    "random": (weights.TRANSFORMS["random"], {**SIGNS, **KEY}),
    "logps_from_logits": (scoring.logps_from_logits, {"logits": floats(B, 2, N, V), "targets": TARGETS, "mask": MASK}),
    "kl_from_logits": (
        scoring.kl_from_logits,
        {"policy_logits": floats(B, 2, N, V), "reference_logits": floats(B, 2, N, V)},
    ),
    "fused_logps": (scoring.fused_logps, HEAD),
    "fused_logps_and_kl": (
        scoring.fused_logps_and_kl,
        {**HEAD, "reference_hidden": floats(B, 2, N, D + 1), "reference_head": floats(D + 1, V)},
    ),
    "contrast_scores": (scoring.contrast_scores, SIGNS),
    "next_token": (scoring.next_token, {"ids": TARGETS, "mask": MASK}),
    "pairs": (scoring.pairs, {"x": floats(2 * B, N)}),
    "unpairs": (scoring.unpairs, {"x": floats(B, 2, N)}),
}

# Values that no function takes, by the name of the parameter.
BAD_VALUES: dict[str, tuple[Any, ...]] = {
    "beta": (0.0, -0.1, NAN, INF, True, "0.1", None, np.float64(-1), np.ones(B)),
    "label_smoothing": (-0.1, 0.51, 2.0, NAN),
    "kl_coef": (-1.0, NAN, INF),
    "alpha": (-0.5, NAN, INF),
    "variant": (0, 3, "2", True),
    "margin_coef": (-0.1, NAN, INF),
    "softcap": (0.0, -1.0, NAN, INF, "30", True),
    "reference_softcap": (0.0, -1.0, NAN, INF),
    "desirable_weight": (-1.0, NAN, INF),
    "undesirable_weight": (-1.0, NAN, INF),
    "average": ("mean", 1, None),
    "scale": (0.0, -1.0, NAN, INF),
    "power": (NAN, INF),
    "mu": (NAN, INF, -INF),
    "lower": (NAN, -INF, 1e6),  # the last is above upper
    "upper": (NAN, INF, "1.5"),
    "gamma": (-0.5, NAN, INF),
    "coef": (-0.1, NAN, INF),
    "center_coef": (-0.1, NAN, INF),
    "top_percent": (-1.0, 100.5, NAN),
    "zero_last": (1, "yes", None),
    "direction": ("forward", None),
    "chunk": (0, -1, 2.5, True, None),
    "margin": (NAN, INF, "0.1", None, np.ones(B + 1)),
    "weight": (-0.1, 1.1, NAN),
    "level": ("word", None, 1),
    "mode": ("clip", None),
    "cap": (0.0, -1.0, NAN, None),
    "floor": (-0.1, 1.1, NAN),
    "low": (-0.1, NAN, -INF, None, np.ones(B)),
    "high": (-0.1, NAN, -INF, None),
    "dual": (1.0, 0.5, NAN, INF),
    "eps": (0.0, -1e-6, NAN),
    "step_kl": (0.0, -0.1, NAN, INF, None),
}
OF_ONE = {
    ("position", "gamma"): (0.0,),
    ("mdloo_loss", "level"): ("mean",),
    ("mdloo_loss", "cap"): (81.0, INF),
    ("sampler_weights", "level"): ("mean",),
    ("sampler_weights", "cap"): (0.9,),
}
TAKEN_BY_ONE = {("penalised", "beta"): 0.0}
ELSEWHERE = {"key", "axes"}  # jax looks at keys; axes: tests/scoring/test_foreign_meshes.py
OF_MODELS = {"contrast", "read", "reward_scores", "score", "score_pair_of_models"}  # they take models and batches


@pytest.fixture(autouse=True, scope="module")
def whole_tracebacks() -> Iterator[None]:
    """To shorten a traceback takes jax longer than everything else here."""
    before = jax.config.jax_traceback_filtering
    jax.config.update("jax_traceback_filtering", "off")
    yield
    jax.config.update("jax_traceback_filtering", before)


def names(*modules: Any) -> set[str]:
    return {name for module in modules for name in module.__all__ if inspect.isfunction(getattr(module, name))}


def test_every_public_function_and_every_parameter_of_it_is_here() -> None:
    public = names(losses, weights, advantages, scoring) | set(weights.CONTROLS) | set(weights.TRANSFORMS)
    assert public - OF_MODELS == set(GOOD)
    for name, (function, good) in GOOD.items():
        parameters = set(inspect.signature(function).parameters)
        assert parameters <= set(good) | set(BAD_VALUES) | ELSEWHERE, name


@pytest.mark.parametrize("name", sorted(names(losses)))
def test_a_loss_takes_three_arrays_by_position_and_the_rest_by_keyword(name: str) -> None:
    kinds = {parameter.name: parameter.kind for parameter in inspect.signature(GOOD[name][0]).parameters.values()}
    positional = [key for key, kind in kinds.items() if kind is inspect.Parameter.POSITIONAL_OR_KEYWORD]
    assert positional in (
        ["policy_logps", "reference_logps", "mask"],
        ["policy_logps", "behaviour_logps", "mask"],
        ["policy_logps", "mask"],
        ["behaviour_logps", "sampler_logps", "mask"],
        ["teacher_top1_logps", "label_logps", "mask"],
        ["logits", "grades"],
        ["rewards"],
    )
    assert set(kinds.values()) <= {inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY}


def refuses(name: str, argument: str, wrong: dict[str, Any]) -> None:
    """Not compiled, compiled, under vmap: arrays are traced, what is no array is not."""
    function, _ = GOOD[name]
    message = rf"^{name}: {re.escape(argument)}\b"
    with pytest.raises(ValueError, match=message):
        function(**wrong)
    if name == "contrast_scores":  # of host arrays
        return
    arrays = {key: x for key, x in wrong.items() if isinstance(x, np.ndarray)}
    others = {key: x for key, x in wrong.items() if key not in arrays}
    for traced in (jax.jit, jax.vmap) if arrays else (jax.jit,):
        stacked = {key: x[None] for key, x in arrays.items()} if traced is jax.vmap else arrays
        with pytest.raises(ValueError, match=message):
            traced(lambda arrays: function(**arrays, **others))(stacked)


def wrong_values() -> Iterator[Any]:
    for name, (function, good) in GOOD.items():
        for key in inspect.signature(function).parameters:
            if key not in good and key in BAD_VALUES:
                yield pytest.param(name, key, id=f"{name}-{key}")


@pytest.mark.parametrize(("name", "key"), list(wrong_values()))
def test_values_out_of_range(name: str, key: str) -> None:
    good = GOOD[name][1]
    taken = TAKEN_BY_ONE.get((name, key))
    for value in (*(x for x in BAD_VALUES[key] if x is not taken), *OF_ONE.get((name, key), ())):
        refuses(name, key, {**good, key: value})


LAYOUTS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "rows, [2B, N]": lambda x: np.concatenate([x[:, 0], x[:, 1]]),
    "sides last, [B, N, 2]": lambda x: np.swapaxes(x, 1, 2),
    "sides first, [2, B, N]": lambda x: np.swapaxes(x, 0, 1),
    "sums, [B, 2]": lambda x: x.sum(-1),
    "one side, [B, N]": lambda x: x[:, 0],
    "one response, [N]": lambda x: x[0, 0],
    "three sides": lambda x: np.concatenate([x, x[:, :1]], 1),
}
# of K responses, any number of them: what they are called with has two
OF_GROUPS = ["mdloo_loss", "clipped_loss", "reinforce_loss", "reference_kl", "sampler_weights", "penalised"]
OF_PAIRS = [
    name
    for name, (_, good) in GOOD.items()
    if good.keys() & {"policy_logps", "positive_logps", "logps"}
    and name not in ("sft_loss", "token_rewards", "contrast_scores", *OF_GROUPS)
]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", OF_PAIRS)
def test_pairs_in_another_layout(name: str, layout: str) -> None:
    """All arrays alike, so that nothing differs but the layout."""
    wrong = {key: LAYOUTS[layout](x) if np.shape(x) == (B, 2, N) else x for key, x in GOOD[name][1].items()}
    refuses(name, next(iter(wrong)), wrong)


@pytest.mark.parametrize("name", OF_GROUPS)
def test_sums_of_one_group(name: str) -> None:
    wrong = {key: x.sum(-1)[0] if np.shape(x) == (B, 2, N) else x for key, x in GOOD[name][1].items()}
    refuses(name, next(iter(wrong)), wrong)


@pytest.mark.parametrize("level", ["sequence", "mean"])
def test_advantages_by_token_of_a_loss_by_response(level: str) -> None:
    for name in ("mdloo_loss", "clipped_loss"):
        function, good = GOOD[name]
        by_token = {**good, "advantages": floats(B, 2, N)}
        assert function(**by_token, level="token").loss.shape == (B, 2)
        if (name, level) != ("mdloo_loss", "mean"):
            with pytest.raises(ValueError, match=rf"^{name}: advantages has shape .* which is one action here"):
                function(**by_token, level=level)


@pytest.mark.parametrize("name", ["leave_one_out", "group_mean", "group_normalised", "batch_normalised", "trust_gamma"])
def test_a_group_of_one(name: str) -> None:
    for shape in ((B, 1), (), (B, 0)):
        refuses(name, "rewards", {"rewards": floats(*shape)} if shape else {"rewards": np.asarray(floats())})


@pytest.mark.parametrize("target", [-0.1, 1.1, NAN, True, "better", None])
def test_a_target_that_is_no_probability(target: Any) -> None:
    refuses("reward_loss", "target", {"rewards": floats(B, 2), "target": target})


def test_values_of_arrays_are_looked_at_where_they_can_be_seen() -> None:
    rewards, (logits, grades) = floats(B, 2), GOOD["grade_loss"][1].values()
    with pytest.raises(ValueError, match=r"^reward_loss: target has values from 0\.5 to 95; .* between 0 and 1"):
        losses.reward_loss(rewards, target=np.asarray([0.5, 95, 0.5], np.float32))
    with pytest.raises(ValueError, match=r"^reward_loss: target has values from nan"):
        jax.jit(lambda x: losses.reward_loss(x, target=np.asarray([0.5, NAN, 0.5], np.float32)))(rewards)
    for wrong in (3, -2):
        with pytest.raises(ValueError, match=r"^grade_loss: grades has values .* between -1 and 2"):
            losses.grade_loss(logits, jnp.asarray(grades).at[1, 1, 1].set(wrong))
        traced = jax.jit(losses.grade_loss)(logits, jnp.asarray(grades).at[1, 1, 1].set(wrong))
        assert np.isnan(traced).tolist() == [False, True, False]


@pytest.mark.parametrize("name", [*OF_PAIRS, *OF_GROUPS, "reward_loss", "grade_loss", "prefix_baseline"])
def test_one_pair_and_more_axes_in_front_are_taken(name: str) -> None:
    function, good = GOOD[name]
    for change in (lambda x: x[0], lambda x: x[None, :, None]):
        arrays = {key: x if key in ("key", "kl") else change(x) for key, x in good.items()}
        jax.eval_shape(lambda arrays: function(**arrays), arrays)


def wrong_arrays() -> Iterator[Any]:
    """(function, argument that the message names, arguments, what is wrong)."""
    for name, (_, good) in GOOD.items():
        first = next(iter(good))
        for key, x in good.items():
            if key == "key" or name in ("pairs", "unpairs"):
                continue
            whole = np.issubdtype(x.dtype, np.integer)
            if key != first and key not in ("head", "reference_head", "kl", "target", "coef"):
                blamed = "logits" if name == "logps_from_logits" and key == "targets" else key  # both are shown
                yield name, blamed, {**good, key: x[..., :-1, :] if x.ndim == 4 else x[..., :-1]}, "shorter"
                yield name, blamed, {**good, key: x[:, :1]} if x.ndim > 1 else {**good, key: x[:1]}, "to be broadcast"
                yield name, blamed, {**good, key: x[0]}, "rank"
            if key == "mask":
                yield name, key, {**good, key: x.astype(np.complex64)}, "complex"
            else:
                yield name, key, {**good, key: x.astype(np.float32 if whole else np.int32)}, "dtype"
                yield name, key, {**good, key: x > 0}, "bool"
            if inspect.signature(GOOD[name][0]).parameters[key].default is inspect.Parameter.empty:
                yield name, key, {**good, key: None}, "None"
            if name != "contrast_scores":  # it takes what numpy makes an array of
                yield name, key, {**good, key: x.tolist()}, "list"
    for name in ("fused_logps", "fused_logps_and_kl"):
        good = GOOD[name][1]
        for key in ("head", "reference_head"):
            if key in good:
                yield name, key, {**good, key: good[key].T}, "[V, D]"
                yield name, key, {**good, key: good[key][None]}, "rank"
                yield name, key, {**good, key: good[key][0]}, "no columns"
    both = GOOD["fused_logps_and_kl"][1]
    yield (
        "fused_logps_and_kl",
        "reference_head",
        {**both, "reference_head": both["reference_head"][:, 1:]},
        "vocabulary",
    )
    logits = GOOD["logps_from_logits"][1]
    yield "logps_from_logits", "logits", {**logits, "logits": np.swapaxes(logits["logits"], -1, -2)}, "[.., V, N]"
    yield "logps_from_logits", "logits", {**logits, "logits": logits["logits"][0, 0, 0, 0]}, "scalar"
    for name in ("sft_loss", "token_rewards", "contrast_scores"):
        good = GOOD[name][1]
        yield name, next(iter(good)), {key: np.asarray(x.sum()) for key, x in good.items()}, "scalars"
    yield "kto_loss", "kl", {**GOOD["kto_loss"][1], "kl": floats(B)}, "by pair"
    yield "dlma_loss", "token_kl", {**GOOD["dlma_loss"][1], "weights": None}, "without weights"
    yield "reward_loss", "rewards", {"rewards": floats(2, B)}, "sides first"
    yield "reward_loss", "rewards", {"rewards": floats()}, "scalar"
    yield "reward_loss", "target", {"rewards": floats(B, 2), "target": np.full(B + 1, 0.5, np.float32)}, "longer"
    logits, grades = GOOD["grade_loss"][1].values()
    yield "grade_loss", "logits", {"logits": logits.swapaxes(1, 2), "grades": grades.swapaxes(1, 2)}, "sides last"
    yield "grade_loss", "logits", {"logits": logits[0, 0], "grades": grades[0, 0]}, "rank"
    yield "prefix_baseline", "coef", {**GOOD["prefix_baseline"][1], "coef": floats(B + 1)}, "longer"
    for name, first in (("leave_one_out_by_position", "returns"), ("prefix_coef", "contrast")):
        yield name, first, {key: x[:, :1] for key, x in GOOD[name][1].items()}, "one response"
    one = {key: x[:1] for key, x in GOOD["prefix_coef"][1].items()}
    yield "prefix_coef", "advantages", one, "one prompt"
    yield "prefix_baseline", "coef", one, "one prompt"
    yield "pairs", "x", {"x": floats(3, N)}, "odd"
    yield "pairs", "x", {"x": floats()}, "scalar"
    yield "unpairs", "x", {"x": floats(2 * B, N)}, "rows"
    yield "unpairs", "x", {"x": floats(2)}, "rank"
    yield "next_token", "ids", {"ids": TARGETS[..., :0], "mask": MASK[..., :0]}, "nothing"


@pytest.mark.parametrize(
    ("name", "argument", "wrong"),
    [pytest.param(*case[:3], id=f"{case[0]}-{case[1]}-{case[3]}") for case in wrong_arrays()],
)
def test_arrays_that_cannot_be(name: str, argument: str, wrong: dict[str, Any]) -> None:
    refuses(name, argument, wrong)


def test_masks_are_bool_integers_or_floats() -> None:
    expected = losses.dpo_loss(**POLICY).loss
    for dtype in (bool, "int8", "uint8", jnp.bfloat16, "float16"):
        np.testing.assert_array_equal(losses.dpo_loss(**{**POLICY, "mask": MASK.astype(dtype)}).loss, expected)


def test_a_hyper_parameter_may_be_traced() -> None:
    """A schedule of beta, a grid of them by vmap, a gradient: of these the values cannot be seen."""
    expected = [losses.dpo_loss(**POLICY, beta=beta).loss for beta in (0.1, 0.2)]
    compiled = jax.jit(lambda beta: losses.dpo_loss(**POLICY, beta=beta).loss)
    grid = jax.vmap(compiled)(np.asarray([0.1, 0.2], np.float32))
    for one, other in zip((compiled(0.1), compiled(0.2), *grid), (*expected, *expected), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6)
    np.testing.assert_array_equal(losses.dpo_loss(**POLICY, beta=jnp.float32(0.1)).loss, expected[0])
    bounds = jax.jit(lambda low, high: weights.importance_weights(**SIGNS, lower=low, upper=high))
    assert bounds(-1.0, 1.0).shape == (B, 2, N)
    with pytest.raises(ValueError, match=r"dpo_loss: beta has shape \(2,\); it must be one number"):
        jax.jit(lambda beta: losses.dpo_loss(**POLICY, beta=beta))(jnp.ones(2))


def test_the_hint_fits_the_mistake() -> None:
    def message(change: Callable[[np.ndarray], np.ndarray]) -> str:
        with pytest.raises(ValueError) as error:
            losses.dpo_loss(*map(change, (POLICY["policy_logps"], POLICY["reference_logps"], MASK)))
        return str(error.value)

    assert message(LAYOUTS["rows, [2B, N]"]).endswith("become [B, 2, N] with tisdpo_jax.scoring.pairs")
    assert "np.swapaxes(x, -1, -2)" in message(LAYOUTS["sides last, [B, N, 2]"])
    assert "jnp.moveaxis(x, 0, -2)" in message(LAYOUTS["sides first, [2, B, N]"])
    assert "before they are summed" in message(LAYOUTS["sums, [B, 2]"])
    with pytest.raises(ValueError, match=r"head has shape \(7, 4\) .* becomes that by head\.T"):
        scoring.fused_logps(HEAD["hidden"], HEAD["head"].T, TARGETS)
