"""What every test relies on: eight CPU devices, exact matmuls, no network, quiet libraries.

The settings are environment variables, so they reach the programs that tests start, and they are
set here because JAX reads most of them once, when it is imported.
"""

from __future__ import annotations

import gc
import importlib.metadata
import os
import sys
from pathlib import Path

import hypothesis
import pytest

ROOT = Path(__file__).resolve().parent.parent
DEVICES = "--xla_force_host_platform_device_count"

if "jax" in sys.modules:
    raise RuntimeError("jax was imported before tests/conftest.py; its settings come too late (a pytest plugin?)")

if DEVICES not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {DEVICES}=8".strip()
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_DEFAULT_MATMUL_PRECISION", "highest")
# Most of the time goes into compiling programs that run for a moment, some of them in several processes.
if "--xla_backend_optimization_level" not in os.environ["XLA_FLAGS"]:
    os.environ["XLA_FLAGS"] += " --xla_backend_optimization_level=0"
JAX = tuple(map(int, importlib.metadata.version("jax").split(".")[:2]))
# Of two generators of fused loops, the one without MLIR compiles in half the time; jax 0.12 has the other alone.
if (0, 7) <= JAX <= (0, 10) and "--xla_cpu_use_fusion_emitters" not in os.environ["XLA_FLAGS"]:
    os.environ["XLA_FLAGS"] += " --xla_cpu_use_fusion_emitters=false"
# Eight devices of two workers share two cores: a device may be late, and XLA would end the process after 40 seconds.
# jax 0.7 does not know the flag, and does not start with it.
if JAX >= (0, 10) and "--xla_cpu_collective_call_terminate" not in os.environ["XLA_FLAGS"]:
    os.environ["XLA_FLAGS"] += " --xla_cpu_collective_call_terminate_timeout_seconds=600"
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(ROOT / ".pytest_cache" / "jax"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.3")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
os.environ["ABSL_MIN_LOG_LEVEL"] = "2"
os.environ["GRPC_VERBOSITY"] = "ERROR"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
# "PyTorch was not found": true, and meant to be.
os.environ["TRANSFORMERS_NO_ADVISORY_WARNINGS"] = "1"
# Programs that tests start find the package, installed or not.
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))

# The first example of a property compiles, so time says nothing; the same examples in every run.
hypothesis.settings.register_profile("tisdpo", deadline=None, derandomize=True, print_blob=True)
hypothesis.settings.load_profile("tisdpo")


FIRST = ("recipes", "planning", "training", "partitioning", "models", "launch")  # whole programs, the long files


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long files first, so that workers, which take whole files, end together."""
    rooms = [item.path.relative_to(ROOT / "tests").parts[0] for item in items]
    order = sorted(range(len(items)), key=lambda number: (rooms[number] not in FIRST, number))
    items[:] = [items[number] for number in order]


def pytest_collection_finish() -> None:
    """Modules stay, and tracing makes millions of small objects: they are not looked through again and again."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real data and models that development machines keep beside the repository."""
    path = ROOT.parent / "shared"
    if not path.is_dir():
        pytest.skip(f"needs the data of {path}, which is not on this machine")
    return path
