"""What is kept is found again, also after a kill; scoring functions are found by name."""

from __future__ import annotations

import concurrent.futures
import json
import logging

import pytest

from tisdpo_jax.errors import ConfigError, DataError, UserError
from tisdpo_jax.judging import Store, key_of, load_function, sentiment_score


def test_what_is_added_is_there_again_and_the_first_counts(tmp_path) -> None:
    path = tmp_path / "deep" / "x.jsonl"
    store = Store(path)
    store.add("a", score=1.0, text="早上好 👩‍👩‍👧 \ud800 <script>")
    store.add("a", score=2.0)
    store.add("b", score=None)
    again = Store(path)
    assert len(again) == 2 and again.get("a")["score"] == 1.0 and again.get("b")["score"] is None
    assert again.get("a")["text"] == "早上好 👩‍👩‍👧 \ud800 <script>" and again.get("c") is None
    assert len(path.read_text(encoding="utf-8").splitlines()) == 2


def test_a_torn_last_line_is_dropped_and_a_damaged_one_is_named(tmp_path, caplog) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text('{"key": "a", "v": 1}\n{"key": "b", "v"')
    with caplog.at_level(logging.WARNING):
        store = Store(path)
    assert len(store) == 1 and "not written to its end" in caplog.text
    store.add("b", v=2)
    assert [json.loads(line)["key"] for line in path.read_text().splitlines()] == ["a", "b"]
    path.write_text('{"key": "a"}\nrubbish\n')
    with pytest.raises(DataError, match=r"x\.jsonl:2"):
        Store(path)


def test_threads_may_add(tmp_path) -> None:
    store = Store(tmp_path / "x.jsonl")
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda n: store.add(key_of(n % 50), n=n, filler="x" * 500), range(400)))
    assert len(Store(tmp_path / "x.jsonl")) == 50


def test_keys_tell_parts_apart() -> None:
    assert key_of("a", "b") != key_of("ab") != key_of("a", ["b"]) and key_of({"x": 1, "y": 2}) == key_of(
        {"y": 2, "x": 1}
    )


def test_functions_are_found_and_what_they_return_is_checked(tmp_path, monkeypatch) -> None:
    (tmp_path / "my_scores_x.py").write_text(
        "def length(prompt, response): return len(response)\ndef words(prompt, response): return 'good'\nVALUE = 3\n"
    )
    monkeypatch.chdir(tmp_path)
    assert load_function("my_scores_x:length")("p", "four") == 4.0
    with pytest.raises(UserError, match="returned 'good'"):
        load_function("my_scores_x:words")("p", "r")
    for name, told in (("my_scores_x:nothing", "no function"), ("my_scores_x:VALUE", "no function")):
        with pytest.raises(ConfigError, match=told):
            load_function(name)
    with pytest.raises(ConfigError, match="cannot be imported"):
        load_function("no_such_module_x:f")


def test_sentiment_knows_good_from_bad() -> None:
    pytest.importorskip("vaderSentiment")
    good, bad, nothing = (sentiment_score("", text) for text in ("What a lovely day!", "I hate this.", "1 2 3"))
    assert -1 <= bad < nothing == 0 < good <= 1
