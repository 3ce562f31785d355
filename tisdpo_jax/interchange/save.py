"""Models out: a directory that `transformers` 4 and 5 load."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from tisdpo_jax.interchange._assemble import check_tree, layout
from tisdpo_jax.interchange._export import write_export
from tisdpo_jax.interchange._fields import read_json, write_json
from tisdpo_jax.interchange._safetensors import INDEX, shards
from tisdpo_jax.interchange.generation import GENERATION, exported_generation, special_ids
from tisdpo_jax.interchange.huggingface import CONFIG, huggingface_config
from tisdpo_jax.models import TransformerConfig, flatten
from tisdpo_jax.types import Params


def save_huggingface(
    directory: str | os.PathLike[str],
    params: Params,
    config: TransformerConfig,
    *,
    tokenizer: Any = None,
    chat_template: str | None = None,
    base: str | os.PathLike[str] | None = None,
    stops: Sequence[int] = (),
    dtype: Any = None,
    max_shard_bytes: int = 5_000_000_000,
    beside: Mapping[str, dict[str, Any]] | None = None,
) -> None:
    """Writes weights, config.json and, with a tokenizer, its files and chat_template.jinja; see `write_companions`.

    The directory appears whole or not at all; an earlier export in it is replaced. Of several processes,
    all must call this, and process 0 writes.

    Args:
      params: arrays, sharded over any mesh; with LoRA, merge first (`models.merge`).
      chat_template: that conversations were trained in, as Jinja source; None keeps the tokenizer's.
      base: the model that the parameters come from: special ids of its config.json stay.
      stops: tokens that end an answer; generation_config.json is the base's, with these among its ends.
      dtype: of the written tensors; None keeps that of the embedding.
      max_shard_bytes: more is split into shards with an index.
      beside: names of further JSON files, and what is in them.

    Raises: CheckpointError when the directory holds something else, or no family of transformers fits.
    """
    leaves = layout(config)
    check_tree(leaves, flatten(params), "params")
    stored = np.dtype(jnp.dtype(dtype or params["embed"]["embedding"].dtype))
    special = special_ids(base, tokenizer)
    if config.score_head:  # the base's would be another: it says where the score is read
        special["pad_token_id"] = getattr(tokenizer, "pad_token_id", None)
    raw = huggingface_config(config, dtype=stored.name, special=special)
    bytes_of = {path: int(np.prod(leaf.tensor_shape)) * stored.itemsize for path, leaf in leaves.items()}
    sizes = {name: bytes_of[path] for path, leaf in leaves.items() for name in leaf.names}
    files, index = shards(sizes, max_shard_bytes)

    def companions(target: Path) -> None:
        if index is not None:
            write_json(target / INDEX, index)
        write_json(target / CONFIG, raw)
        for name, content in (beside or {}).items():
            write_json(target / name, content)
        generation = None if config.score_head else exported_generation(base, raw, stops)
        write_companions(target, tokenizer, chat_template, generation)

    write_export(directory, leaves, params, stored, files, companions)


def write_companions(
    target: Path, tokenizer: Any, chat_template: str | None, generation: dict[str, Any] | None
) -> None:
    """What others need beside the weights to talk to the model as it was trained.

    Args:
      tokenizer: whose files are written; None for none.
      chat_template: Jinja source of the template that conversations were written with; None keeps the tokenizer's.
      generation: content of generation_config.json, where there is to be one.
    """
    if tokenizer is not None:
        _save_tokenizer(target, tokenizer, chat_template)
    if generation is not None:
        write_json(target / GENERATION, generation)


def _save_tokenizer(target: Path, tokenizer: Any, chat_template: str | None) -> None:
    """`save_pretrained`, in a form that transformers 4 reads too: it does not know 5's names."""
    tokenizer.save_pretrained(target)
    file = target / "tokenizer_config.json"
    raw = read_json(file)
    if raw.get("tokenizer_class") == "TokenizersBackend":
        raw["tokenizer_class"] = "PreTrainedTokenizerFast"
    if isinstance(raw.get("extra_special_tokens"), list):  # 4 wants a mapping; tokenizer.json marks them as special
        del raw["extra_special_tokens"]
    if chat_template is not None and chat_template != _own_template(tokenizer):
        # the one template; those that the tokenizer had for tools and the like were not trained
        (target / "chat_template.jinja").write_text(chat_template, encoding="utf-8", newline="")
        shutil.rmtree(target / "additional_chat_templates", ignore_errors=True)
        raw.pop("chat_template", None)  # another place for it, of transformers 4
    write_json(file, raw)


def _own_template(tokenizer: Any) -> str | None:
    """The tokenizer's own template for plain conversations."""
    try:
        return str(tokenizer.get_chat_template())
    except ValueError:
        return None
