"""The shape of the house: who may import whom, and what an import loads."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

# A room imports rooms of its own floor and of lower ones.
FLOORS = [
    {"types", "arguments", "errors", "options", "_version"},
    {"losses", "weights", "advantages"},
    {"metrics"},
    {"objectives", "estimators"},
    {"config"},
    {"roles", "scoring", "partitioning", "models", "routing"},
    {
        "training",
        "reporting",
        "judging",
        "data",
        "interchange",
        "artifacts",
        "checkpoint",
        "distributed",
        "planning",
        "generation",
    },
    {"stages"},
    {"recipes"},
    {"verbs"},
    {"cli"},
    {"testing"},
]
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}

ARITHMETIC = {"arguments", "losses", "weights", "advantages"}
# What arithmetic may import: jax, the array types, and the parts of the standard library that compute nothing.
ARITHMETIC_IMPORTS = {"jax", "__future__", "typing", "collections", "dataclasses", "functools", "math"}
ARITHMETIC_ROOMS = {"types", "arguments"}

MEANING = {"metrics", "objectives", "estimators", "scoring", "models", "roles", "partitioning", "routing"}
# Whatever reads, writes or talks: files, formats, processes, networks.
WORLD = {
    *("os", "io", "pathlib", "shutil", "tempfile", "glob", "json", "csv", "pickle", "gzip", "zipfile", "tarfile"),
    *("mmap", "sqlite3", "subprocess", "socket", "urllib", "http", "requests"),
    *("safetensors", "transformers", "tokenizers", "gguf", "orbax", "tensorstore", "yaml", "datasets", "grain"),
    *("tensorflow_datasets", "array_record", "huggingface_hub", "tensorboardX", "wandb", "tqdm", "etils"),
}


def imported(path: Path, package: str) -> Iterator[tuple[int, str]]:
    """(line, dotted name) of everything a file of `package` imports, in functions and behind `if` too."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"), filename=str(path))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            # `from . import x` and `from .. import y` are read as the absolute names that they mean.
            parents = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            module = ".".join([*parents, *([node.module] if node.module else [])])
            for alias in node.names:
                yield node.lineno, f"{module}.{alias.name}"


def violations(package_root: Path) -> list[str]:
    """Every import below `package_root` (a folder named tisdpo_jax) that breaks a rule, as `file:line: why`."""
    found = []
    for path in sorted(package_root.rglob("*.py")):
        parts = path.relative_to(package_root).with_suffix("").parts
        room = parts[0]
        if room == "__init__":
            continue
        where = path.relative_to(package_root.parent).as_posix()
        if room not in FLOOR:
            found.append(f"{where}:1: the room {room!r} is on no floor; give it one in {Path(__file__).name}")
            continue
        for line, name in imported(path, ".".join(["tisdpo_jax", *parts[:-1]])):
            top, _, rest = name.partition(".")
            target = rest.partition(".")[0] if top == "tisdpo_jax" else None
            if target in FLOOR and FLOOR[target] > FLOOR[room]:
                found.append(f"{where}:{line}: {room} imports {target}, which is a floor above it")
            if room in ARITHMETIC:
                if target is None and top not in ARITHMETIC_IMPORTS:
                    found.append(f"{where}:{line}: {room} is arithmetic and imports {top}")
                if target is not None and target not in ARITHMETIC_ROOMS | {room}:
                    found.append(f"{where}:{line}: {room} is arithmetic and imports tisdpo_jax.{target}")
            if room in MEANING and top in WORLD:
                found.append(f"{where}:{line}: {room} does no I/O and imports {top}")
    return list(dict.fromkeys(found))


def test_imports_respect_the_floors() -> None:
    assert violations(ROOT / "tisdpo_jax") == []


