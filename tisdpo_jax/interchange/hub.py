"""Models of the Hugging Face hub: `ORG/NAME[@revision]` is fetched into the hub's cache, once, and read from there."""

from __future__ import annotations

import functools
import os
import re
from pathlib import Path

from tisdpo_jax.errors import CheckpointError

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
        why = (
            "neither a path here nor in the hub's cache, and the hub cannot be reached (or HF_HUB_OFFLINE is set); "
            f"check the network, or download it elsewhere ({_download(repository, revision)}) and name the folder"
        )
    except Exception as error:  # whatever the HTTP client of this huggingface_hub raises, and disks that are full
        reason = str(error).strip().splitlines()
        why = f"cannot be fetched from the hub ({reason[0] if reason else type(error).__name__}); run again to go on"
    else:
        return _complete(name, Path(path), files)
    raise CheckpointError(f"{name}: {why}")


def _complete(name: str, path: Path, files: tuple[str, ...]) -> Path:
    """`path`, if a model that we read is there."""
    if files != TOKENIZER and not any((path / file).is_file() for file in CONFIGS):
        raise CheckpointError(
            f"{name}: holds no config.json; only models in safetensors are fetched by name: of a repository of GGUF "
            f"files download one (hf download {name.partition('@')[0]} FILE.gguf --local-dir models) and name it"
        )
    return path


def _download(repository: str, revision: str) -> str:
    at = f" --revision {revision}" if revision else ""
    return f"`hf download {repository}{at} --local-dir models/{repository.rpartition('/')[2]}`"
