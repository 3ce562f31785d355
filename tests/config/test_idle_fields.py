"""Values that do nothing are refused by name."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest

from tisdpo_jax.cli.options import load_valid
from tisdpo_jax.config import PROMPT_PAIRS, Experiment, build, idle, nest, validate, with_prompts, without
from tisdpo_jax.errors import ConfigError
from tisdpo_jax.estimators import ESTIMATORS
from tisdpo_jax.objectives import OBJECTIVES

ENOUGH = {"model.path": "demo", "data.train": "demo:train"}


def config_of(fields: dict[str, Any]) -> Experiment:
    return build(Experiment, nest({name: str(value) for name, value in fields.items()}, where="test"), where="test")


IDLE: list[tuple[dict[str, Any], str]] = [
    ({"loss.name": "dpo", "weights.scale": 2}, "weights.scale"),
    ({"loss.name": "dpo", "contrast.construction": "sft"}, "contrast.construction"),
    ({"loss.name": "tdpo", "loss.variant": 1, "loss.alpha": 0.7}, "loss.alpha"),
    ({"loss.name": "dpo", "weights.method": "binary"}, "weights.method"),
    ({"weights.method": "uniform", "contrast.training.epochs": 2}, "contrast.training.epochs"),
    ({"loss.name": "simpo", "contrast.scores": "online"}, "contrast.scores"),
    ({"contrast.construction": "none", "weights.method": "rank"}, "weights.method"),
    ({"contrast.construction": "prompts", "contrast.beta": 0.3}, "contrast.beta"),
    ({"contrast.construction": "prompts", "contrast.training.batch_size": 8}, "contrast.training.batch_size"),
    ({"contrast.construction": "sft", "contrast.pair": "kind"}, "contrast.pair"),
    ({"contrast.positive_prompt": "be kind"}, "contrast.positive_prompt"),
    ({"loss.kl_coef": 0, "contrast.reference_states": "cached"}, "contrast.reference_states"),
    ({"lora.alpha": 32}, "lora.alpha"),
    ({"sft.batch_size": 8}, "sft.batch_size"),
    ({"train.optimizer.b1": 0.8}, "train.optimizer.b1"),
    ({"train.optimizer.name": "adafactor", "train.optimizer.eps": 1e-6}, "train.optimizer.eps"),
    ({"train.optimizer.end_fraction": 0.1}, "train.optimizer.end_fraction"),
    ({"train.eval_every": 5}, "train.eval_every"),
    ({"data.eval_limit": 5}, "data.eval_limit"),
    ({"data.max_invalid": 0.2}, "data.max_invalid"),
    ({"dlma.tie_band": 1}, "dlma.tie_band"),
    ({"sampling.url": "http://h/v1"}, "sampling.url"),
    ({"evaluation.judge.limit": 5}, "evaluation.judge.limit"),
    ({"evaluation.judge.by": "refusal", "evaluation.judge.timeout": 5}, "evaluation.judge.timeout"),
]


@pytest.mark.parametrize(("fields", "name"), IDLE, ids=lambda value: value if isinstance(value, str) else "")
def test_a_value_that_does_nothing_is_refused_by_name(fields: dict[str, Any], name: str) -> None:
    with pytest.raises(ConfigError, match=rf"^{name} is .* and does nothing: .*; take it out$"):
        validate(config_of(ENOUGH | fields))
    config = config_of(ENOUGH | fields)
    validate(without(config, idle(config)))


def test_what_the_verb_does_not_read_is_refused_on_the_command_line_and_may_stand_in_a_file(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"sampling.temperature is 0.5 and does nothing: tisdpo run without dlma.rounds"
    ):
        load_valid(None, ENOUGH | {"sampling.temperature": "0.5"}, "run")
    file = tmp_path / "own.yaml"
    file.write_text("model: {path: demo}\ndata: {train: demo:train}\nsampling: {temperature: 0.5}\n")
    assert load_valid(file, {}, "run").sampling.temperature == 1.0  # said, and as if it were not there
    assert load_valid(file, {}, "generate", trains=False).sampling.temperature == 0.5


def test_a_file_is_one_experiment_and_the_command_line_tries_another(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "own.yaml"
    file.write_text(
        "model: {path: demo}\ndata: {train: demo:train}\ncontrast: {construction: sft, training: {epochs: 2}}\n"
    )
    with caplog.at_level("INFO"):
        config = load_valid(file, {"loss.name": "dpo"}, "run")
    assert (
        "own.yaml: contrast.training.epochs does nothing here: loss.name dpo does not read pi+ and pi-" in caplog.text
    )
    assert config.contrast.training.epochs == 1.0 and not idle(config, "run")
    with pytest.raises(ConfigError, match=r"contrast.training.epochs is 3.0"):
        load_valid(file, {"loss.name": "dpo", "contrast.training.epochs": "3"}, "run")
    file.write_text(file.read_text() + "loss: {name: dpo}\n")
    with pytest.raises(ConfigError, match=r"contrast\.\S+ is .* and does nothing"):
        load_valid(file, {}, "run")


@pytest.mark.parametrize("name", PROMPT_PAIRS)
def test_a_pair_of_prompts_works_wherever_it_is_named(name: str, tmp_path: Path) -> None:
    fields = {"contrast.construction": "prompts", "contrast.pair": name}
    file = tmp_path / "own.yaml"
    file.write_text(
        f"model: {{path: demo}}\ndata: {{train: demo:train}}\ncontrast: {{construction: prompts, pair: {name}}}\n"
    )
    found = [
        validate(config_of(ENOUGH | fields)),
        load_valid(file, {}, "run"),
        load_valid(None, ENOUGH | fields, "run"),
    ]
    for config in found:
        assert (config.contrast.positive_prompt, config.contrast.negative_prompt) == PROMPT_PAIRS[name]
        assert with_prompts(config) == config  # config.yaml of a run builds the same run
    for text in ("positive_prompt", "negative_prompt"):
        with pytest.raises(ConfigError, match=f"contrast.pair {name} brings its own contrast.{text}"):
            validate(config_of(ENOUGH | fields | {f"contrast.{text}": "be other"}))


def test_the_defaults_of_every_method_are_no_mistake() -> None:
    for loss, construction in itertools.product(OBJECTIVES, ("prompts", "sft", "dpo", "none")):
        config = config_of({"loss.name": loss, "contrast.construction": construction})
        assert set(idle(config)) <= {"contrast.construction"}
    for method in ESTIMATORS:
        assert not idle(config_of({"weights.method": method}))
