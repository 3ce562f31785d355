"""TIS-DPO and DLMA in JAX: preference alignment with token-level importance weights.

`advantages`, `losses`, `weights` and `scoring` are loaded when first named, so that importing one of them does not
import the others' needs.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from tisdpo_jax._version import __version__

if TYPE_CHECKING:
    from tisdpo_jax import advantages, losses, scoring, weights

__all__ = ["__version__", "advantages", "losses", "scoring", "weights"]


def __getattr__(name: str) -> Any:
    if name in ("advantages", "losses", "scoring", "weights"):
        return importlib.import_module(f"tisdpo_jax.{name}")
    raise AttributeError(f"module 'tisdpo_jax' has no attribute {name!r}")
