"""The drawing of docs/glossary.md is what packing makes of these two pairs."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from tisdpo_jax.data import EncodedGroup, EncodedSet, fit
from tisdpo_jax.data.rows import lay_out

TEXT = (Path(__file__).resolve().parents[2] / "docs" / "glossary.md").read_text(encoding="utf-8")


def numbers(name: str) -> list[int]:
    """Those of a line of the drawing."""
    line = next(line for line in TEXT.splitlines() if line.startswith(f"    {name} "))
    found = re.match(rf"    {name} +((?:\d+ {{1,3}})*\d+)", line)
    assert found is not None
    return [int(word) for word in found[1].split()]


def test_the_drawing_of_a_packed_row() -> None:
    tokens = iter(numbers("tokens"))
    take = lambda count: np.asarray([next(tokens) for _ in range(count)], np.int32)  # noqa: E731
    groups = []
    for name, sizes in (("a", (3, 2, 1)), ("b", (2, 1, 2))):
        prompt, chosen, rejected = map(take, sizes)
        groups.append(EncodedGroup(name, f"pairs.jsonl:{len(groups) + 1}", {"main": prompt}, (chosen, rejected)))
    encoded, both = EncodedSet(tuple(groups), (), "pairs.jsonl", {}), np.arange(2)
    laid = lay_out(encoded, both, "main", fit(encoded, [both], elements=2, multiple=1))
    assert laid.rows.tree is not None
    arrays = {**laid.rows._asdict(), **laid.rows.tree._asdict(), **laid.slots._asdict()}
    for name in ("tokens", "positions", "pair", "branch", "source", "targets", "elements"):
        assert arrays[name][0].tolist() == numbers(name), name
    assert numbers("place") == list(range(11)) and numbers("slot") == list(range(6))
    places = [[int(word) for word in found.split(",")] for found in re.findall(r"\[([-\d]+, [-\d]+)\]", TEXT)]
    assert laid.place.reshape(4, 2).tolist() == places
