"""A field of the configuration exists only if it does something."""

from __future__ import annotations

import ast
import dataclasses
import functools
import re
from pathlib import Path
from typing import Any

import pytest

from tisdpo_jax.config import Experiment, build, describe, let_go, nest, resolved, validate
from tisdpo_jax.config.build import discriminator
from tisdpo_jax.config.fields import get, replaced
from tisdpo_jax.errors import ConfigError
from tisdpo_jax.objectives import Dpo, SimPo

PACKAGE = Path(__file__).resolve().parents[2] / "tisdpo_jax"


@functools.cache
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


@pytest.mark.parametrize("name", [name for name, *_ in describe(Experiment)])
def test_every_field_is_read_somewhere(name: str) -> None:
    assert name.rpartition(".")[2] in attributes_read()


def test_yaml_numbers_are_cast_by_field_type() -> None:
    values = {
        "train": {"optimizer": {"learning_rate": "5e-7"}, "epochs": 1},
        "model": {"path": 7},
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
        ({"loss": {"name": "ipo", "average": "perhaps"}}, "loss.average is 'perhaps'; it must be true or false"),
        ({"losss": {}}, "unknown field losss; did you mean loss?"),
    ],
)
def test_what_does_not_fit_is_named_with_its_file(values, told) -> None:
    with pytest.raises(ConfigError) as caught:
        build(Experiment, values, where="x.yaml")
    assert str(caught.value).startswith("x.yaml: ") and told in str(caught.value)


def test_overrides_nest_and_a_resolved_configuration_builds_itself() -> None:
    tree = nest({"loss.beta": "0.2", "loss.name": "dpo", "seed": "3"}, where="command line")
    config = build(Experiment, tree, where="command line")
    assert (config.loss.beta, config.loss.name, config.seed) == (0.2, "dpo", 3)
    assert build(Experiment, resolved(config), where="again") == config


def limited() -> list[tuple[str, dict[str, str], float]]:
    """(field, what has to be chosen for it to be there, a number that is too small or too large) of every range."""
    cases = []

    def walk(section: Any, prefix: str, chosen: dict[str, str]) -> None:
        for field in dataclasses.fields(section):
            name, variants = f"{prefix}{field.name}", field.metadata.get("variants")
            if variants:
                for kind_name, kind in variants.items():
                    walk(kind(), f"{name}.", {f"{name}.{discriminator(variants)}": kind_name})
            elif dataclasses.is_dataclass(getattr(section, field.name)):
                walk(getattr(section, field.name), f"{name}.", chosen)
            for limit, value in field.metadata.get("limits", {}).items():
                if value is not None:
                    side = -1 if limit in ("above", "at_least") else 1
                    cases.append((name, chosen, value if limit in ("above", "below") else value + side))

    walk(Experiment(), "", {})
    return cases


def test_a_number_outside_its_range_is_refused_by_name() -> None:
    cases = limited()
    assert len(cases) > 80
    for name, chosen, value in cases:
        config = build(Experiment, nest(chosen, where="test"), where="test")
        value = int(value) if isinstance(get(config, name), int) else value
        with pytest.raises(ConfigError, match=rf"^{re.escape(name)} is .*; it must be (at least|above|between|below)"):
            validate(replaced(config, name, value))


def test_a_section_of_several_kinds_is_that_of_its_name_and_keeps_what_both_kinds_have() -> None:
    file = build(Experiment, {"loss": {"name": "tisdpo", "beta": 0.2, "kl_coef": 0.5}}, where="x.yaml")
    tried = build(Experiment, nest({"loss.name": "dpo"}, where="command line"), where="command line", base=file)
    assert tried.loss == Dpo(beta=0.2) and list(let_go(file, tried)) == ["loss.kl_coef"]
    assert build(Experiment, {"loss": {"name": "simpo"}}, where="x").loss == SimPo()  # its own defaults
    with pytest.raises(ConfigError, match=r"x: unknown field loss.kl_coef for loss.name dpo, which has: name, beta"):
        build(Experiment, {"loss": {"name": "dpo", "kl_coef": 1}}, where="x")
    with pytest.raises(ConfigError, match=r"x: loss.name is 'dop'; .*; did you mean dpo\?"):
        build(Experiment, {"loss": {"name": "dop"}}, where="x")
