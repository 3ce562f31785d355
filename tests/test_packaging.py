"""What lies beside the package: metadata, pins, scripts and notebooks, each held to what the others say."""

from __future__ import annotations

import re
import runpy
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tisdpo_jax._version import __version__

ROOT = Path(__file__).resolve().parent.parent

# What each world is, and which extras its file pins.
WORLDS = [
    ("py311", "0.10.2", "0.12.8", ["dev", "parity"]),
    ("current", "0.12.0.1", "0.12.12", ["dev"]),
    ("colab", "0.7.2", "0.11.2", ["dev"]),
]


@pytest.fixture
def setup_arguments(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The keyword arguments that setup.py gives to setuptools, which need not be installed."""
    arguments: dict[str, Any] = {}
    double = SimpleNamespace(find_packages=lambda **_: [], setup=arguments.update)
    monkeypatch.setitem(sys.modules, "setuptools", double)
    runpy.run_path(str(ROOT / "setup.py"))
    return arguments


def test_version_is_the_same_everywhere(setup_arguments: dict[str, Any]) -> None:
    assert re.fullmatch(r"\d+\.\d+\.\d+", __version__)
    assert setup_arguments["version"] == __version__
    assert __version__ in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_the_installed_version_is_this_one() -> None:
    try:
        installed = metadata.version("tisdpo_jax")
    except metadata.PackageNotFoundError:
        pytest.skip("the package is on the path but not installed")
    assert installed == __version__


def test_extras_are_the_promised_ones(setup_arguments: dict[str, Any]) -> None:
    promised = {"tpu", "cuda", "hf-data", "gguf", "tensorboard", "wandb", "judges", "dev", "parity"}
    assert set(setup_arguments["extras_require"]) == promised


def test_every_folder_of_modules_is_a_package() -> None:
    # setuptools leaves folders without __init__.py out of a wheel, silently.
    folders = {path.parent for path in (ROOT / "tisdpo_jax").rglob("*.py")}
    assert [folder.relative_to(ROOT) for folder in sorted(folders) if not (folder / "__init__.py").is_file()] == []


def test_every_data_file_of_the_package_is_packaged(setup_arguments: dict[str, Any]) -> None:
    package = ROOT / "tisdpo_jax"
    patterns = setup_arguments["package_data"]["tisdpo_jax"]
    packaged = {path for pattern in patterns for path in package.glob(pattern)}
    present = {path for path in package.rglob("*") if path.is_file() and path.suffix not in (".py", ".pyc")}
    assert packaged == present
    assert all(list(package.glob(pattern)) for pattern in patterns)


def pins(world: str) -> dict[str, str]:
    """Canonical name -> version of a constraints file; every line is a comment or `name==version`."""
    found: dict[str, str] = {}
    text = (ROOT / "constraints" / f"{world}.txt").read_text(encoding="utf-8")
    for number, line in enumerate(text.splitlines(), 1):
        if line.startswith("#"):
            continue
        match = re.fullmatch(r"([A-Za-z0-9._-]+)==([A-Za-z0-9.!]+)", line)
        assert match, f"constraints/{world}.txt:{number}: {line!r} is no plain pin"
        name = canonicalize_name(match[1])
        assert name not in found, f"constraints/{world}.txt:{number}: {name} stands twice"
        found[name] = match[2]
    return found


@pytest.mark.parametrize(("world", "jax", "flax", "extras"), WORLDS)
def test_constraints_pin_all_that_setup_asks_for(
    setup_arguments: dict[str, Any], world: str, jax: str, flax: str, extras: list[str]
) -> None:
    pinned = pins(world)
    assert (pinned["jax"], pinned["jaxlib"], pinned["flax"]) == (jax, jax, flax)
    assert "tensorflow" not in pinned
    asked = [*setup_arguments["install_requires"]]
    for extra in extras:
        asked += setup_arguments["extras_require"][extra]
    for text in asked:
        requirement = Requirement(text)
        name = canonicalize_name(requirement.name)
        assert name in pinned, f"constraints/{world}.txt does not pin {name}"
        assert requirement.specifier.contains(pinned[name]), f"constraints/{world}.txt: {name} is not {text}"


SCRIPTS = [ROOT / ".ci" / "run", ROOT / "launch" / "tpu_pod.sh", ROOT / "launch" / "slurm_gpu.sbatch"]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_shell_scripts_parse_and_stop_at_errors(script: Path) -> None:
    done = subprocess.run(["bash", "-n", str(script)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "\nset -euo pipefail\n" in script.read_text(encoding="utf-8")
