"""Rows beyond the positions of a model are said in numbers, whichever verb meets them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from runs import BASE

from tisdpo_jax.config import Experiment, build, nest
from tisdpo_jax.models import RopeConfig
from tisdpo_jax.recipes import evaluate, generate, plan
from tisdpo_jax.stages import session
from tisdpo_jax.testing import write_pairs, write_tiny_model
from tisdpo_jax.testing.models import tiny_config
from tisdpo_jax.training.interrupt import Interrupt


@pytest.fixture(scope="module")
def short(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A model of 20 positions, and five pairs that are longer."""
    folder = tmp_path_factory.mktemp("short")
    model = write_tiny_model(folder / "model", max_positions=20)
    return {**BASE, "model.path": model, "data.train": write_pairs(folder / "pairs.jsonl", 5), "mesh.fsdp": 8}


def config_of(fields: dict[str, Any], **more: Any) -> Experiment:
    values = {name.replace("__", "."): str(value) for name, value in {**fields, **more}.items()}
    return build(Experiment, nest(values, where="test"), where="test")


LIMIT = "data.max_length 48 is above the 20 positions of {}"
ROWS = "of {} are longer than the 20 positions of {}, the longest"


@pytest.mark.parametrize("verb", ["run", "evaluate", "plan"])
def test_pairs(verb: str, short: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    config = config_of(
        short, data__eval_fraction=0 if verb != "evaluate" else 0.2, evaluation__data=short["data.train"]
    )
    if verb == "run":
        session.open_session(config, tmp_path, Interrupt())
    elif verb == "evaluate":
        evaluate.open_evaluation(config, tmp_path, Interrupt())
    else:
        plan.plan(config, [])
    assert LIMIT.format(short["model.path"]) in caplog.text
    assert "5 of 5 pairs " + ROWS.format(short["data.train"], short["model.path"]) in caplog.text


def test_nothing_is_said_where_all_fits(
    short: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    session.open_session(config_of(short, data__max_length=20, data__max_response=10), tmp_path, Interrupt())
    assert "positions" not in caplog.text


def test_answers(
    short: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of what is answered, its prompt and the longest answer; prompts above sampling.max_prompt are not."""
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('"hi"\n"you"\n"' + "a long one " * 9 + '"\n')

    class Drawn(Exception):
        pass

    def draw(*_: Any, **__: Any) -> None:
        raise Drawn

    monkeypatch.setattr("tisdpo_jax.generation.sample", draw)
    fields = {**short, "sampling.prompts": prompts, "sampling.max_prompt": 16}
    for number, length in ((0, 2), (2, 12)):
        caplog.clear()
        with pytest.raises(Drawn):
            generate.generate(config_of(fields, sampling__max_new_tokens=length, run_dir=tmp_path / str(length)))
        assert (f"{number} of 2 prompts with the longest answers" in caplog.text) == (number > 0)
        assert "data.max_length" not in caplog.text


@pytest.mark.parametrize(
    ("rope", "expected"),
    [
        (RopeConfig(), 100),
        (RopeConfig(kind="linear", factor=4.0), 400),
        (RopeConfig(kind="linear", factor=0.5), 100),
        (RopeConfig(5e5, "llama3", 8.0, 1.0, 4.0, 50), 100),  # whose max_positions are the stretched ones
    ],
)
def test_positions_with_the_rope_scaling(rope: RopeConfig, expected: int) -> None:
    assert tiny_config(max_positions=100, rope=rope).positions == expected
