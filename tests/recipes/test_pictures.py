"""Pictures of a run's cached scores: every number shown is the cached one, bit for bit."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from runs import arguments, command
from safetensors.numpy import load_file

from tisdpo_jax.interchange import load_tokenizer
from tisdpo_jax.verbs.pictures import decode_pieces

OPTIONS = {"contrast__construction": "prompts", "mesh__fsdp": 1, "data__limit": 12, "logging__progress": "false"}


class Numbers(HTMLParser):
    """Tables of numbers of tokens: for each (pair, side) the rows of exact values."""

    def __init__(self) -> None:
        super().__init__()
        self.tables: list[list[list[float]]] = []
        self.titles: list[str] = []
        self.inside = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if tag == "table":
            self.inside = "tw-table" in (given.get("class") or "")
            self.tables += [[]] if self.inside else []
        if tag == "tr" and self.inside:
            self.tables[-1].append([])
        if tag == "data" and self.inside:
            self.tables[-1][-1].append(float(given["value"] or "nan"))
        if tag == "span" and "title" in given:
            self.titles.append(given["title"] or "")


@pytest.fixture(scope="module")
def scored(tiny, tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("pictures")
    options = {**tiny, **OPTIONS, "run_dir": run_dir}
    assert command("score", **options)[0] == 0
    return run_dir, options


def inspect(capsys, options: dict, *extra: str) -> tuple[int, str]:
    from tisdpo_jax.cli import main

    code = main([*arguments("inspect", **options), *extra])
    captured = capsys.readouterr()
    return code, captured.out + captured.err


def test_what_is_shown_is_what_is_cached(scored, tmp_path, capsys) -> None:
    run_dir, options = scored
    options = {**options, "evaluation__heat_maps": 3}
    code, output = inspect(capsys, options, f"--pictures={tmp_path}")
    assert code == 0, output
    plus, minus = (load_file(run_dir / "scores" / f"train-{name}.safetensors")["logps"] for name in ("plus", "minus"))
    page = (tmp_path / "index.html").read_text(encoding="utf-8")
    numbers = Numbers()
    numbers.feed(page)
    tables = [[row for row in table if row] for table in numbers.tables]
    assert len(tables) == 6  # chosen and rejected of three pairs
    sign = (1.0, -1.0)
    for place, table in enumerate(tables):
        pair, side = divmod(place, 2)
        rows = np.asarray([row[:3] for row in table], np.float32)
        count = len(rows)
        assert count > 3
        # as float32 the same bits
        np.testing.assert_array_equal(rows[:, 1], plus[pair, side, :count])
        np.testing.assert_array_equal(rows[:, 2], minus[pair, side, :count])
        np.testing.assert_allclose(
            rows[:, 0], np.exp(sign[side] * np.clip(rows[:, 1] - rows[:, 2], -0.5, 1.5)), rtol=1e-5
        )
        assert count == plus.shape[-1] or plus[pair, side, count:].max() == 0  # no token is left out
    hovered = [re.search(r"weight ([0-9.]+) ", title)[1] for title in numbers.titles if "weight" in title]
    shown = [row[0] for table in tables for row in table]
    np.testing.assert_array_equal(np.asarray(hovered, np.float32), np.asarray(shown, np.float32))
    assert all("sum of log-ratios so far" in title for title in numbers.titles)


def test_tokens_and_distributions_are_there(scored, tmp_path, capsys) -> None:
    run_dir, options = scored
    code, output = inspect(capsys, options, "--pictures", str(tmp_path), "--pair", "1")
    assert code == 0, output
    found = json.loads((tmp_path / "tokens.json").read_text(encoding="utf-8"))
    plus, minus = (load_file(run_dir / "scores" / f"train-{name}.safetensors")["logps"] for name in ("plus", "minus"))
    logs = np.clip(plus - minus, -0.5, 1.5)
    assert sum(one["count"] for one in found["chosen"]) <= (plus[:, 0] != 0).sum()
    means = [one["mean"] for one in found["chosen"]]
    assert means == sorted(means, reverse=True) and logs[:, 0].min() <= means[-1] <= means[0] <= logs[:, 0].max()
    page = (tmp_path / "index.html").read_text(encoding="utf-8")
    for part in ("Tokens of rejected responses", "Before clamping", "Distribution", "of all training pairs"):
        assert part in page
    assert {path.name for path in tmp_path.glob("*.png")} == {"pair-1.png", "weights.png", "log-ratios.png"}


def test_without_scores_it_says_what_to_do(scored, tmp_path, capsys) -> None:
    _, options = scored
    code, output = inspect(capsys, {**options, "run_dir": tmp_path / "none"}, f"--pictures={tmp_path / 'p'}")
    assert code == 2 and "tisdpo score" in output and not (tmp_path / "p").exists()
    # other pairs than those that were scored have no weights either
    code, output = inspect(capsys, {**options, "data__limit": 11}, f"--pictures={tmp_path / 'p'}")
    assert code == 2 and "no scores" in output


def test_pieces_of_a_real_tokenizer_join_to_the_text(tiny) -> None:
    tokenizer = load_tokenizer(tiny["model__path"])
    text = "Once upon a time — 早上好 👩‍👧 done.\n\n  صباح café"
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    pieces = decode_pieces(tokenizer, ids)
    assert len(pieces) == len(ids) > len(text) / 2 and "".join(pieces) == tokenizer.decode(ids)


def test_pairs_that_are_drawn_may_be_named(scored, tmp_path, capsys) -> None:
    _, options = scored
    code, output = inspect(capsys, options, "--pair", "nobody", f"--pictures={tmp_path}")
    assert code == 2 and "--pair nobody" in output
    assert not list(Path(tmp_path).iterdir())