@pytest.mark.parametrize(
    ("file", "line", "why"),
    [
        ("losses/_dpo.py", "import numpy as np", "arithmetic and imports numpy"),
        ("losses/_dpo.py", "from tisdpo_jax.weights import TRANSFORMS", "arithmetic and imports tisdpo_jax.weights"),
        ("losses/_dpo.py", "from ..config import Experiment", "a floor above it"),
        ("advantages/_groups.py", "import numpy as np", "arithmetic and imports numpy"),
        ("weights/_importance.py", "import jax, flax", "arithmetic and imports flax"),
        ("scoring/text.py", "import os.path", "does no I/O and imports os"),
        ("models/zoo.py", "def f():\n    import json", "does no I/O and imports json"),
        ("roles.py", "from tisdpo_jax import training", "a floor above it"),
        ("data/sources.py", "if True:\n    from tisdpo_jax.recipes.stages import run", "a floor above it"),
        ("types.py", "from . import losses", "a floor above it"),
        ("errors.py", "import tisdpo_jax.cli", "a floor above it"),
        ("helpers/text.py", "import jax", "on no floor"),
    ],
)
def test_a_broken_rule_is_found(tmp_path: Path, file: str, line: str, why: str) -> None:
    path = tmp_path / "tisdpo_jax" / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(line + "\n", encoding="utf-8")
    found = violations(tmp_path / "tisdpo_jax")
    assert found and why in found[0], found


@pytest.mark.parametrize(
    ("file", "line"),
    [
        ("losses/_dpo.py", "import jax.numpy as jnp\nfrom jax import nn\nfrom tisdpo_jax.types import Array"),
        ("losses/__init__.py", "from ._dpo import dpo_loss\nfrom tisdpo_jax.losses._sft import sft_loss"),
        ("training/loop.py", "import json\nfrom tisdpo_jax import losses, checkpoint\nfrom ..data import batching"),
        ("cli/main.py", "from tisdpo_jax.verbs import tisdpo"),
    ],
)
def test_a_kept_rule_is_not_blamed(tmp_path: Path, file: str, line: str) -> None:
    path = tmp_path / "tisdpo_jax" / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(line + "\n", encoding="utf-8")
    assert violations(tmp_path / "tisdpo_jax") == []


@pytest.mark.parametrize("module", ["tisdpo_jax.losses", "tisdpo_jax.weights", "tisdpo_jax.advantages"])
def test_arithmetic_loads_nothing_but_jax(module: str) -> None:
    heavy = ["flax", "transformers", "grain", "orbax", "optax", "tensorflow_datasets", "torch", "safetensors", "yaml"]
    program = f"import sys, {module}; print(*[name for name in {heavy!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == []


def test_no_public_name_is_defined_twice() -> None:
    places: dict[str, list[str]] = {}
    for path in sorted((ROOT / "tisdpo_jax").rglob("*.py")):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
                places.setdefault(node.name, []).append(str(path.relative_to(ROOT)))
    assert {name: files for name, files in places.items() if len(files) > 1} == {}


def test_no_file_reaches_past_the_face_of_another_room() -> None:
    past = []
    for path in sorted((ROOT / "tisdpo_jax").rglob("*.py")):
        room = path.relative_to(ROOT / "tisdpo_jax").parts[0]
        for line, name in imported(path, ".".join(path.relative_to(ROOT).parts[:-1])):
            parts = name.split(".")
            inner = len(parts) > 2 and parts[0] == "tisdpo_jax" and parts[1] != room
            if (
                inner
                and (ROOT / "tisdpo_jax" / parts[1] / f"{parts[2]}.py").exists()
                and not exported(parts[1], parts[2])
            ):
                past.append(f"{path.relative_to(ROOT)}:{line}: {name}")
    assert past == []


def exported(room: str, name: str) -> bool:
    """Whether a package's face offers a name, which a module of it may have too."""
    tree = ast.parse((ROOT / "tisdpo_jax" / room / "__init__.py").read_text(encoding="utf-8"))
    lists = (node.value for node in tree.body if isinstance(node, ast.Assign) and node.targets[0].id == "__all__")
    return any(name in ast.literal_eval(value) for value in lists)
