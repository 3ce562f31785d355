"""A run's directory: one run at a time, and a record of the configuration."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import jax
import numpy as np
import yaml
from jax.experimental import multihost_utils

from tisdpo_jax.artifacts import clean, lease, write_text
from tisdpo_jax.config import Experiment, resolved
from tisdpo_jax.errors import ConfigError, UserError

CONFIG = "config.yaml"


@contextmanager
def opened(run_dir: Path, config: Experiment) -> Iterator[None]:
    """Holds the directory and keeps config.yaml: at once in a new directory, else when nothing was refused.

    Raises: ConfigError when another run holds it, or it cannot be written; on every process.
    """
    with ExitStack() as stack:
        refusal: ConfigError | None = None
        try:
            if jax.process_index() == 0:
                _take(run_dir, stack)
        except ConfigError as error:
            refusal = error
        _agree(refusal, run_dir)
        if jax.process_index() != 0:
            yield
            return
        file = run_dir / CONFIG
        text = yaml.safe_dump(resolved(config), sort_keys=False, allow_unicode=True)
        if not file.exists():
            write_text(file, text)
        try:
            yield
        except UserError:
            raise  # what was refused is not what the directory holds
        except BaseException:
            write_text(file, text)
            raise
        write_text(file, text)


def _take(run_dir: Path, stack: ExitStack) -> None:
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"run_dir {run_dir}: cannot be made: {error.strerror}; choose another run_dir") from None
    stack.enter_context(lease(run_dir))
    clean(run_dir)


def _agree(refusal: ConfigError | None, run_dir: Path) -> None:
    """Raises on every process when process 0 was refused: the others would wait for it."""
    if jax.process_count() > 1:
        refused = bool(multihost_utils.process_allgather(np.asarray(refusal is not None)).any())
        if refused and refusal is None:
            raise ConfigError(f"run_dir {run_dir}: process 0 could not open it; its message says why")
    if refusal is not None:
        raise refusal
