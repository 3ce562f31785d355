"""Values that do nothing are refused by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tisdpo_jax.cli.options import load, load_valid
from tisdpo_jax.config import (
    PROMPT_PAIRS,
    RECIPES,
    DpoRecipe,
    Experiment,
    build,
    describe,
    idle,
    nest,
    validate,
    with_prompts,
    without,
)
from tisdpo_jax.errors import ConfigError
from tisdpo_jax.estimators import ESTIMATORS

ENOUGH = {"model.path": "demo", "data.train": "demo:train"}


def config_of(fields: dict[str, Any]) -> Experiment:
    return build(Experiment, nest({name: str(value) for name, value in fields.items()}, where="test"), where="test")


DLMA = {"recipe": "dlma", "model.path": "demo", "sampling.prompts": "demo:prompts"}
GENERATE = DLMA | {"recipe": "generate"}
DPO = ENOUGH | {"recipe": "dpo"}

IDLE: list[tuple[dict[str, Any], str]] = [
    (DPO | {"loss.name": "tdpo", "loss.variant": 1, "loss.alpha": 0.7}, "loss.alpha"),
    (ENOUGH | {"weights.method": "uniform", "contrast.construction": "sft"}, "contrast.construction"),
    (ENOUGH | {"weights.method": "uniform", "contrast.training.epochs": 2}, "contrast.training.epochs"),
    (DPO | {"loss.name": "simpo", "scores": "online"}, "scores"),
    (DPO | {"reference_states": "cached"}, "reference_states"),
    (ENOUGH | {"contrast.construction": "none", "weights.method": "rank"}, "weights.method"),
    (ENOUGH | {"contrast.construction": "prompts", "contrast.beta": 0.3}, "contrast.beta"),
    (
        ENOUGH | {"contrast.construction": "prompts", "contrast.training.batch_size": 8},
        "contrast.training.batch_size",
    ),
    (ENOUGH | {"contrast.construction": "sft", "contrast.pair": "kind"}, "contrast.pair"),
    (ENOUGH | {"contrast.positive_prompt": "be kind"}, "contrast.positive_prompt"),
    (ENOUGH | {"loss.kl_coef": 0, "reference_states": "cached"}, "reference_states"),
    (ENOUGH | {"lora.alpha": 32}, "lora.alpha"),
    (ENOUGH | {"sft.batch_size": 8}, "sft.batch_size"),
    (ENOUGH | {"train.optimizer.b1": 0.8}, "train.optimizer.b1"),
    (ENOUGH | {"train.optimizer.name": "adafactor", "train.optimizer.eps": 1e-6}, "train.optimizer.eps"),
    (ENOUGH | {"train.optimizer.end_fraction": 0.1}, "train.optimizer.end_fraction"),
    (ENOUGH | {"train.eval_every": 5}, "train.eval_every"),
    (DLMA | {"train.eval_every": 5}, "train.eval_every"),
    (ENOUGH | {"data.eval_limit": 5}, "data.eval_limit"),
    (ENOUGH | {"data.max_invalid": 0.2}, "data.max_invalid"),
    (DLMA | {"dlma.reference": "first"}, "dlma.reference"),
    (DLMA | {"dlma.eval_prompts": "p.jsonl", "dlma.eval_fraction": 0.3}, "dlma.eval_fraction"),
    (DLMA | {"sampling.url": "http://h/v1"}, "sampling.url"),
    (GENERATE | {"sampling.engine": "files", "sampling.top_k": 5}, "sampling.top_k"),
    (GENERATE | {"contrast.pair": "kind"}, "contrast.pair"),
    (ENOUGH | {"evaluation.judge.limit": 5}, "evaluation.judge.limit"),
    (ENOUGH | {"evaluation.judge.by": "refusal", "evaluation.judge.timeout": 5}, "evaluation.judge.timeout"),
    (DLMA | {"evaluation.judge.by": "refusal", "evaluation.judge.limit": 5}, "evaluation.judge.limit"),
]


@pytest.mark.parametrize(("fields", "name"), IDLE, ids=lambda value: value if isinstance(value, str) else "")
def test_a_value_that_does_nothing_is_refused_by_name(fields: dict[str, Any], name: str) -> None:
    with pytest.raises(ConfigError, match=rf"^{name} is .* and does nothing: .*; take it out$"):
        validate(config_of(fields))
    config = config_of(fields)
    validate(without(config, idle(config)))


REFUSED: list[tuple[dict[str, Any], str]] = [
    (ENOUGH | {"train.gradient_accumulation_steps": 3}, "must be a multiple of train.gradient_accumulation_steps 3"),
    (ENOUGH | {"model.attention": "cudnn"}, "model.attention cudnn takes no packed rows"),
    (ENOUGH | {"data.eval": "demo:eval", "data.eval_fraction": 0.1}, "are both given"),
    (ENOUGH | {"weights.lower": 2}, "weights.lower 2.0 is above weights.upper 1.5"),
    (ENOUGH | {"loss.name": "dlma", "loss.margin_lower": 50}, "loss.margin_lower 50.0 is above"),
    (ENOUGH | {"loss.name": "dlma", "scores": "online"}, "from cached scores; set scores cached"),
    (ENOUGH | {"evaluation.judge.by": "http://h/v1"}, "evaluation.judge.endpoint_model is not set"),
    (DLMA | {"contrast.positive_prompt": "a", "contrast.negative_prompt": "a"}, "are the same"),
    (DLMA | {"sampling.engine": "http"}, "sampling.engine http needs sampling.url"),
    (DLMA | {"sampling.engine": "files", "dlma.rounds": 2}, "from the second round on the trained policy answers"),
    ({"recipe": "dlma", "model.path": "demo"}, "sampling.prompts is not set; name a .jsonl"),
    ({"model.path": "demo"}, "data.train is not set; name training pairs: a .jsonl"),
    ({"recipe": "evaluate", "model.path": "demo"}, "evaluation.policy is not set"),
]


@pytest.mark.parametrize(("fields", "told"), REFUSED, ids=lambda value: value if isinstance(value, str) else "")
def test_what_makes_no_sense_together_is_refused(fields: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError) as caught:
        validate(config_of(fields))
    assert told in str(caught.value)


def test_a_file_is_one_experiment_and_the_command_line_tries_another(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "own.yaml"
    file.write_text(
        "model: {path: demo}\ndata: {train: demo:train}\ncontrast: {construction: sft, training: {epochs: 2}}\n"
    )
    with caplog.at_level("INFO"):
        config = load_valid(file, {"contrast.construction": "prompts"})
    assert "own.yaml: contrast.training.epochs does nothing here: contrast.construction prompts" in caplog.text
    assert config.contrast.training.epochs == 1.0 and not idle(config)
    with pytest.raises(ConfigError, match=r"contrast.training.epochs is 3.0"):
        load_valid(file, {"contrast.construction": "prompts", "contrast.training.epochs": "3"})
    with caplog.at_level("INFO"):
        assert isinstance(load_valid(file, {"recipe": "dpo"}), DpoRecipe)
    assert "own.yaml: the recipe or kind that the command line chooses does not have contrast\n" in caplog.text
    file.write_text(file.read_text().replace("construction: sft", "construction: prompts"))
    with pytest.raises(ConfigError, match=r"contrast.training.epochs is .* and does nothing"):
        load_valid(file, {})


def test_a_recipe_and_a_verb_that_do_not_fit(tmp_path: Path) -> None:
    file = tmp_path / "own.yaml"
    file.write_text("recipe: dpo\nmodel: {path: demo}\ndata: {train: demo:train}\n")
    with pytest.raises(ConfigError, match=r"tisdpo generate: not for recipe dpo, which is for run, .*: generate$"):
        load_valid(file, {}, "generate")
    asked = load_valid(file, {"recipe": "generate", "sampling.prompts": "demo:prompts"}, "generate")
    assert asked.model.path == "demo" and asked.run_dir == "runs/own"
    for recipe, verb in (("evaluate", "run"), ("generate", "train"), ("dlma", "inspect"), ("sft", "score")):
        with pytest.raises(ConfigError, match=f"tisdpo {verb}: not for recipe {recipe}"):
            load_valid(None, {"recipe": recipe}, verb)
    kinds = {verb: load(None, {}, verb).recipe for verb in ("run", "score", "plan", "evaluate", "generate")}
    assert kinds == dict.fromkeys(("run", "score", "plan"), "tisdpo") | {"evaluate": "evaluate", "generate": "generate"}


@pytest.mark.parametrize("name", PROMPT_PAIRS)
def test_a_pair_of_prompts_works_wherever_it_is_named(name: str, tmp_path: Path) -> None:
    fields = {"contrast.construction": "prompts", "contrast.pair": name}
    file = tmp_path / "own.yaml"
    file.write_text(
        f"model: {{path: demo}}\ndata: {{train: demo:train}}\ncontrast: {{construction: prompts, pair: {name}}}\n"
    )
    found = [
        validate(config_of(ENOUGH | fields)),
        load_valid(file, {}),
        load_valid(None, ENOUGH | fields),
    ]
    for config in found:
        assert (config.contrast.positive_prompt, config.contrast.negative_prompt) == PROMPT_PAIRS[name]
        assert with_prompts(config) == config  # config.yaml of a run builds the same run
    for text in ("positive_prompt", "negative_prompt"):
        with pytest.raises(ConfigError, match=f"contrast.pair {name} brings its own contrast.{text}"):
            validate(config_of(ENOUGH | fields | {f"contrast.{text}": "be other"}))


def test_the_defaults_of_every_method_are_no_mistake() -> None:
    for name, kind in RECIPES.items():
        for loss in next((line[1].split("|") for line in describe(kind) if line[0] == "loss.name"), ()):
            assert not idle(config_of({"recipe": name, "loss.name": loss})), (name, loss)
    for construction in ("prompts", "sft", "dpo", "none"):
        assert not idle(config_of({"contrast.construction": construction}))
    for method in ESTIMATORS:
        assert not idle(config_of({"weights.method": method}))
