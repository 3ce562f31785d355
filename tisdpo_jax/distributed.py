"""Several processes: joining them, and making sure that they were started alike."""

from __future__ import annotations

import os

import jax
import numpy as np
from jax.experimental import multihost_utils

from tisdpo_jax._version import __version__
from tisdpo_jax.errors import ConfigError

COORDINATOR, COUNT, INDEX, AUTO = (
    "TISDPO_COORDINATOR",
    "TISDPO_NUM_PROCESSES",
    "TISDPO_PROCESS_ID",
    "TISDPO_DISTRIBUTED",
)


def initialize() -> None:
    """Joins the other processes, if the environment says that there are any. Before JAX is used.

    TISDPO_COORDINATOR=host:port with TISDPO_NUM_PROCESSES and TISDPO_PROCESS_ID names the place of this process;
    TISDPO_DISTRIBUTED=auto lets JAX find it (TPU pods, GKE, Slurm, Open MPI).
    """
    address = os.environ.get(COORDINATOR)
    if address:
        try:
            count, index = int(os.environ[COUNT]), int(os.environ[INDEX])
        except (KeyError, ValueError):
            raise ConfigError(f"{COORDINATOR} is set; {COUNT} and {INDEX} must be whole numbers beside it") from None
        jax.distributed.initialize(address, count, index)
    elif os.environ.get(AUTO) == "auto":
        jax.distributed.initialize()
    elif os.environ.get(AUTO):
        raise ConfigError(f"{AUTO} is {os.environ[AUTO]!r}; it must be auto, or not be set")


def wait_for_all(what: str) -> None:
    """Returns when every process has come here."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(what)


def check_alike(description: str) -> None:
    """Raises ConfigError on every process when one has another configuration, or other software."""
    if jax.process_count() == 1:
        return
    text = f"{description} {__version__} {jax.__version__}".encode()
    import hashlib

    mine = np.frombuffer(hashlib.sha256(text).digest(), np.uint8)
    everyone = np.asarray(multihost_utils.process_allgather(mine))
    different = [i for i, other in enumerate(everyone) if (other != everyone[0]).any()]
    if different:
        raise ConfigError(
            f"processes {different} were started with another configuration or software than process 0; start all alike"
        )
