"""Models in: a Hugging Face directory or a GGUF file, told apart by what the path is."""

from __future__ import annotations

import dataclasses
import functools
import logging
import os
from pathlib import Path
from typing import Any

import jax
import numpy as np

from tisdpo_jax.errors import CheckpointError, ShapeMismatchError
from tisdpo_jax.interchange import gguf
from tisdpo_jax.interchange._assemble import Layout, Leaf, TensorSource, assemble, check, layout
from tisdpo_jax.interchange._safetensors import PICKLES, open_directory, refuse_pickle
from tisdpo_jax.interchange.huggingface import read_huggingface_config
from tisdpo_jax.models import TransformerConfig, abstract_params, flatten
from tisdpo_jax.types import Params

log = logging.getLogger(__name__)

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
_ROWS = 8192  # of two matrices that are compared


def find_model(path: str | os.PathLike[str]) -> Path:
    """`path`, if it is a directory or a .gguf file. Raises: CheckpointError that says what to name instead."""
    path = Path(path).expanduser()
    if path.is_dir() or (path.is_file() and path.suffix == ".gguf"):
        return path
    if not path.exists():
        raise CheckpointError(f"{path}: no such file or directory; name a Hugging Face model directory or a .gguf file")
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
        return gguf.read_gguf_config(path)
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
    for start in range(0, rows, _ROWS):
        index = (slice(start, min(start + _ROWS, rows)), slice(None))
        if not np.array_equal(source.read(EMBEDDING, index), source.read(HEAD, index)):
            return True
    return False


def load_params(
    path: str | os.PathLike[str], config: TransformerConfig, *, dtype: Any, shardings: Params | None = None
) -> Params:
    """The parameters of the model in a Hugging Face directory or a GGUF file.

    Every process reads only the byte ranges that its own devices hold. Of the checkpoint's tensors, the
    rotary tables that old releases carry are not read: they follow from the config. The one matrix of a model
    whose head is tied may have the name of the embedding or that of the head.

    Args:
      config: what `read_config` says.
      dtype: of the arrays; GGUF's blocks are dequantised in float32 first.
      shardings: nested dict of `jax.sharding.Sharding` with the structure of the parameters; None puts all
        on the default device.

    Raises: CheckpointError, also for a tensor that holds NaN or infinity; its subclasses MissingKeyError,
      UnexpectedKeyError, ShapeMismatchError and DuplicateKeyError where tensors do not fit, before anything is
      allocated.
    """
    source, leaves, ignored = open_model(path, config)
    if HEAD in ignored and _head_differs(source):
        raise ShapeMismatchError(
            f"{source.files[HEAD]}: tensor {HEAD!r} differs from {EMBEDDING!r}, so this head is not tied; take the "
            f"config that read_config gives"
        )
    return assemble(leaves, source, abstract_params(config), shardings, dtype, ignored=ignored)


def check_params(path: str | os.PathLike[str], config: TransformerConfig) -> None:
    """Raises what `load_params` would about missing files and tensors that do not fit; reads headers only."""
    source, leaves, ignored = open_model(path, config)
    check(leaves, source, {name: leaf.shape for name, leaf in flatten(abstract_params(config)).items()}, ignored)


def open_model(path: str | os.PathLike[str], config: TransformerConfig) -> tuple[TensorSource, Layout, set[str]]:
    """Where the tensors are, how the parameters are made of them, and which are not read."""
    path = find_model(path)
    if path.is_file():
        source, paired = gguf.open_gguf(path)
        leaves, ignored = layout(config, "gguf", paired_rows=paired), {gguf.ROPE_FACTORS}
        return source, leaves, ignored | {"output.weight"} if config.tied_head else ignored
    source, leaves = open_directory(path), layout(config)
    ignored = {name for name in source.shapes if name.endswith(".rotary_emb.inv_freq")}
    if config.tied_head and HEAD in source.shapes:
        if EMBEDDING in source.shapes:
            ignored.add(HEAD)
        else:
            leaves["embed/embedding"] = Leaf((HEAD,))
    return source, leaves, ignored
