"""What a run's exports are given beside the weights: the template that was trained, and every end of an answer."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tisdpo_jax import interchange
from tisdpo_jax.config import Experiment, build, nest
from tisdpo_jax.data.template import HH_SOURCE
from tisdpo_jax.stages import models
from tisdpo_jax.testing.tokenizer import tiny_tokenizer
from tisdpo_jax.verbs import export


@pytest.mark.parametrize(("template", "ends"), [("auto", [1, 3, 7]), ("hh", [1, 7])])
def test_companions_of_all_three_directories(
    template: str, ends: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = tmp_path / "model"
    base.mkdir()
    (base / "config.json").write_text("{}")
    (base / "generation_config.json").write_text(json.dumps({"eos_token_id": 7}))
    tokenizer = tiny_tokenizer(chat_template=template == "auto", adds_bos=False)
    written: dict[str, dict[str, Any]] = {}

    def record(directory: Path, *_: Any, **options: Any) -> None:
        written[directory.name] = options

    monkeypatch.setattr(interchange, "save_huggingface", record)
    monkeypatch.setattr(interchange, "save_peft", record)
    monkeypatch.setattr(models, "fold_in", lambda *_: {})
    config = build(Experiment, nest({"data.template": template, "lora.rank": "2"}, where="test"), where="test")
    session: Any = SimpleNamespace(
        config=config,
        run_dir=tmp_path / "run",
        tokenizer=tokenizer,
        model_path=base,
        model=SimpleNamespace(config=None),
        lora=True,
    )
    stage: Any = SimpleNamespace(pretrained=False, full=dict)  # after SFT: what the adapter stands on is written too
    paths = export.export(session, stage, {})
    assert [path.name for path in paths] == list(written) == ["export", "base", "adapter"]
    source = tokenizer.chat_template if template == "auto" else HH_SOURCE
    for options in written.values():
        assert (options["chat_template"], options["stops"], options["tokenizer"]) == (source, ends, tokenizer)
    assert written["export"]["base"] == written["base"]["base"] == base
    assert written["adapter"]["base_model"] == str(tmp_path / "run" / "base")
