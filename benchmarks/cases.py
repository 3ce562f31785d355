"""The steps that all benchmarks measure, as fields of the configuration."""

from __future__ import annotations

from collections.abc import Sequence

BROUGHT = {"contrast.construction": "none", "scores": "cached"}  # weights are given
CASES: dict[str, dict[str, str]] = {
    "dpo live": {"recipe": "dpo", "scores": "online"},
    "dpo cached": {"recipe": "dpo", "scores": "cached"},
    "tisdpo live KL": {"recipe": "tisdpo", **BROUGHT},
    "tisdpo states KL": {"recipe": "tisdpo", **BROUGHT, "reference_states": "cached"},
    "tisdpo no KL": {"recipe": "tisdpo", **BROUGHT, "loss.kl_coef": "0"},
}
"""Name -> overrides. Token weights are given in all TIS-DPO cases; the reference, which its KL needs, runs in the step
("live") or has left its last hidden states on disk ("states")."""

COMMON = {"recipe": "dpo", "train.gradient_accumulation_steps": "1"}


def chosen(names: Sequence[str], words: str) -> list[str]:
    """The names that begin with one of the comma-separated words; all of them where there are none.

    Raises: ValueError when none does.
    """
    wanted = tuple(word.strip() for word in words.split(",") if word.strip())
    found = [name for name in names if name.startswith(wanted)] if wanted else list(names)
    if not found:
        raise ValueError(f"no case begins like {words!r}; cases are: {', '.join(names)}")
    return found
