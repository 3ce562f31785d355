"""Every field of the configuration does something, and a test sees it.

A field is flipped here, and what is built of the configuration changes: the graph, the step of a stage, the identity of
its result. What shows first when something is read, sampled, judged or written is flipped where that is tested; the
table names the test. A field that stands in none of the tables fails.
"""

from __future__ import annotations

import dataclasses
import re
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from runs import BASE

from tisdpo_jax.artifacts import Run, differences
from tisdpo_jax.config import RECIPES, Experiment, StageSection, build, describe, nest
from tisdpo_jax.data import EncodedSet
from tisdpo_jax.errors import ConfigError
from tisdpo_jax.metrics import PairScores
from tisdpo_jax.models import Model
from tisdpo_jax.recipes import graph_of
from tisdpo_jax.stages import Encoder, Records, Splits, compute_config, open_session, passing
from tisdpo_jax.testing import tiny_config
from tisdpo_jax.testing.tokenizer import tiny_tokenizer
from tisdpo_jax.training.interrupt import Interrupt
from tisdpo_jax.verbs import measure

TESTS = Path(__file__).resolve().parents[1]
OPTIMIZER = {
    **{"name": "adafactor", "learning_rate": 0.5, "warmup_steps": 7, "schedule": "linear", "end_fraction": 0.5},
    **{"clip_norm": 0.5, "weight_decay": 0.5, "b1": 0.5, "b2": 0.5, "eps": 0.5},
}
STAGE = {"batch_size": 64, **{f"optimizer.{name}": value for name, value in OPTIMIZER.items()}}

# field -> (another value, what else is set); the identity of the policy names the field
IDENTITY: dict[str, tuple[Any, dict[str, Any]]] = {
    **{"seed": (1, {}), "data.seed": (1, {}), "data.packing": ("none", {})},
    **{"model.dtype": ("float32", {}), "model.param_dtype": ("bfloat16", {}), "model.frozen_dtype": ("int8", {})},
    **{"lora.rank": (2, {}), "lora.alpha": (8.0, {"lora.rank": 2}), "lora.targets": ("mlp/up", {"lora.rank": 2})},
    **{f"train.{name}": (value, {}) for name, value in {"epochs": 2.0, **STAGE}.items()},
    **{f"sft.{name}": (value, {"sft.epochs": 1}) for name, value in {"epochs": 2.0, **STAGE}.items()},
    **{f"contrast.training.{name}": (value, {}) for name, value in {"epochs": 2.0, **STAGE}.items()},
    "contrast.construction": ("sft", {}),
    "contrast.beta": (0.3, {}),
    "contrast.positive_prompt": ("be kind", {"contrast.construction": "prompts"}),
    "contrast.negative_prompt": ("be rude", {"contrast.construction": "prompts"}),
    "weights.method": ("uniform", {}),
    **{f"weights.{name}": (0.25, {}) for name in ("scale", "mu", "lower", "upper")},
    "weights.seed": (3, {"weights.method": "log_uniform"}),
    "weights.gamma": (0.5, {"weights.method": "position"}),
    "weights.top_percent": (20.0, {"weights.method": "binary"}),
    "weights.power": (2.0, {"weights.method": "entropy"}),
    "loss.name": ("dlma", {}),
    **{f"loss.{name}": (0.25, {}) for name in ("beta", "label_smoothing", "kl_coef")},
    "loss.average": (True, {"loss.name": "ipo"}),
    "loss.alpha": (0.25, {"loss.name": "tdpo"}),
    "loss.variant": (1, {"loss.name": "tdpo"}),
    "loss.desirable_weight": (2.0, {"loss.name": "kto"}),
    "loss.undesirable_weight": (2.0, {"loss.name": "kto"}),
    **{f"loss.{name}": (0.25, {"loss.name": "dlma"}) for name in ("margin_coef", "margin_lower", "margin_upper")},
    "loss.gamma": (0.25, {"loss.name": "simpo"}),
    "loss.coef": (0.25, {"loss.name": "orpo"}),
    "loss.center_coef": (0.25, {"recipe": "reward"}),
    "train.optimizer.head_rate": (2.0, {"recipe": "reward"}),
    **{f"strengths.{name}": (0.55, {"recipe": "reward"}) for name in ("significantly", "better", "slightly")},
    "strengths.negligibly": (0.55, {"recipe": "reward"}),
}

# Another way to the same numbers: the step or the model that is compiled changes, the identity does not.
STEP: dict[str, tuple[Any, dict[str, Any]]] = {
    **{"model.attention": ("splash", {}), "model.remat": ("full", {}), "model.layer_loop": ("unroll", {})},
    **{"model.head_chunk": (64, {}), "mesh.compiler_options": ("{xla_a: 1}", {})},
    "train.gradient_accumulation_steps": (4, {}),
    "sft.gradient_accumulation_steps": (4, {"sft.epochs": 1}),
    "contrast.training.gradient_accumulation_steps": (4, {}),
    "scores": ("online", {}),
    "reference_states": ("cached", {"loss.kl_coef": 1.0}),
}

