"""Which model plays which part: policy, reference, plus, minus; what is shared and what is trained.

A role names its parameters and its adapter by key; `bind` turns the names into variables. Roles that name the
same key get the same arrays, by identity: with adapters, four roles cost one base and three small trees.
"""

from __future__ import annotations

import dataclasses
from typing import Any, TypedDict

import jax

from tisdpo_jax.types import Params, Variables

TRAINED = "trained"


class Frozen(TypedDict):
    """Everything the step reads and does not change: an argument of it, never donated, never checkpointed."""

    params: dict[str, Params]
    lora: dict[str, Params]


@dataclasses.dataclass(frozen=True)
class Role:
    """A model: parameters and, maybe, an adapter, each a key of `Frozen` or `TRAINED`."""

    params: str
    lora: str | None = None
    view: str = "main"  # how the pairs are shown to it

    def needs(self) -> set[tuple[str, str]]:
        """The (collection, key) of `Frozen` that this role reads."""
        found = {("params", self.params)} | ({("lora", self.lora)} if self.lora else set())
        return {(collection, key) for collection, key in found if key != TRAINED}


@dataclasses.dataclass(frozen=True)
class Roles:
    """The models of one training step. `plus` and `minus` are None where weights come from elsewhere."""

    policy: Role
    reference: Role | None
    plus: Role | None = None
    minus: Role | None = None

    def __post_init__(self) -> None:
        if TRAINED not in (self.policy.params, self.policy.lora):
            raise ValueError("roles: the policy trains neither its parameters nor its adapter")
        for name in ("reference", "plus", "minus"):
            role = getattr(self, name)
            if role is not None and TRAINED in (role.params, role.lora):
                raise ValueError(f"roles: {name} would change while the policy trains; it must be frozen")

    def views(self) -> tuple[str, ...]:
        """How the pairs are shown, over all roles; "main" first."""
        shown = {role.view for role in (self.plus, self.minus) if role} - {"main"}
        return ("main", *sorted(shown, reverse=True))

    def needs(self) -> set[tuple[str, str]]:
        return set().union(*(role.needs() for role in (self.policy, self.reference, self.plus, self.minus) if role))


def policy_role(*, lora: bool) -> Role:
    return Role("base", TRAINED) if lora else Role(TRAINED)


def contrast_roles(construction: str, *, lora: bool) -> tuple[Role, Role] | None:
    """pi+ and pi- of a construction: prompts (P), sft (S), dpo (D); None for "none"."""
    if construction == "none":
        return None
    if construction == "prompts":
        return Role("base", view="plus"), Role("base", view="minus")
    if construction in ("sft", "dpo"):
        return (Role("base", "plus"), Role("base", "minus")) if lora else (Role("plus"), Role("minus"))
    raise ValueError(f"unknown construction {construction!r}; one of prompts, sft, dpo, none")


def bind(role: Role, trained: Params | None, frozen: Frozen) -> Variables:
    """The variables that the model of this role is applied to."""

    def look(collection: dict[str, Params], key: str) -> Any:
        return trained if key == TRAINED else collection[key]

    variables: Variables = {"params": look(frozen["params"], role.params)}
    if role.lora is not None:
        variables["lora"] = look(frozen["lora"], role.lora)
    return variables


def resident_bytes(trained: Any, frozen: Frozen) -> dict[str, int]:
    """Bytes of each tree that is held, arrays that are shared counted once."""
    seen: set[int] = set()

    def size(tree: Any) -> int:
        total = 0
        for leaf in jax.tree.leaves(tree):
            if id(leaf) not in seen:
                seen.add(id(leaf))
                total += leaf.size * leaf.dtype.itemsize
        return total

    sizes = {f"params/{key}": size(tree) for key, tree in frozen["params"].items()}
    sizes |= {f"lora/{key}": size(tree) for key, tree in frozen["lora"].items()}
    return {**sizes, TRAINED: size(trained)}
