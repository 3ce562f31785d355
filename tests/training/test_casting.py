"""Which views a roles shows: those of its contrastive roles, main first."""

from __future__ import annotations

import pytest

from tisdpo_jax.roles import TRAINED, Role, Roles, contrast_roles, policy_role


@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize(
    ("construction", "views"),
    [("none", ("main",)), ("sft", ("main",)), ("dpo", ("main",)), ("prompts", ("main", "plus", "minus"))],
)
def test_views_are_those_that_roles_are_shown(construction: str, views: tuple[str, ...], lora: bool) -> None:
    plus, minus = contrast_roles(construction, lora=lora) or (None, None)
    assert Roles(policy_role(lora=lora), Role("base"), plus, minus).views() == views


def test_a_view_that_one_role_alone_is_shown() -> None:
    """Scores are made one role at a time."""
    policy = policy_role(lora=False)
    assert Roles(policy, None, plus=Role("base", view="plus")).views() == ("main", "plus")
    assert Roles(policy, None, minus=Role("base", view="minus")).views() == ("main", "minus")


def test_what_is_frozen_is_named_and_what_is_trained_is_not() -> None:
    roles = contrast_roles("dpo", lora=True)
    assert roles is not None
    assert Roles(policy_role(lora=True), Role("base"), *roles).needs() == {
        ("params", "base"),
        ("lora", "plus"),
        ("lora", "minus"),
    }
    with pytest.raises(ValueError, match="the policy trains neither"):
        Roles(Role("base"), None)
    with pytest.raises(ValueError, match="reference would change while the policy trains"):
        Roles(policy_role(lora=False), Role(TRAINED))