RUNS, DLMA, JUDGES = "recipes/test_tisdpo_runs.py", "recipes/test_dlma.py", "recipes/test_evaluate_judge.py"
MODELS, LOOP, LOG = "recipes/test_evaluate_models.py", "training/test_loop.py", "training/test_metrics_log.py"
DRAWS, HTTP, SPLIT = "generation/test_draw.py", "generation/test_asking.py", "data/test_pair_policy.py"
# field -> the file of tests that sees its flip, and the words by which it is found there
ELSEWHERE: dict[str, tuple[str, str]] = {
    "recipe": ("config/test_config_fields.py", "recipe"),
    "beta": ("recipes/test_every_field.py", "test_rewards_are_scaled_by_beta"),
    "run_dir": (DLMA, r'"run_dir": run\b'),
    "compile_cache": ("training/test_programs.py", "keep_on_disk"),
    "model.path": (RUNS, "model__path"),
    "model.tokenizer": ("cli/test_mistakes.py", "tokenizer"),
    "data.train": (RUNS, "data__train"),
    "data.eval": (MODELS, "data__eval"),
    "data.eval_fraction": (SPLIT, "fraction"),
    "data.eval_limit": ("recipes/test_every_field.py", "test_held_out_pairs_may_be_limited"),
    "data.format": ("data/test_pair_sources.py", "format="),
    "data.template": ("recipes/test_second_day.py", "data__template"),
    "data.system": (RUNS, "data__system"),
    "data.max_length": (RUNS, "data__max_length"),
    "data.max_response": (RUNS, "data__max_response"),
    "data.on_error": (SPLIT, '"skip"'),
    "data.max_invalid": (SPLIT, "max_invalid"),
    "data.limit": (RUNS, "data__limit"),
    "mesh.data": ("partitioning/test_partitioning_rules.py", "data="),
    "mesh.fsdp": ("planning/test_plan.py", r"mesh\.fsdp"),
    "mesh.tensor": ("planning/test_plan.py", r"mesh\.tensor"),
    "mesh.slices": ("partitioning/test_slices.py", "slices"),
    "contrast.pair": ("config/test_idle_fields.py", r"contrast\.pair"),
    **{f"sampling.{name}": (DLMA, f"sampling__{name}") for name in ("prompts", "limit", "policy", "show", "samples")},
    **{f"sampling.{name}": (DLMA, f"sampling__{name}") for name in ("engine", "batch_size", "seed", "url", "retries")},
    **{f"sampling.{name}": (DRAWS, name) for name in ("temperature", "top_k", "top_p", "min_p")},
    **{f"sampling.{name}": (HTTP, name) for name in ("concurrency", "timeout")},
    "sampling.endpoint_model": (HTTP, "model"),
    "sampling.stop": (DLMA, '"stop"'),
    "sampling.max_new_tokens": ("recipes/test_positions.py", "sampling__max_new_tokens"),
    "sampling.max_prompt": ("recipes/test_positions.py", r"sampling\.max_prompt"),
    **{
        f"dlma.{name}": (DLMA, f"dlma__{name}")
        for name in ("rounds", "reference", "eval_prompts", "eval_fraction", "score")
    },
    **{f"dlma.{name}": ("recipes/test_self_reward.py", name) for name in ("relabel", "tie_band", "length_ratio")},
    "dlma.unfinished": ("recipes/test_self_reward.py", "unfinished"),
    **{f"train.{name}": (LOOP, name) for name in ("eval_every", "checkpoint_every", "max_skipped")},
    "train.keep_checkpoints": ("test_checkpoint.py", "keep="),
    "evaluation.batch_size": ("recipes/test_every_field.py", "test_pairs_of_a_scoring_step"),
    **{f"evaluation.{name}": (MODELS, f"evaluation__{name}") for name in ("generate", "heat_maps", "policy", "data")},
    **{f"evaluation.{name}": (MODELS, f"evaluation__{name}") for name in ("reference", "subset", "resamples")},
    "evaluation.checks": ("recipes/test_samples.py", "open_checks"),
    **{f"evaluation.{name}": (JUDGES, f"evaluation__{name}") for name in ("max_new_tokens", "seed")},
    "evaluation.judge.by": (JUDGES, "evaluation__judge__by"),
    **{
        f"evaluation.judge.{name}": (JUDGES, f"evaluation__judge__{name}")
        for name in (
            *("models", "prompts", "limit", "temperature", "tie_band", "anchor", "endpoint_model", "criterion"),
            *("concurrency", "timeout", "retries"),
        )
    },
    "logging.every": (LOOP, "log_every"),
    "logging.progress": (LOG, "progress"),
    **{f"logging.{name}": (LOG, name) for name in ("tensorboard", "wandb")},
}


