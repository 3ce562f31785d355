"""A field of the configuration exists only if it does something."""

from __future__ import annotations

import ast
import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from tisdpo_jax.config import (
    RECIPES,
    DlmaRecipe,
    DpoRecipe,
    Experiment,
    TisDpoRecipe,
    build,
    describe,
    get,
    let_go,
    nest,
    replaced,
    resolved,
    validate,
)
from tisdpo_jax.config.build import discriminator
from tisdpo_jax.errors import ConfigError
from tisdpo_jax.objectives import Dlma, Dpo, SimPo

PACKAGE = Path(__file__).resolve().parents[2] / "tisdpo_jax"


def attributes_read() -> set[str]:
    """Names of all attributes that the package reads, outside config/."""
    names: set[str] = set()
    for path in PACKAGE.rglob("*.py"):
        if path.parent.name == "config" or path.is_relative_to(PACKAGE / "testing"):
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
                names.add(node.attr)
    return names


def test_every_field_is_read_somewhere() -> None:
    names = {name for kind in RECIPES.values() for name, *_ in describe(kind)}
    read = attributes_read()
    assert len(names) > 150 and not {name for name in names if name.rpartition(".")[2] not in read}


def test_yaml_numbers_are_cast_by_field_type() -> None:
    values = {
        "train": {"optimizer": {"learning_rate": "5e-7"}, "epochs": 1},
        "model": {"path": 7},
        "recipe": "dpo",
        "loss": {"name": "tdpo", "variant": "1"},
    }
    config = build(Experiment, values, where="x.yaml")
    assert config.train.optimizer.learning_rate == 5e-7 and config.model.path == "7" and config.loss.variant == 1
    assert isinstance(config.train.epochs, float)


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"train": 3}, "train is a section"),
        ({"train": {"batch_size": 2.5}}, "train.batch_size is 2.5; it must be a whole number"),
        ({"train": {"batch_size": True}}, "train.batch_size is True"),
        ({"loss": {"beta": "nan"}}, "loss.beta is 'nan'; it must be a number"),
        (
            {"recipe": "dpo", "loss": {"name": "ipo", "average": "perhaps"}},
            "loss.average is 'perhaps'; it must be true or false",
        ),
        ({"losss": {}}, "unknown field losss; did you mean loss?"),
        (
            {"recipe": "dop"},
            "recipe is 'dop'; it must be one of sft, dpo, tisdpo, dlma, reward, evaluate, generate; did",
        ),
        ({"recipe": "dpo", "dlma": {}}, "unknown field dlma for recipe dpo; `recipe: dlma` has it"),
        ({"loss": {"name": "dpo"}}, "it must be one of tisdpo, dlma, dlma+tisdpo; `recipe: dpo` has it"),
        ({"data": {"system": "null"}}, "data.system is 'null'; it must be text"),
        ({"contrast": {"scores": "online"}}, "unknown field contrast.scores; did you mean scores?"),
        ({"data": {"eval": ""}}, "data.eval is ''; write null, or leave it out"),
        ({"data": {"limit": "many"}}, "data.limit is 'many'; it must be a whole number, or null"),
        ({"model": {"dtype": None}}, "model.dtype is None; it must be one of float32, bfloat16"),
        ({"mesh": {"compiler_options": "a=1,b=true"}}, "it must be a mapping, as {name: value}"),
        ({"mesh": {"compiler_options": {"a": None}}}, "mesh.compiler_options.a is None"),
        ({"evaluation": {"judge": {"models": "{a: x, a: y}"}}}, "not valid YAML: 'a' stands twice"),
        ({"evaluation": {"judge": {"models": {"a": ""}}}}, "it must be a mapping, as {name: value}"),
        ({"recipe": "generate", "sampling": {"stop": "END||\n"}}, "it must be a list, as [one, two]"),
        ({"recipe": "generate", "sampling": {"stop": ["a", ""]}}, "it must be a list, as [one, two]"),
        ({"recipe": "generate", "sampling": {"stop": [["a"]]}}, "sampling.stop is ['a']; it must be text"),
    ],
)
def test_what_does_not_fit_is_named_with_its_file(values, told) -> None:
    with pytest.raises(ConfigError) as caught:
        build(Experiment, values, where="x.yaml")
    assert str(caught.value).startswith("x.yaml: ") and told in str(caught.value)


def test_overrides_nest_and_a_resolved_configuration_builds_itself() -> None:
    given = {"recipe": "dpo", "loss.beta": "0.2", "loss.name": "kto", "seed": "3", "train.optimizer.clip_norm": "none"}
    config = build(Experiment, nest(given, where="command line"), where="command line")
    assert (config.loss.beta, config.loss.name, config.seed, config.train.optimizer.clip_norm) == (0.2, "kto", 3, None)
    texts = {"sampling.stop": '["\\n\\n", END]', "mesh.compiler_options": "{a: 1000000, b: true, c: x}"}
    many = build(Experiment, nest({"recipe": "dlma"} | texts, where="command line"), where="command line")
    assert many.sampling.stop == ("\n\n", "END") and many.mesh.compiler_options == {"a": 1000000, "b": True, "c": "x"}
    for one in (config, many, *(kind() for kind in RECIPES.values())):
        assert build(Experiment, yaml.safe_load(yaml.safe_dump(resolved(one))), where="again") == one


