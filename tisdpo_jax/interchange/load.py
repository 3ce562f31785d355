"""Models and tokenizers in: a Hugging Face directory, a GGUF file, or a model of the hub, told apart by the name.

A reward model is a decoder whose head is one row, `score.weight`, in place of a vocabulary. Code that comes with a
model is never run.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
import os
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tisdpo_jax.errors import CheckpointError, MissingKeyError, ShapeMismatchError
from tisdpo_jax.interchange._assemble import Layout, TensorSource, assemble, check, layout, whole_matrix
from tisdpo_jax.interchange._fields import read_json
from tisdpo_jax.interchange._safetensors import PICKLES, open_directory, refuse_pickle
from tisdpo_jax.interchange.fetch import TOKENIZER, local_model
from tisdpo_jax.interchange.gguf import ROPE_FACTORS, gguf_tokenizer, open_gguf, read_gguf_config
from tisdpo_jax.interchange.huggingface import CONFIG, read_huggingface_config
from tisdpo_jax.models import SCORE as SCORE_HEAD
from tisdpo_jax.models import TransformerConfig, abstract_params, flatten, tensor_name, unflatten
from tisdpo_jax.types import Params

log = logging.getLogger(__name__)

EMBEDDING, HEAD = tensor_name("embed/embedding"), tensor_name("head/kernel")
SCORE = "score.weight"
_ROWS = 8192  # of two matrices that are compared
_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json")


def find_model(path: str | os.PathLike[str], files: tuple[str, ...] = ()) -> Path:
    """`path`, if it is a directory or a .gguf file, or where `files` of a model of the hub are (none: all needed).

    Raises: CheckpointError that says what to name instead.
    """
    path = local_model(path, files)
    if path.is_dir() or (path.is_file() and path.suffix == ".gguf"):
        return path
    if not path.exists():
        raise CheckpointError(
            f"{path}: no such file or directory; name a Hugging Face model directory, a .gguf file, or a model of the "
            f"hub as ORG/NAME"
        )
    if path.suffix in PICKLES:
        raise refuse_pickle(path)
    raise CheckpointError(f"{path}: not a .gguf file; for other weights name the directory that holds config.json")


def read_config(path: str | os.PathLike[str]) -> TransformerConfig:
    """The model in a Hugging Face directory (its config.json) or a GGUF file (its metadata).

    Whether the head is tied to the embedding is decided by what the files hold, as in transformers 5: a
    config.json that declares it tied is not believed where both matrices are there and differ. Where there are
    no weights, config.json decides.

    Raises: CheckpointError, also for what the decoder cannot do.
    """
    path = find_model(path)
    if path.is_file():
        return read_gguf_config(path)
    config = read_huggingface_config(path)
    if not config.tied_head:
        return config
    try:
        source = open_directory(path)
    except CheckpointError:  # a plan needs no weights; whoever loads them will hear of it
        return config
    if not _head_differs(source):
        return config
    _say_untied(path)
    return dataclasses.replace(config, tied_head=False)


@functools.cache  # a command reads the config of one model more than once
def _say_untied(path: Path) -> None:
    if jax.process_index() == 0:
        log.warning(
            "%s: config.json says tie_word_embeddings, but %s and %s are both there and differ, so both are kept, as "
            "in transformers 5; an export will say tie_word_embeddings false",
            *(path, EMBEDDING, HEAD),
        )


def _head_differs(source: TensorSource) -> bool:
    """Whether there is a head of its own, with other values than the embedding."""
    if not {EMBEDDING, HEAD} <= source.shapes.keys():
        return False
    if source.shapes[EMBEDDING] != source.shapes[HEAD] or len(source.shapes[HEAD]) != 2:
        return True
    rows = source.shapes[HEAD][0]
    parts = [(slice(start, min(start + _ROWS, rows)), slice(None)) for start in range(0, rows, _ROWS)]
    return not all(np.array_equal(source.read(EMBEDDING, part), source.read(HEAD, part)) for part in parts)


def load_params(
    path: str | os.PathLike[str], config: TransformerConfig, *, dtype: Any, shardings: Params | None = None
) -> Params:
    """The parameters of the model in a Hugging Face directory or a GGUF file.

    Every process reads only the byte ranges that its own devices hold. Of the checkpoint's tensors, the
    rotary tables that old releases carry are not read: they follow from the config. The one matrix of a model
    whose head is tied may have the name of the embedding or that of the head.

    The head of a reward model (`score_head`) that the checkpoint does not have begins at 0; of one, the head over the
    vocabulary is not read.

    Args:
      config: what `read_config` says, or the same decoder as a reward model.
      dtype: of the arrays; GGUF's blocks are dequantised in float32 first.
      shardings: nested dict of `jax.sharding.Sharding` with the structure of the parameters; None puts all
        on the default device.

    Raises: CheckpointError, also for a tensor that holds NaN or infinity; its subclasses MissingKeyError,
      UnexpectedKeyError, ShapeMismatchError and DuplicateKeyError where tensors do not fit, before anything is
      allocated.
    """
    source, leaves, ignored = open_model(path, config)
    if _begins_a_head(leaves, source):
        return _with_new_head(source, leaves, ignored, shardings, dtype)
    if HEAD in ignored and not config.score_head and _head_differs(source):
        raise ShapeMismatchError(
            f"{source.files[HEAD]}: tensor {HEAD!r} differs from {EMBEDDING!r}, so this head is not tied; take the "
            f"config that read_config gives"
        )
    return assemble(leaves, source, shardings, dtype, ignored=ignored)


def _begins_a_head(leaves: Layout, source: TensorSource) -> bool:
    """Whether a reward model is wanted of a decoder that is none yet."""
    return SCORE_HEAD in leaves and leaves[SCORE_HEAD].names[0] not in source.shapes


def _with_new_head(
    source: TensorSource, leaves: Layout, ignored: set[str], shardings: Params | None, dtype: Any
) -> Params:
    """The parameters of a reward model, of a checkpoint of the decoder alone."""
    shape, placed = leaves.pop(SCORE_HEAD).shape, flatten(shardings) if shardings is not None else {}
    sharding = placed.pop(SCORE_HEAD, None)
    params = assemble(leaves, source, unflatten(placed) if placed else None, dtype, ignored=ignored)
    return {**params, **unflatten({SCORE_HEAD: jnp.zeros(shape, dtype, device=sharding)})}


def check_params(path: str | os.PathLike[str], config: TransformerConfig) -> None:
    """Raises what `load_params` would about missing files and tensors that do not fit; reads headers only."""
    source, leaves, ignored = open_model(path, config)
    if _begins_a_head(leaves, source):
        del leaves[SCORE_HEAD]
    check(leaves, source, ignored)


def open_model(path: str | os.PathLike[str], config: TransformerConfig) -> tuple[TensorSource, Layout, set[str]]:
    """Where the tensors are, how the parameters are made of them, and which are not read."""
    path = find_model(path)
    if path.is_file():
        source, paired = open_gguf(path)
        head = {tensor_name("head/kernel", "gguf")} if config.tied_head else set()
        return source, layout(config, "gguf", paired_rows=paired), {ROPE_FACTORS} | head
    source, leaves = open_directory(path), layout(config)
    ignored = _rotary_tables(source)
    if config.tied_head and HEAD in source.shapes:
        if EMBEDDING in source.shapes:
            ignored.add(HEAD)
        else:
            leaves["embed/embedding"] = dataclasses.replace(leaves["embed/embedding"], names=(HEAD,))
    return source, leaves, ignored


def _rotary_tables(source: TensorSource) -> set[str]:
    """Tensors that old releases carry, and that follow from the config."""
    return {name for name in source.shapes if name.endswith(".rotary_emb.inv_freq")}


def is_reward_model(path: str | os.PathLike[str]) -> bool:
    """Whether a directory says that it holds a model for sequence classification."""
    file = local_model(path) / CONFIG
    return file.is_file() and any("SequenceClassification" in name for name in _architectures(file))


def load_reward_model(
    path: str | os.PathLike[str], *, dtype: Any, shardings: Any = None
) -> tuple[TransformerConfig, Params, jax.Array]:
    """(decoder, its parameters without a head, the score head `[D]` in float32).

    Args:
      dtype: of the parameters.
      shardings: from the abstract parameters to their shardings; None puts all on the default device.

    Raises: CheckpointError for other kinds of model, or more than one label; its subclasses where tensors do not fit.
    """
    path = local_model(path)
    if not is_reward_model(path):
        names = ", ".join(_architectures(path / CONFIG)) or "none"
        raise CheckpointError(
            f"{path / CONFIG}: architectures is {names}; a reward model is a ...ForSequenceClassification"
        )
    # `tied_head` says that there is no head of its own; nothing here reads one
    config = dataclasses.replace(read_huggingface_config(path), tied_head=True)
    source = open_directory(path)
    if SCORE not in source.shapes:
        raise MissingKeyError(f"{path}: tensor {SCORE!r} is missing; it is the head of a reward model: fetch it again")
    if source.shapes[SCORE] != (1, config.hidden_size):
        raise ShapeMismatchError(
            f"{source.files[SCORE]}: tensor {SCORE!r} has shape {list(source.shapes[SCORE])}; a reward model has one "
            f"label, [1, {config.hidden_size}]"
        )
    placed = shardings(abstract_params(config)) if shardings is not None else None
    params = assemble(layout(config), source, placed, dtype, ignored={SCORE, HEAD} | _rotary_tables(source))
    return config, params, jnp.asarray(whole_matrix(source, SCORE)[0])


def _architectures(file: Path) -> list[str]:
    names = read_json(file).get("architectures")
    return [str(name) for name in names] if isinstance(names, list) else []


def load_tokenizer(path: str | os.PathLike[str]) -> Any:
    """A `transformers` fast tokenizer for a Hugging Face directory or a .gguf file.

    Where there is a tokenizer.json, it is followed to the letter: the classes that `AutoTokenizer` picks by
    model type rebuild parts of it in transformers 5.

    Raises: CheckpointError when tokenizer files are missing or cannot be read.
    """
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    path = find_model(path, TOKENIZER)
    if path.is_file():
        return gguf_tokenizer(path)
    if not any((path / name).is_file() for name in _TOKENIZERS):
        raise CheckpointError(
            f"{path}: no tokenizer ({' or '.join(_TOKENIZERS)}); copy tokenizer.json and tokenizer_config.json there "
            f"from the original model, or name a directory that has them as model.tokenizer"
        )
    kind = PreTrainedTokenizerFast if (path / "tokenizer.json").is_file() else AutoTokenizer
    try:
        return kind.from_pretrained(str(path), local_files_only=True, trust_remote_code=False)
    except Exception as error:  # whatever tokenizers and transformers raise, it is the files that do not fit
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise CheckpointError(f"{path}: the tokenizer files cannot be read ({reason}); fetch them again") from error
