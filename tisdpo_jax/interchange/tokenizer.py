"""Tokenizers in: from Hugging Face files or from a GGUF file. Code that comes with a model is never run."""

from __future__ import annotations

import os
from typing import Any

from tisdpo_jax.errors import CheckpointError
from tisdpo_jax.interchange._gguf_tokenizer import gguf_tokenizer
from tisdpo_jax.interchange.load import find_model

_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json")


def load_tokenizer(path: str | os.PathLike[str]) -> Any:
    """A `transformers` fast tokenizer for a Hugging Face directory or a .gguf file.

    Where there is a tokenizer.json, it is followed to the letter: the classes that `AutoTokenizer` picks by
    model type rebuild parts of it in transformers 5.

    Raises: CheckpointError when tokenizer files are missing or cannot be read.
    """
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    path = find_model(path)
    if path.is_file():
        return gguf_tokenizer(path)
    if not any((path / name).is_file() for name in _FILES):
        raise CheckpointError(
            f"{path}: no tokenizer ({' or '.join(_FILES)}); copy tokenizer.json and tokenizer_config.json there from "
            f"the original model, or name a directory that has them as model.tokenizer"
        )
    kind = PreTrainedTokenizerFast if (path / "tokenizer.json").is_file() else AutoTokenizer
    try:
        return kind.from_pretrained(str(path), local_files_only=True, trust_remote_code=False)
    except Exception as error:  # whatever tokenizers and transformers raise, it is the files that do not fit
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise CheckpointError(f"{path}: the tokenizer files cannot be read ({reason}); fetch them again") from error