def configs_of(*several: dict[str, Any]) -> list[Experiment]:
    """Configurations of the first recipe that takes the fields of all; sft has no choices of its own and is last."""
    for kind in sorted(RECIPES.values(), key=lambda kind: kind().recipe == "sft"):
        try:
            texts = ({name: str(value) for name, value in fields.items()} for fields in several)
            return [build(kind, nest(one, where="test"), where="test") for one in texts]
        except ConfigError:
            continue
    raise AssertionError(f"no recipe takes {several}")


def identity(config: Experiment) -> dict[str, Any]:
    """What the result of the policy is kept under, before anything is made."""
    encoder = Encoder.of(config, tiny_tokenizer())
    context: Any = types.SimpleNamespace(config=config, model=Model(tiny_config()), encoder=encoder)
    return graph_of(config).policy.key(Run(context))


def built(config: Experiment) -> list[Any]:
    """What stages would do: the graph, its computation, the step of each training."""
    graph = graph_of(config)
    found, todo = [graph, compute_config(config)], [graph.policy]
    while todo:
        stage = todo.pop()
        todo += stage.inputs
        if hasattr(stage, "plan"):
            found.append((stage.name, stage.plan(config, Model(tiny_config()))))
    return found


def flips(cases: dict[str, tuple[Any, dict[str, Any]]]) -> Any:
    return pytest.mark.parametrize(("field", "value", "with_"), [(name, *case) for name, case in cases.items()])


@flips(IDENTITY)
def test_another_value_is_another_result(field: str, value: Any, with_: dict[str, Any]) -> None:
    before, after = map(identity, configs_of(with_, {**with_, field: value}))
    changed = [name.partition(" (")[0] for name in differences(before, after)]
    kind = field.partition(".")[0] if field.endswith((".name", ".method")) and field.count(".") == 1 else field
    assert any(name == field or name.startswith(kind) for name in changed), changed


@flips(STEP)
def test_another_value_is_another_way_to_the_same(field: str, value: Any, with_: dict[str, Any]) -> None:
    one, other = configs_of(with_, {**with_, field: value})
    assert built(one) == built(one) != built(other)
    assert identity(one) == identity(other)


@pytest.mark.parametrize("field", ELSEWHERE)
def test_what_is_seen_elsewhere_is_there(field: str) -> None:
    file, words = ELSEWHERE[field]
    assert re.search(words, (TESTS / file).read_text(encoding="utf-8")), f"{file} says nothing of {field}: {words}"


def test_every_field_stands_in_one_table() -> None:
    listed = [*IDENTITY, *STEP, *ELSEWHERE]
    fields = {name for kind in RECIPES.values() for name, *_ in describe(kind)}
    assert sorted(listed) == sorted(fields), "say of a new field who sees it"
    assert {f"optimizer.{name}" for name in OPTIMIZER} | {"batch_size"} == STAGE.keys()
    assert dataclasses.fields(StageSection)[-1].name == "optimizer"


def opened(tiny: dict[str, object], place: Path, **fields: Any) -> Any:
    own = {name.replace("__", "."): value for name, value in tiny.items()}
    (config,) = configs_of({**BASE, **own, "mesh.fsdp": 8, **fields})
    place.mkdir()
    session = open_session(config, place, Interrupt())
    return session, Run(session)(Records())


def test_held_out_pairs_may_be_limited(tiny: dict[str, object], tmp_path: Path) -> None:
    (_, whole), (_, limited) = (opened(tiny, tmp_path / str(n), **{"data.eval_limit": n}) for n in ("null", 3))
    assert len(whole.eval) > len(limited.eval) == 3 and len(whole.train) == len(limited.train)


def test_pairs_of_a_scoring_step(tiny: dict[str, object], tmp_path: Path) -> None:
    for count in (8, 16):
        session, pairs = opened(tiny, tmp_path / str(count), **{"evaluation.batch_size": count})
        _, batches = passing(session, pairs.train, pairs.elements, "main")
        assert {len(batch) for batch in batches} == {count}


def test_rewards_are_scaled_by_beta(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of models that are there; a policy that was trained has that of its loss."""
    sums = np.asarray([[-10.0, -12.0], [-9.0, -8.0]])
    scores = PairScores(
        policy=sums, reference=sums - [[2.0, 0.0]], kl=sums * 0, tokens=sums * 0 + 4, prompts=["a", "b"]
    )
    for name in ("check_same_tokens", "counts"):
        monkeypatch.setattr(measure, name, lambda *_: None)
    monkeypatch.setattr(measure, "measure_pairs", lambda *_: scores)
    for beta in (0.1, 0.5):
        (config,) = configs_of({"recipe": "evaluate", "beta": beta})
        session: Any = types.SimpleNamespace(config=config)
        done = measure.evaluate(session, Splits.measured(EncodedSet((), (), "none")), None, None)  # type: ignore[arg-type]
        assert done.found.beta == beta and scores.margins(beta).tolist() == [2 * beta, 2 * beta]
