"""A field of the configuration exists only if it does something."""

from __future__ import annotations

import ast
import dataclasses
import functools
from pathlib import Path

import numpy as np
import pytest

from tisdpo_jax.config import Experiment, LossSection, WeightsSection, build, describe, nest, resolved, validate
from tisdpo_jax.errors import ConfigError
from tisdpo_jax.testing import random_pairs
from tisdpo_jax.training.objective import make_weights, pair_loss
from tisdpo_jax.types import Batch

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


@pytest.fixture(scope="module")
def pairs():
    return random_pairs(0, (6, 2, 9))


WEIGHT_FLIPS = {
    "method": ("importance", "uniform"),
    "scale": ("importance", 2.0),
    "mu": ("importance", 0.5),
    "lower": ("importance", -0.1),
    "upper": ("importance", 0.2),
    "gamma": ("position", 0.5),
    "top_percent": ("binary", 20.0),
    "seed": ("log_uniform", 7),
}


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(WeightsSection)])
def test_every_field_of_weights_changes_them(pairs, field: str) -> None:
    method, value = WEIGHT_FLIPS[field]
    section = WeightsSection(method=method)
    make = functools.partial(
        make_weights, positive=pairs.positive_logps, negative=pairs.negative_logps, mask=pairs.mask, record=np.arange(6)
    )
    assert (make(section) != make(dataclasses.replace(section, **{field: value}))).any()


METHODS = {
    *("importance", "uniform", "log_uniform", "shuffled", "rank", "position"),
    *("binary", "rank_based", "threshold_and_scale", "threshold", "origin", "random"),
}


@pytest.mark.parametrize("method", sorted(METHODS))
def test_every_method_gives_weights_on_real_tokens_only(pairs, method: str) -> None:
    found = make_weights(
        WeightsSection(method=method), pairs.positive_logps, pairs.negative_logps, pairs.mask, record=np.arange(6)
    )
    assert found.shape == pairs.mask.shape and np.isfinite(found).all()
    assert (np.asarray(found)[np.asarray(pairs.mask) == 0] == 0).all()


LOSS_FLIPS = {
    "name": ("dpo", "ipo"),
    "beta": ("dpo", 0.3),
    "label_smoothing": ("dpo", 0.2),
    "kl_coef": ("tisdpo", 0.5),
    "average": ("ipo", True),
    "alpha": ("tdpo", 0.9),
    "variant": ("tdpo", 1),
    "margin_coef": ("dlma", 0.7),
    "margin_lower": ("dlma", -0.1),
    "margin_upper": ("dlma", 0.1),
    "desirable_weight": ("kto", 2.0),
    "undesirable_weight": ("kto", 2.0),
}


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(LossSection)])
def test_every_field_of_the_loss_changes_it(pairs, field: str) -> None:
    name, value = LOSS_FLIPS[field]
    batch = Batch({}, pairs.mask, np.arange(6), {"margin": np.linspace(-3, 3, 6, dtype=np.float32)})

    def value_of(section: LossSection) -> np.ndarray:
        weights = np.asarray(pairs.mask) * 1.5
        result = pair_loss(
            section, pairs.policy_logps, pairs.reference_logps, batch, token_weights=weights, kl=pairs.token_kl
        )
        return np.asarray(result.loss)

    section = LossSection(name=name)
    assert (value_of(section) != value_of(dataclasses.replace(section, **{field: value}))).any()


def test_yaml_numbers_are_cast_by_field_type() -> None:
    values = {
        "train": {"optimizer": {"learning_rate": "5e-7"}, "epochs": 1},
        "model": {"path": 7},
        "loss": {"variant": "1"},
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
        ({"loss": {"average": "perhaps"}}, "loss.average is 'perhaps'; it must be true or false"),
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


@pytest.mark.parametrize("name", ["kl_coef", "alpha", "margin_coef", "desirable_weight", "undesirable_weight"])
def test_coefficients_of_losses_are_not_negative(name: str) -> None:
    given = {"model.path": "model", "data.train": "pairs.jsonl", f"loss.{name}": "-0.1"}
    with pytest.raises(ConfigError, match=rf"loss\.{name} is -0\.1; it must be at least 0"):
        validate(build(Experiment, nest(given, where="test"), where="test"))
