"""Scoring functions in Python, named as `module:function`."""

from __future__ import annotations

import importlib
import inspect
import math
import sys
from collections.abc import Callable
from pathlib import Path

from tisdpo_jax.errors import ConfigError, UserError

Score = Callable[[str, str], float]
"""score(prompt, response): the higher, the better."""


def load_function(name: str) -> Score:
    """The function that `module:function` names; modules of the working directory are found too.

    Raises: ConfigError when there is none.
    """
    module_name, _, function_name = name.partition(":")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise ConfigError(
            f"evaluation.judge.by {name}: module {module_name!r} cannot be imported ({error}); start in its directory, "
            "or set PYTHONPATH"
        ) from None
    function = getattr(module, function_name, None)
    if not callable(function):
        raise ConfigError(f"evaluation.judge.by {name}: {module_name} has no function {function_name!r}")
    return checked_scores(function, name)


def checked_scores(function: Callable[..., object], name: str) -> Score:
    """The function, with what it returns taken as a float. Raises: UserError where that is no number."""

    def score(prompt: str, response: str) -> float:
        value = function(prompt, response)
        try:
            found = float(value)  # type: ignore[arg-type]  # which is what is found out here
        except (TypeError, ValueError):
            found = math.nan
        if math.isnan(found):
            raise UserError(f"judge {name}: returned {value!r} for a response; it must return a number")
        return found

    return score


def source_of(name: str) -> str:
    """The text of the function's module, so that scores of an older version are not taken for those of a new one."""
    module = sys.modules.get(name.partition(":")[0])
    try:
        return inspect.getsource(module) if module is not None else ""
    except (OSError, TypeError):
        return ""
