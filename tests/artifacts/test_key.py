"""What differs between two identities is said with both values."""

from __future__ import annotations

from tisdpo_jax.artifacts import differences


def test_equal_identities_do_not_differ_whatever_json_makes_of_them() -> None:
    assert differences({"a": [1, 2], "b": {"c": 0.1}}, {"b": {"c": 0.1}, "a": (1, 2)}) == []


def test_each_difference_names_its_field_and_both_values() -> None:
    found = {"loss": {"beta": 0.1, "name": "dpo"}, "lora": {"rank": 4}, "old": "x"}
    wanted = {"loss": {"beta": 0.2, "name": "dpo"}, "lora": {"rank": 8}, "new": True}
    assert differences(found, wanted) == [
        "lora.rank (was 4, now 8)",
        "loss.beta (was 0.1, now 0.2)",
        "new (was absent, now true)",
        'old (was "x", now absent)',
    ]


def test_values_of_other_types_differ() -> None:
    assert differences({"a": 1}, {"a": True}) and differences({"a": 1}, {"a": "1"}) and differences({"a": None}, {})