def limited() -> list[tuple[str, dict[str, str], float]]:
    """(field, what has to be chosen for it to be there, a number that is too small or too large) of every range."""
    cases = []

    def walk(section: Any, prefix: str, chosen: dict[str, str]) -> None:
        for field in dataclasses.fields(section):
            name, variants = f"{prefix}{field.name}", field.metadata.get("variants")
            if variants:
                for kind_name, kind in variants.items():
                    walk(kind(), f"{name}.", chosen | {f"{name}.{discriminator(variants)}": kind_name})
            elif dataclasses.is_dataclass(getattr(section, field.name)):
                walk(getattr(section, field.name), f"{name}.", chosen)
            for limit, value in field.metadata.get("limits", {}).items():
                if value is not None:
                    side = -1 if limit in ("above", "at_least") else 1
                    cases.append((name, chosen, value if limit in ("above", "below") else value + side))

    for name, kind in RECIPES.items():
        walk(kind(), "", {"recipe": name})
    return cases


def test_a_number_outside_its_range_is_refused_by_name() -> None:
    cases = limited()
    assert len(cases) > 80
    for name, chosen, value in cases:
        config = build(Experiment, nest(chosen, where="test"), where="test")
        value = value if isinstance(get(config, name), float) else int(value)
        with pytest.raises(ConfigError, match=rf"^{re.escape(name)} is .*; it must be (at least|above|between|below)"):
            validate(replaced(config, name, value))


def test_absent_is_null_and_ranges_hold_for_what_is_there() -> None:
    config = build(Experiment, {"data": {"limit": None, "eval_limit": "null"}, "logging": {"wandb": "None"}}, where="x")
    assert (config.data.limit, config.data.eval_limit, config.logging.wandb) == (None, None, None)
    with pytest.raises(ConfigError, match=r"data.limit is 0; it must be at least 1, or null"):
        validate(replaced(config, "data.limit", 0))
    with pytest.raises(ConfigError, match=r"model.path is not set; name a Hugging Face directory"):
        validate(config)


def test_a_section_of_several_kinds_is_that_of_its_name_and_keeps_what_both_kinds_have() -> None:
    file = build(Experiment, {"loss": {"name": "dlma+tisdpo", "beta": 0.2, "kl_coef": 0.5}}, where="x.yaml")
    tried = build(Experiment, nest({"loss.name": "dlma"}, where="command line"), where="command line", base=file)
    assert tried.loss == Dlma(beta=0.2) and let_go(file, tried) == ["loss.kl_coef"]
    assert build(Experiment, {"recipe": "dpo", "loss": {"name": "simpo"}}, where="x").loss == SimPo()  # own defaults
    with pytest.raises(ConfigError, match=r"x: unknown field loss.kl_coef for loss.name dlma, which has: beta, "):
        build(Experiment, {"loss": {"name": "dlma", "kl_coef": 1}}, where="x")
    with pytest.raises(ConfigError, match=r"x: loss.name is 'tisdop'; .*; did you mean tisdpo\?"):
        build(Experiment, {"loss": {"name": "tisdop"}}, where="x")


def test_another_recipe_keeps_what_both_have() -> None:
    values = {"data": {"train": "p.jsonl"}, "loss": {"beta": 0.2}, "weights": {"method": "rank"}, "sft": {"epochs": 1}}
    file = build(Experiment, values, where="x.yaml")
    tried = build(Experiment, {"recipe": "dpo"}, where="command line", base=file)
    assert isinstance(tried, DpoRecipe) and tried.loss == Dpo(beta=0.2) and tried.sft.epochs == 1
    assert tried.data.train == "p.jsonl" and let_go(file, tried) == ["weights"]
    alone = build(Experiment, {"recipe": "generate"}, where="command line", base=file)
    assert let_go(file, alone) == ["data.train", "sft", "weights", "loss"]


def test_losses_of_a_recipe_follow_from_what_they_need() -> None:
    def names(recipe: type) -> set[str]:
        return set(next(kind for name, kind, *_ in describe(recipe) if name == "loss.name").split("|"))

    assert names(DpoRecipe) == {"dpo", "ipo", "kto", "tdpo", "simpo", "orpo"}
    assert names(TisDpoRecipe) == {"tisdpo", "dlma", "dlma+tisdpo"}
    assert names(DlmaRecipe) == names(DpoRecipe) | names(TisDpoRecipe)
